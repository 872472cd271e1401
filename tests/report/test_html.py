"""Pages as one HTML file."""

import re
from html.parser import HTMLParser

from lorakit.report.blocks import Block, Card, Code, Examples, Page, Pictures, Section, Table, Text
from lorakit.report.html import html
from lorakit.report.plots import Curve, curves

EVIL = "</pre><script>alert('\"')</script><img src=x onerror=y>&amp;"


class Elements(HTMLParser):
    """Counts the elements, checks that they nest, and keeps the text."""

    VOID = ("meta", "path", "use", "rect", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page(text: str) -> str:
    curve = Curve(text, [(1, 2.0), (2, 1.0)], "dots")
    blocks: list[Block] = [
        Text(text),
        Table(["", ""], [[text, text]], numbers=False),
        Table([text, "x"], [[text, text]]),
        Pictures([curves("loss", text, [curve], 2)]),
        Examples([[(text, text), (text, text)]]),
    ]
    sections = [Section(text, blocks), Section(text, [Code(text, "yaml")], folded=True)]
    return html(Page(text, text, [Card(text, text, text)], sections))


def test_whatever_is_in_a_text_is_text() -> None:
    evil, good = Elements(page(EVIL)), Elements(page("harmless"))
    assert evil.tags == good.tags
    assert "script" not in evil.tags
    assert evil.text.count(EVIL) == good.text.count("harmless") >= 18


def test_nothing_is_loaded_from_elsewhere() -> None:
    found = page("x")
    assert not re.findall(r'(?:src|href)=(?!"#)|url\((?!#)|@import', found)
    links = set(re.findall(r"https?://[^\s\"'<]+", found))
    assert links == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}, "names, not addresses"


def test_it_has_what_light_dark_narrow_and_paper_need() -> None:
    found = page("x")
    for needed in ("prefers-color-scheme: dark", "@media print", "width=device-width", "overflow-x: auto", "lang="):
        assert needed in found
    defined = set(re.findall(r"(--\w+):", found))
    assert set(re.findall(r"var\((--\w+)\)", found)) <= defined


def test_pictures_and_tables_and_folding() -> None:
    found = page("x")
    assert '<svg role="img" aria-label="x over 2 steps: x from 2 to 1"' in found
    assert found.count("<thead>") == 1, "a table without names has no head"
    assert found.count('class="numbers"') == 1
    assert "<details>\n<summary>x</summary>\n<pre>x</pre>" in found

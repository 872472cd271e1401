"""A page as one HTML file: no script, no network, light and dark, for narrow screens and for paper."""

from collections.abc import Sequence
from html import escape

from lorakit.report.blocks import Block, Card, Code, Examples, Page, Picture, Section, Table, Text

STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --quiet: #59636e; --line: #d0d7de; --paper: #ffffff;
  --raised: #f6f8fa; --blue: #0072b2; --orange: #d55e00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --quiet: #9198a1; --line: #3d444d; --paper: #0d1117;
  --raised: #161b22; --blue: #56b4e9; --orange: #f08a4b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 .75rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); font-size: 1.25rem; }
p { margin: .75rem 0; max-width: 45rem; }
.quiet { color: var(--quiet); overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(12.5rem, 1fr)); gap: .75rem; margin: 1.5rem 0; }
.card { padding: .75rem 1rem; background: var(--raised); border: 1px solid var(--line); border-radius: .5rem; }
.card b { display: block; font-size: clamp(1.2rem, 4.5vw, 1.6rem); line-height: 1.4; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.card span { display: block; color: var(--quiet); font-size: .875rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-size: .9375rem; }
th, td { padding: .35rem .9rem .35rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { color: var(--quiet); font-weight: 600; }
.numbers :is(th, td):not(:first-child) { padding-left: .9rem; text-align: right; font-variant-numeric: tabular-nums; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.25rem; }
figure { margin: 0; }
figure svg { display: block; width: 100%; height: auto;
  stroke-linejoin: round; stroke-linecap: butt; }
svg text { font-family: inherit !important; }
ol { padding: 0; list-style: none; counter-reset: example; }
li { margin: .75rem 0; padding: .6rem 1rem; border: 1px solid var(--line); border-radius: .5rem; break-inside: avoid; }
dl { display: grid; grid-template-columns: 6.5rem 1fr; gap: .2rem .75rem; margin: 0; font-size: .9375rem; }
dt { color: var(--quiet); }
dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; min-width: 0; }
details { margin: 1rem 0; }
summary { font-weight: 600; cursor: pointer; }
pre { margin: .75rem 0; padding: 1rem; overflow-x: auto; background: var(--raised); border-radius: .5rem;
  font: .8125rem/1.5 ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace; }
@media (max-width: 30rem) { .cards { grid-template-columns: 1fr 1fr; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .4rem; } }
@media print { body { max-width: none; padding: 0; font-size: 11pt; } pre { white-space: pre-wrap; }
  figure, .card { break-inside: avoid; } h2 { break-after: avoid; }
  details::details-content { content-visibility: visible; } }
"""


def html(page: Page) -> str:
    """The page; every text in it is escaped."""
    title = escape(page.title)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} – lorakit</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{title}</h1>
<p class="quiet">{escape(page.subtitle)}</p>
<div class="cards">
{"".join(map(_card, page.cards))}</div>
{"".join(map(_section, page.sections))}</body>
</html>
"""


def _card(card: Card) -> str:
    label, value, note = map(escape, (card.label, card.value, card.note))
    return f'<div class="card"><span>{label}</span><b>{value}</b><span>{note}</span></div>\n'


def _section(section: Section) -> str:
    title, blocks = escape(section.title), "".join(map(_block, section.blocks))
    if section.folded:
        return f"<details>\n<summary>{title}</summary>\n{blocks}</details>\n"
    return f"<section>\n<h2>{title}</h2>\n{blocks}</section>\n"


def _block(block: Block) -> str:
    if isinstance(block, Text):
        return f"<p>{escape(block.text)}</p>\n"
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Examples):
        return f"<ol>\n{''.join(map(_example, block.examples))}</ol>\n"
    if isinstance(block, Code):
        return f"<pre>{escape(block.text)}</pre>\n"
    return f'<div class="pictures">\n{"".join(map(_picture, block.pictures))}</div>\n'


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    head = f"<thead><tr>{head}</tr></thead>\n" if any(table.header) else ""
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in table.rows)
    kind = ' class="numbers"' if table.numbers else ""
    return f'<div class="wide"><table{kind}>\n{head}<tbody>\n{rows}</tbody>\n</table></div>\n'


def _example(example: Sequence[tuple[str, str]]) -> str:
    pairs = "".join(f"<dt>{escape(label)}</dt><dd>{escape(text)}</dd>" for label, text in example)
    return f"<li><dl>{pairs}</dl></li>\n"


def _picture(picture: Picture) -> str:
    svg = picture.svg.replace("<svg ", f'<svg role="img" aria-label="{escape(picture.alt)}" ', 1)
    return f"<figure>{svg}</figure>\n"

"""Pages as Markdown."""

import pytest

from lorakit.report.blocks import Card, Code, Examples, Page, Picture, Pictures, Section, Table, Text
from lorakit.report.markdown import escape, markdown, table


def test_a_page() -> None:
    blocks = [
        Text("One *paragraph*."),
        Table(["class", "rows"], [["a|b", "1"]]),
        Pictures([Picture("loss", "loss [nats]", b"", "<svg/>")]),
        Examples([[("input", "two\nlines"), ("prediction", "x")], [("input", "y")]]),
    ]
    recipe = Section("The recipe", [Code("stop: ['```']\n", "yaml")], folded=True)
    page = Page("my_run", "lora on some/base", [Card("f1", "50.00", "on validation")], [Section("All", blocks), recipe])
    assert markdown(page) == """# my_run

lora on some/base

- f1: **50.00** on validation

## All

One \\*paragraph\\*.

| class | rows |
| --- | ---: |
| a\\|b | 1 |

![loss \\[nats\\]](plots/loss.png)

1. input: two lines
   - prediction: x
2. input: y

<details>
<summary>The recipe</summary>

````yaml
stop: ['```']
````

</details>
"""  # fmt: skip


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("<script>&</script>", "&lt;script&gt;&amp;&lt;/script&gt;"),
        ("![x](http://there/x.png)", r"!\[x\](http://there/x.png)"),
        ("a_b _c_ `d` $e$ ~f~ \\", r"a_b \_c\_ \`d\` \$e\$ \~f\~ " + "\\\\"),
        ("one\r\n\n# two", "one # two"),
    ],
)
def test_text_stays_text(text: str, escaped: str) -> None:
    assert escape(text) == escaped


def test_table() -> None:
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"


def test_cells_in_bold() -> None:
    text = table(["a", "b"], [["1*", "2"], ["1*", "4"]], "---:", {(1, 0)})
    assert text == "| a | b |\n| --- | ---: |\n| 1\\* | 2 |\n| **1\\*** | 4 |\n"

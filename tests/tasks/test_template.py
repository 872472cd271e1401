import pytest

from lorakit.data.readers import Record
from lorakit.errors import DataError
from lorakit.tasks.template import parse_template, render

RECORD = Record("f:3", {"q": "Why {a}?", "the answer": "so", "n": 3, "x": 0.5, "none": None, "list": [1], "yes": True})


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("Question: {q}\nAnswer:", "Question: Why {a}?\nAnswer:"),
        ("{the answer}{n}{x}", "so30.5"),
        ("{{{n}}} {{n}}", "{3} {n}"),
        ("plain", "plain"),
        ("", ""),
    ],
)
def test_render(template: str, text: str) -> None:
    assert render(template, RECORD) == text


@pytest.mark.parametrize(
    "template", ["{q.__class__}", "{q[0]}", "{q!r}", "{q:>9}", "{}", "{ q }", "{__class__.__mro__}", "{0.real}"]
)
def test_only_plain_names(template: str) -> None:
    with pytest.raises(ValueError, match="only the name of a column stands in braces"):
        parse_template(template)


@pytest.mark.parametrize("template", ["{q", "q}", "{q}}", "{a{b}}", "{{q}", "{"])
def test_unbalanced_braces(template: str) -> None:
    with pytest.raises(ValueError, match="unbalanced"):
        parse_template(template)


def test_unknown_column() -> None:
    with pytest.raises(DataError, match="f:3: there is no column `Q`"):
        render("{Q}", RECORD)


@pytest.mark.parametrize("column", ["none", "list", "yes"])
def test_cells_must_be_text_or_numbers(column: str) -> None:
    with pytest.raises(DataError, match=f"f:3: `{column}` must be text or a number"):
        render(f"{{{column}}}", RECORD)

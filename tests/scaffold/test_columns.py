"""What a look at a file says about its columns."""

import json
from pathlib import Path

import pytest

from lorakit.errors import DataError
from lorakit.scaffold.columns import MANY, Column, Content, look


def column(*cells: object) -> Column:
    made = Column("c")
    for cell in cells:
        made.add(cell)
    return made


@pytest.mark.parametrize(
    ("cells", "content"),
    [
        (["a", "b c"], "text"),
        (["a", "3"], "text"),
        (["1", "-2", "0003"], "whole numbers"),
        ([1, 2], "whole numbers"),
        (["1", "2.5"], "numbers"),
        ([1, 2.0], "numbers"),
        (["nan", "1_000"], "text"),
        ([True, False], "true/false"),
        (["a", 3.5], "text"),
        ([[{"role": "user", "content": "x"}]], "conversations"),
        ([[{"from": "human", "value": "x"}]], "lists"),
        ([[]], "lists"),
        ([{"a": 1}], "objects"),
        (["a", ["b"]], "mixed"),
        ([None, "", " "], "empty"),
    ],
)
def test_content(cells: list[object], content: Content) -> None:
    assert column(*cells).content == content


def test_counts() -> None:
    made = column("a b", "a b", "", None, "c", " d")
    assert (made.rows, made.blank, made.distinct, made.values["a b"]) == (4, 1, 3, 2)
    assert made.mean_words == 6 / 4
    assert (made.spaced_before, made.spaced_after, made.as_text) == (1, 0, True)
    assert not column("a", 1).as_text
    assert column(*range(MANY + 5)).distinct == MANY


@pytest.mark.parametrize(("cells", "integral"), [(["1.0", "2.0"], True), (["1.0", "2.5"], False), ([1, 2], True)])
def test_integral(cells: list[object], integral: bool) -> None:
    assert column(*cells).integral == integral


def test_example_is_the_first_that_says_something() -> None:
    assert column(None, " ", "a\n b").example == "a b"
    assert column([{"role": "user", "content": "hi"}]).example == "user: hi"
    assert column([1, 2]).example == "[1, 2]"


def test_look(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ({"a": 1}, {"a": 2, "b": "x"}, {"b": None})))
    table = look(file)
    assert table.rows == 3
    assert [(found.name, found.rows) for found in table.columns] == [("a", 2), ("b", 1)]
    with pytest.raises(DataError, match=r"none.csv: cannot be read"):
        look(tmp_path / "none.csv")

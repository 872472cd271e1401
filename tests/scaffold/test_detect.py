"""Which kind of row a file has, and which column is what."""

from pathlib import Path
from typing import Any

import pytest

from lorakit.errors import DataError
from lorakit.scaffold.columns import Column, Table
from lorakit.scaffold.detect import Reading, detect
from lorakit.tasks.custom import DataKind

ROWS = 40
WORDS = [f"a sentence with words {n}" for n in range(ROWS)]
MORE = [f"another one, number {n}, for the pair" for n in range(ROWS)]
CLASSES = ["good" if n % 3 else "bad" for n in range(ROWS)]
STARS = [str(1 + n % 5) for n in range(ROWS)]
SCORES = [f"{n / 7:.2f}" for n in range(ROWS)]
IDS = [str(n) for n in range(ROWS)]
TURNS: list[object] = [[{"role": "user", "content": str(n)}] for n in range(ROWS)]


def table(**columns: list[Any]) -> Table:
    """A file with these columns; `_` in their names stands for a space, `N_` before for `#N `."""
    made = []
    for name, cells in columns.items():
        column = Column(name)
        for cell in cells:
            column.add(cell)
        made.append(column)
    return Table(Path("f.csv"), ROWS, made)


def reading(kind: DataKind | None = None, /, **columns: list[Any]) -> Reading:
    return detect(table(**columns), kind)


@pytest.mark.parametrize(
    ("columns", "kind", "roles"),
    [
        (
            {"id": IDS, "review": WORDS, "sentiment": CLASSES},
            "classification",
            {"text": "review", "label": "sentiment"},
        ),
        ({"sentence": WORDS, "label": [1, 0] * 20}, "classification", {"text": "sentence", "label": "label"}),
        ({"body": WORDS, "x": MORE, "kind": CLASSES}, "classification", {"text": "body", "label": "kind"}),
        (
            {"premise": WORDS, "hypothesis": MORE, "gold_label": CLASSES, "genre": CLASSES},
            "classification",
            {"text": "premise", "pair": "hypothesis", "label": "gold_label"},
        ),
        (
            {"Quality": ["0", "1"] * 20, "#1 ID": IDS, "#1 String": WORDS, "#2 String": MORE},
            "classification",
            {"text": "#1 String", "pair": "#2 String", "label": "Quality"},
        ),
        ({"text": WORDS, "label": ["1.0", "0.0"] * 20}, "classification", {"text": "text", "label": "label"}),
        (
            {"genre": CLASSES, "sentence1": WORDS, "sentence2": MORE, "score": SCORES},
            "regression",
            {"text": "sentence1", "pair": "sentence2", "label": "score"},
        ),
        ({"text": WORDS, "label": [n / 9 for n in range(ROWS)]}, "regression", {"text": "text", "label": "label"}),
        ({"text": WORDS, "price": SCORES}, "regression", {"text": "text", "label": "price"}),
        ({"prompt": WORDS, "target": CLASSES}, "completion", {"target": "target"}),
        ({"dialogue": WORDS, "id": IDS, "summary": MORE}, "completion", {"target": "summary"}),
        ({"question": WORDS, "answer": MORE}, "completion", {"target": "answer"}),
        ({"english": WORDS, "french": MORE}, "completion", {"target": "french"}),
        ({"messages": TURNS, "label": CLASSES, "text": WORDS}, "chat", {"messages": "messages"}),
        ({"question": WORDS, "answer": CLASSES}, "classification", {"text": "question", "label": "answer"}),
    ],
)
def test_kind_and_roles(columns: dict[str, list[Any]], kind: str, roles: dict[str, str]) -> None:
    found = reading(**columns)
    assert (found.kind, found.roles) == (kind, roles)


def test_a_prompt_of_several_columns_becomes_a_template() -> None:
    found = reading(instruction=WORDS, input=["", "x"] * 20, output=MORE)
    assert found.template == "{instruction}\n\n{input}\n\n"
    assert found.role_of("input") == "prompt" and found.role_of("output") == "target"


def test_a_column_that_is_absent_from_rows_cannot_stand_in_a_template() -> None:
    found = reading(instruction=WORDS, context=[None, "x"] * 20, response=MORE)
    assert found.template == "{instruction}\n\n"
    assert found.notes == ("`context` is absent from some rows, so it is left out of the prompt",)


@pytest.mark.parametrize(
    ("prompts", "targets"), [([f"{word}\n" for word in WORDS], MORE), (WORDS, [f" {word}" for word in MORE])]
)
def test_no_template_where_the_rows_bring_their_own_space(prompts: list[str], targets: list[str]) -> None:
    found = reading(prompt=prompts, completion=targets)
    assert (found.template, found.roles) == (None, {"target": "completion", "prompt": "prompt"})


def test_a_name_that_no_template_can_hold() -> None:
    found = reading(**{"in.text": WORDS, "out": MORE})
    assert (found.template, found.roles) == (None, {"target": "out", "prompt": "in.text"})


def test_ambiguity_is_said_with_the_way_out() -> None:
    assert reading(text=WORDS, stars=STARS).notes == (
        "regression would fit too (text text, label stars): --kind regression",
    )
    assert reading("regression", text=WORDS, stars=STARS).kind == "regression"
    assert reading(text=WORDS, label=["0", "1", "2", "1"] * 10).notes == ()
    by_shape = reading(text=WORDS, colour=CLASSES)
    assert by_shape.notes == ("`colour` is the label by its values alone: see task.columns",)


def test_nothing_fits() -> None:
    with pytest.raises(DataError) as caught:
        reading(a=IDS, flag=[True, False] * 20, turns=[[{"from": "human", "value": "x"}]] * ROWS)
    first, *others = caught.value.problems
    assert (
        first
        == "f.csv: no kind of row fits its columns: `a` (40 whole numbers), `flag` (2 true/false), `turns` (lists)"
    )
    assert others[:2] == [
        "`flag` is true or false: write a class as text, or as 0 and 1",
        "`turns` has turns of from and value: rename them to role and content",
    ]
    assert [line.split(" needs ")[0] for line in others[2:]] == ["chat", "completion", "classification", "regression"]


def test_a_kind_that_does_not_fit() -> None:
    with pytest.raises(DataError, match=r"kind chat needs a column of lists .*; the columns are `text` \(40 text\)"):
        reading("chat", text=WORDS, label=CLASSES)


@pytest.mark.parametrize("label", [["one"] * ROWS, [str(n) + "x" for n in range(ROWS)]])
def test_a_label_that_is_always_or_never_the_same_is_none(label: list[str]) -> None:
    with pytest.raises(DataError):
        reading("classification", text=WORDS, label=label)

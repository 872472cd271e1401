"""Tables, plots and rows from predictions."""

import math
from typing import Any

from lorakit.report.blocks import Block, Examples, Pictures, Table, Text
from lorakit.report.results import EXAMPLES, LENGTH, MANY, results


def classified(*pairs: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"text": f"row {i}", "prediction": p, "label": label} for i, (label, p) in enumerate(pairs)]


def only(blocks: list[Block], kind: type[Any]) -> list[Any]:
    return [block for block in blocks if isinstance(block, kind)]


def test_classes() -> None:
    # By hand: a is right twice of three times and predicted twice; b is right once and predicted twice.
    records = classified(("a", "a"), ("a", "a"), ("a", "b"), ("b", "b"))
    blocks = results("validation", "classification", ["a", "b"], records)
    per_class, matrix = only(blocks, Table)
    assert per_class.header == ["class", "rows", "predicted", "precision", "recall", "F1"]
    assert per_class.rows == [
        ["a", "3", "2", "100.00", "66.67", "80.00"],
        ["b", "1", "2", "50.00", "100.00", "66.67"],
    ]
    assert (matrix.header, matrix.rows) == (["label \\ predicted", "a", "b"], [["a", "2", "1"], ["b", "0", "1"]])
    (pictures,) = only(blocks, Pictures)
    assert [picture.name for picture in pictures.pictures] == ["confusion_validation"]
    (examples,) = only(blocks, Examples)
    assert examples.examples == [[("text", "row 2"), ("label", "a"), ("prediction", "b")]]
    assert only(blocks, Text)[0].text == "Rows predicted wrongly: 1 of 4; the first 8:"


def test_what_is_undefined_is_a_dash() -> None:
    records = classified(("a", "a"), ("b", "a"), ("a", "d"))
    per_class = only(results("validation", "classification", ["a", "b", "c", "d"], records), Table)[0]
    assert per_class.rows[1] == ["b", "1", "0", "–", "0.00", "0.00"]
    assert per_class.rows[2] == ["c", "0", "0", "–", "–", "–"]
    assert per_class.rows[3] == ["d", "0", "1", "0.00", "–", "0.00"]


def test_a_single_class_and_nothing_wrong() -> None:
    blocks = results("validation", "classification", ["a", "b"], classified(("a", "a")))
    assert not only(blocks, Examples)
    assert not only(blocks, Text)


def test_many_classes_have_a_list_of_confusions() -> None:
    labels = [f"c{i}" for i in range(MANY)]
    pairs = [("c1", "c2")] * 3 + [("c5", "c6")] * 4 + [(label, label) for label in labels]
    confusions = only(results("validation", "classification", labels, classified(*pairs)), Table)[1]
    assert confusions.rows == [["c5 → c6", "4"], ["c1 → c2", "3"]]
    right = results("validation", "classification", labels, classified(("c1", "c1")))
    assert len(only(right, Table)) == 1


def test_numbers() -> None:
    records = [{"text": "x", "pair": "y", "prediction": p, "label": label} for label, p in ((1.0, 2.0), (3.0, 0.0))]
    blocks = results("validation", "regression", ["score"], records)
    (table,) = only(blocks, Table)
    assert table.rows == [
        ["mean error", "-1.0000"],
        ["mean absolute error", "2.0000"],
        ["root mean squared error", "2.2361"],
        ["largest error", "3.0000"],
    ]
    (examples,) = only(blocks, Examples)
    assert examples.examples[0] == [("text", "x"), ("pair", "y"), ("label", "3"), ("prediction", "0")]


def test_numbers_that_are_none() -> None:
    records = [{"text": "x", "prediction": math.nan, "label": 1.0}, {"text": "x", "prediction": 1.0, "label": 1.0}]
    assert only(results("v", "regression", ["s"], records), Text)[0].text == (
        "1 of 2 predictions are no finite number."
    )
    assert len(results("v", "regression", ["s"], records[:1])) == 1


def test_texts() -> None:
    record = {"prompt": "p" * (LENGTH + 1), "prediction": "said", "references": ["one", "two", "three", "four", "five"]}
    blocks = results("validation", "generation", [], [record] * (EXAMPLES + 1))
    assert only(blocks, Text)[0].text.startswith("Inputs (the first 8 of 9 distinct ones) with")
    (examples,) = only(blocks, Examples)
    assert len(examples.examples) == EXAMPLES
    assert examples.examples[0] == [
        ("input", "p" * LENGTH + f" … ({LENGTH + 1} characters)"),
        ("prediction", "said"),
        ("reference", "one"),
        ("reference", "two"),
        ("reference", "three"),
        ("and", "2 more"),
    ]


def test_a_conversation() -> None:
    record = {"prompt": [{"role": "system", "content": "Be."}, {"role": "user", "content": "Hi"}],
              "prediction": "Hello", "references": ["Hey"]}  # fmt: skip
    blocks = results("validation", "generation", [], [record])
    assert only(blocks, Text)[0].text.startswith("Inputs (all distinct ones) with")
    assert only(blocks, Examples)[0].examples[0][0] == ("input", "system: Be.\nuser: Hi")

import math

import pytest

from lorakit.data.rows import CompletionRow, TextRow
from lorakit.errors import DataError
from lorakit.metrics import LACKING, TEXT_METRICS
from lorakit.tasks import E2E, TASKS, Glue
from lorakit.tasks.base import Split


def test_table_names_are_the_classes_own() -> None:
    assert {name: section.model_fields["name"].default for name, section in TASKS.items()} == {n: n for n in TASKS}


def test_limit_counts_kept_rows_and_reads_no_further() -> None:
    task = Glue(subset="cola", limit={"train": 2, "test": 1})
    read = []

    def rows():
        for item in (TextRow("a"), "broken", TextRow("b"), "broken", TextRow("c")):
            read.append(item)
            yield item

    split = task.gather("train", rows())
    assert [row.text for row in split.rows] == ["a", "b"]
    assert split.dropped == {"broken": 1}
    assert len(read) == 3


def test_limit_is_of_its_split_alone() -> None:
    split = Glue(subset="cola", limit={"train": 1}).gather(
        "validation", iter([TextRow("a"), "x", TextRow("b"), "x"]), "f00"
    )
    assert (len(list(split.rows)), split.dropped, split.revision) == (2, {"x": 2}, "f00")


def test_no_row_left() -> None:
    with pytest.raises(DataError, match=r"no row of the split train is left; dropped: \{'broken': 1\}"):
        list(Glue(subset="cola").gather("train", iter(["broken"])).rows)


def test_load_is_read_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Glue(subset="cola")
    monkeypatch.setattr(
        Glue, "read", lambda self, split: self.gather(split, iter([TextRow("a"), "x", TextRow("b")]), "f00")
    )
    assert task.load("train") == Split([TextRow("a"), TextRow("b")], {"x": 1}, "f00")


def test_unknown_split() -> None:
    with pytest.raises(DataError, match="no split `validation_mismatched`; choose from train, validation, test"):
        Glue(subset="cola").load("validation_mismatched")


def test_score_has_the_tasks_metrics_in_their_order() -> None:
    rows = [TextRow("a", "b", label) for label in (1, 1, 0, 0)]
    assert Glue(subset="mrpc").score(rows, [1, 0, 0, 0]).values == {"accuracy": 0.75, "f1": pytest.approx(2 / 3)}
    assert list(Glue(subset="mrpc").score(rows, [1, 0, 0, 0]).values) == ["accuracy", "f1"]


def test_undefined_correlation_is_nan() -> None:
    rows = [TextRow("a", "b", label) for label in (1.0, 2.0)]
    scores = Glue(subset="stsb").score(rows, [3.0, 3.0]).values
    assert list(scores) == ["pearson", "spearman"] and all(map(math.isnan, scores.values()))


def test_rows_without_labels_cannot_be_scored() -> None:
    with pytest.raises(DataError, match="no labels to be scored against"):
        Glue(subset="cola").score([TextRow("a", label=1), TextRow("b")], [1, 0])


def test_prompts_without_references_cannot_be_scored() -> None:
    with pytest.raises(DataError, match="no reference to be scored against"):
        E2E().score([CompletionRow("a", " x"), CompletionRow("b", None)], ["x", "y"])


def test_a_metric_whose_program_fails_or_is_not_here_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: object, __: object) -> float:
        raise DataError("java: METEOR failed: it ended")

    monkeypatch.setitem(TEXT_METRICS, "meteor", fails)
    for name, value in (("rouge_l", 0.25), ("cider", 2.5)):
        monkeypatch.setitem(TEXT_METRICS, name, lambda _, __, value=value: value)
    monkeypatch.setitem(LACKING, "meteor", lambda: None)
    monkeypatch.setitem(LACKING, "rouge_l", lambda: None)
    monkeypatch.setitem(LACKING, "cider", lambda: "java not found")
    found = E2E().score([CompletionRow("a", " x y z w")], ["x y z w"])
    assert list(found.values) == ["bleu", "nist", "rouge_l", "nist_perl"]
    assert found.notes == ("cider: not computed: java not found", "meteor: not computed: java: METEOR failed: it ended")
    assert list(E2E().score([CompletionRow("a", " x")], ["x"], quick=True).values) == ["bleu", "nist", "nist_perl"]

"""What report.json says, in a person's words."""

from typing import Any

import pytest

from lorakit.report.facts import metric_rows, note_lines, paper_line, shown, summary_rows


def report(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "metrics": {
            "validation": {"loss": 0.51234, "accuracy": 0.8754},
            "validation_mismatched": {"loss": 0.6, "accuracy": 0.87},
        },
        "best_step": 40,
        "select": "accuracy",
        "steps": 50,
        "epochs": 2.5,
        "parameters": {"total": 2_000_000, "trainable": 10_000, "method": 4_000, "head": 6_000},
        "targets": {"q": 12, "v": 12},
        "rows": {"train": 1234, "validation": 56},
        "truncated": {"train": 3, "validation": 0},
        "dropped": {"train": {"label -": 7}, "validation": {}},
        "seconds": 61.25,
        "tokens_per_second": 1234.5,
        "peak_memory_bytes": 3 * 2**20,
        "adapter_bytes": 2**19,
        "versions": {"lorakit": "0.1", "torch": "2.13"},
        "device": "cpu",
        "seed": 0,
        "paper": None,
    }
    return found | changes


PAPER = {"source": "Table 2", "metric": "accuracy", "value": 87.5, "std": 0.3}


@pytest.mark.parametrize(
    ("metric", "value", "text"), [("bleu", 0.684, "68.40"), ("loss", 0.5, "0.5000"), ("nist", 8.6512, "8.6512")]
)
def test_shown(metric: str, value: float, text: str) -> None:
    assert shown(metric, value) == text


def test_metric_rows_of_splits_with_different_metrics() -> None:
    assert metric_rows({"train": {"loss": 1.0}, "test": {"loss": 2.0, "f1": 0.5}}) == (
        ["metric", "train", "test"],
        [["loss", "1.0000", "2.0000"], ["f1", "–", "50.00"]],
    )


def test_paper_beside_what_was_measured() -> None:
    assert paper_line(report()) is None
    assert paper_line(report(paper=PAPER)) == ("accuracy: 87.54 measured on validation, 87.5 ± 0.3 reported (Table 2)")
    assert "87.5 reported (" in str(paper_line(report(paper=PAPER | {"std": None})))
    assert paper_line(report(paper=PAPER, metrics={})) is None


def test_summary() -> None:
    rows = dict(summary_rows(report()))
    assert rows["trained parameters"] == "10,000 (0.50 % of 2,000,000)"
    assert rows["targets"] == "q (12), v (12)"
    assert rows["truncated rows"] == "train 3"
    assert rows["dropped rows"] == "train: label - 7"
    assert rows["steps"] == "50 (2.50 epochs); the adapter is that of step 40"
    assert rows["training time"] == "61.2 s, 1,234 tokens/s"
    assert (rows["peak memory"], rows["adapter"]) == ("3.0 MiB", "512.0 KiB")
    bare = dict(summary_rows(report(tokens_per_second=None, truncated={"train": 0}, dropped={})))
    assert (bare["training time"], bare["truncated rows"], bare["dropped rows"]) == ("61.2 s", "none", "none")


def test_what_went_wrong_is_said_where_it_did() -> None:
    assert not {"skipped steps", "memory ran out"} & dict(summary_rows(report(skipped_steps=0))).keys()
    rows = dict(summary_rows(report(skipped_steps=3, memory_ran_out=["evaluation: memory ran out; batches are cut"])))
    assert rows["skipped steps"] == "3, whose loss or gradient was not finite"
    assert rows["memory ran out"] == "evaluation: batches are cut"


def test_notes_are_told_with_their_split() -> None:
    assert note_lines(report()) == [], "a report of before there were notes"
    notes = {"validation": ["meteor: not computed: java not found", "3 of 9 predictions are no query"], "other": ["x"]}
    assert note_lines(report(notes=notes)) == [
        "validation: meteor: not computed: java not found",
        "validation: 3 of 9 predictions are no query",
        "other: x",
    ]


def test_a_number_of_another_split_is_told_as_such() -> None:
    elsewhere = PAPER | {"split": "validation_mismatched"}
    assert "87.00 measured on validation_mismatched, 87.5 ± 0.3 reported (" in str(paper_line(report(paper=elsewhere)))
    not_measured = str(paper_line(report(paper=PAPER | {"split": "test"})))
    assert "87.54 measured on validation, 87.5 ± 0.3 reported on test (Table 2)" in not_measured

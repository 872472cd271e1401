"""From the history to the plots."""

from typing import Any

import pytest

from lorakit.report.curves import chosen_metric, training_curves


def lines(evaluations: int = 2) -> list[dict[str, Any]]:
    log = [
        {"kind": "log", "step": step, "loss": 1 / step, "lr": 0.1, "grad_norm": None if step == 3 else 2.0}
        for step in range(1, 11)
    ]
    found = [
        {"kind": "eval", "step": 5 * (i + 1), "split": "validation", "metrics": {"loss": 0.5, "f1": 0.25 + 0.5 * i}}
        for i in range(evaluations)
    ]
    return [*log, *found, {"kind": "save", "step": 10}]


def report(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "kind": "classification",
        "select": "f1",
        "best_step": 10,
        "steps": 10,
        "metrics": {"validation": {"loss": 0.5, "f1": 0.75}},
        "recipe": {"train": {"label_smoothing": 0.0}},
    }
    return found | changes


def test_four_plots() -> None:
    found = {picture.name: picture for picture in training_curves(lines(), report())}
    assert list(found) == ["loss", "metric", "gradient_norm", "learning_rate"]
    assert found["loss"].alt == (
        "loss (nats per row) over 10 steps: training from 1 to 0.1, validation from 0.5 to 0.5"
    )
    assert found["metric"].alt == "f1, × 100 over 10 steps: validation from 25 to 75"
    assert "published (step 10)" in found["metric"].svg
    assert "published (step 10)" in found["loss"].svg
    assert "published" not in found["gradient_norm"].svg


def test_a_published_step_that_was_not_evaluated_is_not_marked() -> None:
    assert not [p for p in training_curves(lines(), report(best_step=9)) if "published" in p.svg]


@pytest.mark.parametrize("lr", [None, 0.0])
def test_values_that_are_no_numbers_are_left_out(lr: float | None) -> None:
    history = [line | {"metrics": {"loss": None, "f1": lr}} if line["kind"] == "eval" else line for line in lines()]
    found = {picture.name: picture.alt for picture in training_curves(history, report())}
    assert found["loss"].endswith("training from 1 to 0.1")
    assert ("metric" in found) == (lr is not None)


def test_units_and_smoothing() -> None:
    smoothed = report(kind="generation", recipe={"train": {"label_smoothing": 0.1}})
    loss = training_curves(lines(0), smoothed)[0]
    assert loss.alt.startswith("loss (nats per token) over 10 steps: training, smoothed labels from 1")


@pytest.mark.parametrize(
    ("select", "metrics", "name"),
    [
        ("f1", {"loss": 1.0, "f1": 0.5}, "f1"),
        ("loss", {"loss": 1.0, "bleu": 0.5}, "bleu"),
        ("last", {"loss": 1.0}, None),
    ],
)
def test_chosen_metric(select: str, metrics: dict[str, float], name: str | None) -> None:
    assert chosen_metric(report(select=select, metrics={"validation": metrics})) == name

"""How a run went, from metrics.jsonl: the loss, the metric that chose the step, the rate and the gradient."""

from typing import Any

from lorakit.report.blocks import Picture
from lorakit.report.facts import RAW, on_paper_scale
from lorakit.report.plots import Curve, curves

_UNITS = {"generation": "nats per token", "classification": "nats per row", "regression": "mean squared error"}

Lines = list[dict[str, Any]]


def training_curves(lines: Lines, report: dict[str, Any]) -> list[Picture]:
    """The plots for which there are values.

    Args:
        lines: Of metrics.jsonl.
        report: report.json.
    """
    log = [line for line in lines if line["kind"] == "log"]
    evaluations = [line for line in lines if line["kind"] == "eval"]
    smoothed = report["recipe"]["train"]["label_smoothing"]
    loss = [
        Curve("training, smoothed labels" if smoothed else "training", _points(log, "loss"), "noise"),
        Curve("validation", _metric(evaluations, "loss"), "dots"),
    ]
    pictures = [_draw("loss", f"loss ({_UNITS[report['kind']]})", loss, report)]
    name = chosen_metric(report)
    if name is not None:
        scale = "" if name in RAW else ", × 100"
        metric = Curve("validation", _metric(evaluations, name), "dots")
        pictures.append(_draw("metric", f"{name}{scale}", [metric], report))
    norm = Curve("training, before clipping", _points(log, "grad_norm"), "noise")
    pictures.append(_draw("gradient_norm", "gradient norm", [norm], report))
    pictures.append(_draw("learning_rate", "learning rate", [Curve("training", _points(log, "lr"), "line")], report))
    return [picture for picture in pictures if picture is not None]


def chosen_metric(report: dict[str, Any]) -> str | None:
    """The metric that chose the published step; where the loss or nothing did, the task's first."""
    found = next(iter(report["metrics"].values()))
    if report["select"] not in ("loss", "last"):
        return str(report["select"])
    return next((name for name in found if name != "loss"), None)


def _draw(name: str, ylabel: str, drawn: list[Curve], report: dict[str, Any]) -> Picture | None:
    """The curves that have points, the published step ringed; None where none has."""
    best = report["best_step"]
    drawn = [curve for curve in drawn if curve.points]
    if not drawn:
        return None
    mark = next((point for curve in drawn if curve.style == "dots" for point in curve.points if point[0] == best), None)
    return curves(name, ylabel, drawn, report["steps"], mark)


def _points(lines: Lines, key: str) -> list[tuple[float, float]]:
    """(step, value) where there is one: the norm of a gradient may have been infinite."""
    return [(line["step"], line[key]) for line in lines if line.get(key) is not None]


def _metric(lines: Lines, name: str) -> list[tuple[float, float]]:
    """(step, value) on the scale on which the metric is shown; an undefined one is left out."""
    found = [(line["step"], line.get("metrics", {}).get(name)) for line in lines]
    return [(step, on_paper_scale(name, value)) for step, value in found if value is not None]

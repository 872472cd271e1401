"""What a comparison found: one row per method, over its seeds, in the columns of the paper's tables."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lorakit.report import shown_spread
from lorakit.runtime import size_text
from lorakit.trials.jobs import Job
from lorakit.trials.summary import spread, value_of


@dataclass(frozen=True)
class Row:
    """One method.

    Args:
        name: As it was asked for.
        lr: Highest learning rate.
        parameters: Trained, without the task's head, as the paper counts.
        metrics: Metric → (mean, standard deviation over the seeds: that of a sample, None of a single one).
        peak_memory: The most bytes of a run.
        seconds: Of training, mean over the seeds.
        adapter_bytes: Size of the published adapter, with the task's head.
        runs: Finished ones.
        failures: Reasons of the others.
        latency: Of one forward pass beside the base's, as a share: 0.03 is 3 % more; None: not measured.
    """

    name: str
    lr: float
    parameters: int | None
    metrics: dict[str, tuple[float, float | None]]
    peak_memory: int | None
    seconds: float | None
    adapter_bytes: int | None
    runs: int
    failures: tuple[str, ...] = ()
    latency: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        metrics = {name: {"mean": mean, "std": std} for name, (mean, std) in self.metrics.items()}
        return asdict(self) | {"metrics": metrics}


def row_of(name: str, jobs: Sequence[Job], failed: Mapping[str, str], metrics: Sequence[str]) -> Row:
    """What the runs of one method found together.

    Args:
        name: Of the method.
        jobs: Its runs.
        failed: Label → reason.
        metrics: See `metrics_of`.
    """
    lr = jobs[0].recipe.train.lr
    reasons = tuple(f"seed {job.seed}: {failed[job.label]}" for job in jobs if job.label in failed)
    reports = [report for job in jobs if job.label not in failed and (report := job.report()) is not None]
    if not reports:
        return Row(name, lr, None, {}, None, None, None, 0, reasons)
    return Row(
        name=name,
        lr=lr,
        parameters=reports[0]["parameters"]["method"],
        metrics={metric: spread([value_of(report, metric) for report in reports]) for metric in metrics},
        peak_memory=max(report["peak_memory_bytes"] for report in reports),
        seconds=statistics.mean(report["seconds"] for report in reports),
        adapter_bytes=max(report["adapter_bytes"] for report in reports),
        runs=len(reports),
        failures=reasons,
    )


def table(rows: Sequence[Row], metrics: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) for people, metrics on the paper's scale."""
    header = ["method", "trained", *metrics, "peak memory", "training", "adapter", "lr", "latency"]
    return header, [_cells(row, metrics) for row in rows]


def _cells(row: Row, metrics: Sequence[str]) -> list[str]:
    name = row.name if not row.failures or not row.runs else f"{row.name} ({len(row.failures)} failed)"
    if not row.runs:
        return [name, "failed", *["–"] * (len(metrics) + 3), f"{row.lr:g}", "–"]
    assert row.parameters is not None and row.peak_memory is not None
    assert row.seconds is not None and row.adapter_bytes is not None
    return [
        name,
        f"{row.parameters:,}",
        *(shown_spread(metric, *row.metrics[metric]) for metric in metrics),
        size_text(row.peak_memory),
        f"{row.seconds:,.1f} s",
        size_text(row.adapter_bytes),
        f"{row.lr:g}",
        "–" if row.latency is None else f"{100 * row.latency:+.1f} %",
    ]

"""What a sweep found: one row per point, over its seeds, and which point is the best."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorakit.report import shown, shown_spread
from lorakit.sweep.axes import Axis, titles
from lorakit.sweep.budget import rank_of
from lorakit.sweep.prepare import Planned
from lorakit.trials.jobs import Job
from lorakit.trials.summary import lower_is_better, spread, value_of


@dataclass(frozen=True)
class Row:
    """One point.

    Args:
        planned: Its values, and what it trains.
        metrics: Metric → (mean, standard deviation over the seeds: that of a sample, None of a single one).
        seconds: Of training, mean over the seeds; None where no run has finished.
        best_steps: The published step of each run.
        failures: Reasons of the runs that failed.
        by_seed: Seed → the metric that judges.
    """

    planned: Planned
    metrics: dict[str, tuple[float, float | None]]
    seconds: float | None
    best_steps: tuple[int, ...]
    failures: tuple[str, ...] = ()
    by_seed: Mapping[int, float] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """For people."""
        return self.planned.point.title

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        point = self.planned.point
        values: dict[str, Any] = {"method": point.method} if point.method else {}
        for axis, value in zip(point.axes, point.values, strict=True):
            values |= dict(zip(axis.keys, value, strict=False))
        return {
            "label": point.label,
            "values": values,
            "rank": rank_of(self.planned.recipe),
            "parameters": self.planned.parameters,
            "metrics": {name: {"mean": mean, "std": std} for name, (mean, std) in self.metrics.items()},
            "by_seed": dict(self.by_seed),
            "seconds": self.seconds,
            "best_steps": self.best_steps,
            "runs": len(self.best_steps),
            "failures": self.failures,
        }


def row_of(planned: Planned, jobs: Sequence[Job], failed: Mapping[str, str], metrics: Sequence[str]) -> Row:
    """What the runs of one point found together.

    Args:
        planned: The point.
        jobs: Its runs.
        failed: Label → reason.
        metrics: The columns' names.
    """
    reasons = tuple(f"seed {job.seed}: {failed[job.label]}" for job in jobs if job.label in failed)
    reports = {job.seed: found for job in jobs if job.label not in failed and (found := job.report()) is not None}
    if not reports:
        return Row(planned, {}, None, (), reasons)
    return Row(
        planned,
        {metric: spread([value_of(report, metric) for report in reports.values()]) for metric in metrics},
        statistics.mean(report["seconds"] for report in reports.values()),
        tuple(report["best_step"] for report in reports.values()),
        reasons,
        {seed: value_of(report, metrics[0]) for seed, report in reports.items()},
    )


@dataclass(frozen=True)
class Sweep:
    """What came of it.

    Args:
        axes: What varied.
        rows: One per point, in the order of the axes or of the draws.
        metrics: The columns' names; the first judges.
        split: On which they were measured; None where no run has finished.
        seeds: Runs of each point.
        drawn: Whether the points are drawn ones.
        budget: Trained parameters that the ranks were chosen for.
    """

    axes: list[Axis]
    rows: list[Row]
    metrics: list[str]
    split: str | None
    seeds: int
    drawn: bool = False
    budget: int | None = None

    @property
    def metric(self) -> str:
        """The one that judges."""
        return self.metrics[0]

    @property
    def titles(self) -> list[str]:
        """Of the axes."""
        return titles(self.axes)

    @property
    def failures(self) -> list[str]:
        """One line per run that failed."""
        return [f"{row.title}, {reason}" for row in self.rows for reason in row.failures]

    def ranking(self) -> list[Row]:
        """Points that have the metric, the best first; those with failed runs last, since they had fewer tries."""
        sign = 1 if lower_is_better(self.metric) else -1
        there = [row for row in self.rows if not math.isnan(self.mean(row))]
        return sorted(there, key=lambda row: (bool(row.failures), sign * self.mean(row)))

    def mean(self, row: Row) -> float:
        """The metric that judges; nan where there is none."""
        return row.metrics.get(self.metric, (math.nan, None))[0]

    def verdict(self) -> str:
        """The best point, and what that is worth."""
        ranking = self.ranking()
        if not ranking:
            return "no run has finished" if self.split is None else f"{self.metric} is undefined at every point"
        first = ranking[0]
        text = f"best: {first.title}: {self.metric} {self.value(first)}"
        if len(ranking) == 1:
            return text
        second = ranking[1]
        gap = abs(self.mean(first) - self.mean(second))
        text += f"; second: {second.title}: {self.value(second)}; {shown(self.metric, gap)} apart"
        known = [std for row in (first, second) if (std := row.metrics[self.metric][1]) is not None]
        if len(known) < 2:
            return f"{text}; one seed each does not tell how much of that is chance"
        text += f", {self._ahead(first, second)}"
        if gap > max(known):
            return f"{text}; more than the seeds' spread"
        near = sum(abs(self.mean(first) - self.mean(row)) <= max(known) for row in ranking[1:])
        which = "one other point is" if near == 1 else f"{near} other points are"
        return f"{text}; no more than the seeds' spread: {which} as near to the best"

    def _ahead(self, first: Row, second: Row) -> str:
        """With how many seeds one point is better than another: runs of one seed see the same rows in one order."""
        sign = -1 if lower_is_better(self.metric) else 1
        both = [seed for seed in first.by_seed if seed in second.by_seed]
        better = sum(sign * first.by_seed[seed] > sign * second.by_seed[seed] for seed in both)
        return f"ahead with {better} of {len(both)} seeds"

    def value(self, row: Row) -> str:
        """The metric that judges, for people."""
        return value_text(self.metric, row)

    def notes(self) -> list[str]:
        """What a reader of the table must know."""
        over = f"mean ± standard deviation over {self.seeds} seeds" if self.seeds > 1 else "one seed"
        notes = [f"metrics on {self.split or 'no split'}, {over}; trained: without the task's head"]
        if self.budget is not None:
            notes.append(f"ranks are those nearest to {self.budget:,} trained parameters; alpha is the recipe's")
        if len(self.ranking()) > 1:
            notes.append(
                f"the best of {len(self.rows)} points was chosen on the split that it is reported on, which flatters "
                "it: measure it on rows that chose nothing"
            )
        return notes


def value_text(metric: str, row: Row) -> str:
    """Mean ± standard deviation, on the paper's scale; or failed."""
    if metric not in row.metrics:
        return "failed" if row.failures else "–"
    return shown_spread(metric, *row.metrics[metric])

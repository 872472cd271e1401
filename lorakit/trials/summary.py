"""What several runs of one kind found together."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from lorakit.recipe import Recipe
from lorakit.trials.jobs import Job

TEXT_METRICS = 3
"""Columns for a task that generates text; others are chosen by one metric."""


def metrics_of(recipe: Recipe) -> list[str]:
    """The metrics that are compared: the one that chooses the step, else the task's first; of texts the first few."""
    names = list(recipe.task.metrics)
    if recipe.train.select in names:
        names = [recipe.train.select, *(name for name in names if name != recipe.train.select)]
    lacking = recipe.task.not_computed()
    names = [name for name in names if name not in lacking] or names
    return names[: TEXT_METRICS if recipe.task.kind == "generation" else 1]


def value_of(report: dict[str, Any], metric: str) -> float:
    """A run's metric on the first validation split; nan where it is undefined."""
    value = next(iter(report["metrics"].values())).get(metric)
    return math.nan if value is None else float(value)


def lower_is_better(metric: str) -> bool:
    """Whether less of it is better."""
    return metric == "loss"


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """(mean, standard deviation of a sample); nan where a value is, and no deviation of a single one."""
    if any(map(math.isnan, values)):
        return math.nan, None
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def record(job: Job, failed: Mapping[str, str]) -> dict[str, Any]:
    """A run, for JSON.

    Args:
        job: The run.
        failed: Label → reason, of those that failed.
    """
    reason = failed.get(job.label)
    return {
        "seed": job.seed,
        "status": "complete" if reason is None else "failed",
        "reason": reason,
        "recipe": str(job.file),
        "run": str(job.run),
        "log": str(job.log),
        "report": None if reason else job.report(),
    }

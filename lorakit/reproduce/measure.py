"""A finished run's metrics on the split that was reported: from its report, else measured once and kept."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from lorakit.checkpoint import adapter_file
from lorakit.data.rows import has_target
from lorakit.errors import DataError, RecipeError
from lorakit.progress import Progress
from lorakit.recipe import Recipe
from lorakit.records import write_records
from lorakit.runtime import json_ready, write_atomic
from lorakit.session import open_session
from lorakit.trials.jobs import Job


def check_split(recipe: Recipe, split: str | None, metric: str) -> None:
    """Find out before hours of training whether the result can be measured at all.

    Args:
        recipe: Resolved.
        split: What it will be measured on; None: the validation that training reads anyway.
        metric: What will be judged.

    Raises:
        RecipeError: The metric cannot be computed on this machine.
        DataError: The split is not there, is malformed, or has no labels.
    """
    if reason := recipe.task.not_computed().get(metric):
        raise RecipeError(f"{recipe.name}: {metric} cannot be computed here: {reason}")
    if split is None:
        return
    if not has_target(next(iter(recipe.task.read(split).rows))):
        raise DataError(f"{recipe.name}: paper.split: the rows of {split} have no labels to be measured by")


def metrics_on(job: Job, split: str | None, progress: Progress) -> dict[str, float]:
    """A finished run's metrics.

    Args:
        job: With a report.
        split: None: the one on which the best step was chosen.
        progress: For the person.

    Returns:
        As reports have them; nan where one is undefined.

    Raises:
        LorakitError: The run or the split cannot be read.
    """
    report = job.report()
    assert report is not None
    found: dict[str, dict[str, float | None]] = report["metrics"]
    name = split or next(iter(found))
    values = found[name] if name in found else _evaluated(job, name, progress)
    return {metric: math.nan if value is None else float(value) for metric, value in values.items()}


def kept(job: Job, split: str) -> Path:
    """Where an evaluation is kept."""
    return job.folder / "evaluations" / f"{job.label}-{split}.json"


def _evaluated(job: Job, split: str, progress: Progress) -> dict[str, float | None]:
    """By the published adapter; once, as long as that stays the same."""
    file = kept(job, split)
    sha256 = hashlib.sha256(adapter_file(job.run).read_bytes()).hexdigest()
    try:
        before: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        before = {}
    if before.get("adapter_sha256") != sha256:
        progress.say(f"{job.label}: evaluated on {split}")
        session = open_session(job.run)
        evaluation = session.evaluate(session.read(split, progress), progress)
        write_records(job.run / "predictions" / f"{split}.jsonl", evaluation.records)
        before = {
            "split": split,
            "adapter_sha256": sha256,
            "metrics": json_ready(evaluation.metrics),
            "notes": evaluation.notes,
        }
        write_atomic(file, json.dumps(before, indent=1, ensure_ascii=False) + "\n")
        del session
        _give_back()
    values: dict[str, float | None] = before["metrics"]
    return values


def _give_back() -> None:
    """The GPU's memory, which the runs of other processes may need."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

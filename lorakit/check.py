"""`lorakit check resume`: a killed and continued run beside an uninterrupted one, on this machine with this recipe."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit.checkpoint import ADAPTER
from lorakit.errors import LorakitError, RecipeError
from lorakit.journal import read_history
from lorakit.launch import lorakit_command
from lorakit.progress import Progress
from lorakit.recipe import Recipe, dump, load
from lorakit.runtime import write_atomic
from lorakit.training.history import History

EVALUATED_ROWS = 32
"""Rows of each validation split: what is evaluated must be equal too, but the steps are what is proved."""


@dataclass(frozen=True)
class Finding:
    """What two runs have of one thing.

    Args:
        what: For the table.
        amount: How much of it there is.
        difference: None where both have the same; else where they differ.
    """

    what: str
    amount: str
    difference: str | None = None


def check_resume(recipe: Recipe, half: int, folder: Path, progress: Progress) -> list[Finding]:
    """Train 2N steps in one go, and N steps, a kill (SIGKILL, one step after a checkpoint), and the rest; compare.

    Every run is a process of its own. The epoch ends on the way, so that the order of the next is proved too.

    Args:
        recipe: Validated.
        half: N, at least 2.
        folder: Where the runs go.
        progress: For the person.

    Returns:
        Adapter, metrics, history and predictions, one finding each.

    Raises:
        RecipeError: N is too small.
        LorakitError: A run fails for another reason than the kill; with its last line.
    """
    if half < 2:
        raise RecipeError(f"--steps: got {half}; give 2 or more: the kill comes one step after the checkpoint")
    file = folder / "recipe.yaml"
    write_atomic(file, dump(shortened(recipe, half)))
    whole, broken = folder / "whole", folder / "broken"
    with progress.bar("check resume", 3, "runs") as bar:
        _run(_train(file, whole), f"{2 * half} steps in one go")
        bar.advance(now=f"{half} steps and a kill")
        doomed = f"from lorakit.check import train_until_killed as t; t({str(file)!r}, {str(broken)!r}, {half + 1})"
        _run([sys.executable, "-c", doomed], f"{half + 1} steps and a kill", -signal.SIGKILL)
        bar.advance(now="the rest")
        _run([*_train(file, broken), "--resume"], "the rest")
        bar.advance()
    return compare_runs(whole, broken)


def shortened(recipe: Recipe, half: int) -> Recipe:
    """The recipe with 2N steps on as few rows as these need, saved and evaluated after N."""
    batch, limit = recipe.train.batch_size, {str(split): count for split, count in recipe.task.limit.items()}
    rows = batch * (half + (half + 1) // 2)  # the epoch ends half-way through the second half
    limit["train"] = min(rows, limit.get("train", rows))
    for split in recipe.task.splits:
        if split.startswith("validation"):
            limit[split] = min(EVALUATED_ROWS, limit.get(split, EVALUATED_ROWS))
    length: dict[str, Any] = {"epochs": None, "steps": 2 * half, "eval_every": half, "save_every": half, "track": []}
    return recipe.model_copy(
        update={
            "task": recipe.task.model_copy(update={"limit": limit}),
            "train": recipe.train.model_copy(update={**length, "patience": None}),
        }
    )


def train_until_killed(file: str, out: str, last: int) -> None:
    """Run a recipe, and kill this very process once step `last` is logged: nothing of it can be cleaned up."""
    from lorakit.progress import Plain
    from lorakit.training.run import train

    write = History.write

    def write_and_die(self: History, kind: str, step: int, **values: Any) -> None:
        write(self, kind, step, **values)
        if kind == "log" and step == last:
            os.kill(os.getpid(), signal.SIGKILL)

    History.write = write_and_die  # type: ignore[method-assign]
    train(load(file), Path(out), Plain())


def _train(file: Path, out: Path) -> list[str]:
    return lorakit_command(["train", str(file), "--out", str(out)])


def _run(command: Sequence[str], what: str, expected: int = 0) -> None:
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if ended.returncode != expected:
        lines = [line for line in (ended.stderr or ended.stdout).splitlines() if line.strip()]
        raise LorakitError(f"{what}: exit code {ended.returncode}: {lines[-1] if lines else 'nothing was said'}")


def compare_runs(one: Path, other: Path) -> list[Finding]:
    """What two finished runs have published, measured, logged and predicted; times aside."""
    adapters = [(run / ADAPTER).read_bytes() for run in (one, other)]
    reports = [json.loads((run / "report.json").read_text()) for run in (one, other)]
    logs = [[{k: v for k, v in line.items() if k != "seconds"} for line in read_history(run)] for run in (one, other)]
    texts = [
        {str(file.relative_to(run)): file.read_bytes() for file in sorted((run / "predictions").glob("*"))}
        for run in (one, other)
    ]
    metrics = [{name: value for name, value in report.items() if name in _RESULTS} for report in reports]
    return [
        Finding("adapter", f"{len(adapters[0]):,} bytes", None if adapters[0] == adapters[1] else _tensors(one, other)),
        Finding("metrics", ", ".join(metrics[0]["metrics"]), _first_difference(metrics[0], metrics[1])),
        Finding(
            "history", f"{len(logs[0])} lines", _first_difference(dict(enumerate(logs[0])), dict(enumerate(logs[1])))
        ),
        Finding("predictions", f"{len(texts[0])} files", _first_difference(texts[0], texts[1], values=False)),
    ]


_RESULTS = ("metrics", "best_step", "steps", "epochs", "status")


def _first_difference(one: dict[Any, Any], other: dict[Any, Any], values: bool = True) -> str | None:
    for key in dict.fromkeys([*one, *other]):
        if key not in one or key not in other:
            return f"{key}: only one of the runs has it"
        if one[key] != other[key]:
            return f"{key}: {one[key]} and {other[key]}" if values else f"{key} differs"
    return None


def _tensors(one: Path, other: Path) -> str:
    """How far two adapters are apart."""
    from lorakit.checkpoint import read_adapter

    states = [read_adapter(run / ADAPTER)[0] for run in (one, other)]
    if states[0].keys() != states[1].keys():
        return "they hold other tensors"
    gaps = {name: float((tensor - states[1][name]).abs().max()) for name, tensor in states[0].items()}
    name = max(gaps, key=lambda key: gaps[key])
    return f"{sum(gap > 0 for gap in gaps.values())} of {len(gaps)} tensors differ, most by {gaps[name]:.3g} ({name})"

"""`lorakit compare`: the same task with several methods, and one table."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorakit.compare.plot import plot
from lorakit.compare.table import Row, row_of, table
from lorakit.errors import LorakitError, RecipeError
from lorakit.latency import Deployed, Grid, deploy, measure, prepare_base
from lorakit.progress import Progress
from lorakit.report import table as markdown_table
from lorakit.report.markdown import escape
from lorakit.report.plots import write_alone
from lorakit.runtime import json_ready, write_atomic
from lorakit.trials.jobs import Job, make_place
from lorakit.trials.settings import Given, check_names, recipe_for
from lorakit.trials.summary import metrics_of, record
from lorakit.trials.workers import devices, run_all

GRID = Grid(batches=[1], lengths=[128], trials=30)
"""What the column of latencies is measured on; shorter where the base has fewer positions."""
_NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Wanted:
    """What is to be run, and how.

    Args:
        names: See `variants`.
        seeds: Runs of each: train.seed, train.seed + 1, …
        at_once: Runs at the same time; see `devices`.
        overwrite: Do finished runs again.
    """

    names: Sequence[str]
    seeds: int = 1
    at_once: int | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Comparison:
    """What came of it.

    Args:
        rows: One per name, in the order given.
        metrics: The columns' names.
        split: On which they were measured; None where no run has finished.
        setting: Of the latencies, in words.
        folder: Where everything is.
    """

    rows: list[Row]
    metrics: list[str]
    split: str | None
    setting: str
    folder: Path

    @property
    def failures(self) -> list[str]:
        """One line per run that failed."""
        return [f"{row.name}, {reason}" for row in self.rows for reason in row.failures]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """(header, rows)."""
        return table(self.rows, self.metrics)

    def notes(self) -> list[str]:
        """What a reader of the table must know."""
        seeds = max((row.runs + len(row.failures) for row in self.rows), default=0)
        spread = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
        latency = f"of one forward pass beside the base's, {self.setting}, merged where that can be"
        return [
            f"metrics on {self.split or 'no split'}, {spread}; trained: without the task's head; "
            f"latency: {self.setting if self.setting.startswith(_NOT_MEASURED) else latency}"
        ]


def compare(given: Given, wanted: Wanted, folder: Path, progress: Progress) -> Comparison:
    """Train a recipe with every method named, and write compare.json, compare.md and the plot.

    Args:
        given: The person's recipe.
        wanted: What is to be run.
        folder: Where to; runs that are finished there are not done again.
        progress: For the person.

    Raises:
        RecipeError: A name is unknown, a recipe does not hold together, finished runs are of other recipes, or more is
            to run at once than there are GPUs.
        Interrupted: A signal came; the same command continues.
    """
    names = wanted.names
    check_names(given, names)
    jobs = _jobs(given, wanted, folder)
    devices(wanted.at_once)  # before anything is overwritten
    make_place(folder, jobs, wanted.overwrite, "comparison")
    failed = run_all(jobs, progress, label="compare", alone=True, at_once=wanted.at_once)
    metrics = metrics_of(given.recipe)
    rows = [row_of(name, [job for job in jobs if job.name == name], failed, metrics) for name in names]
    measured, setting = _latencies(given, [job for job in jobs if job.label not in failed], progress)
    rows = [replace(row, latency=measured.get(row.name)) for row in rows]
    reports = [report for job in jobs if (report := job.report()) is not None]
    split = next(iter(reports[0]["metrics"])) if reports else None
    found = Comparison(rows, metrics, split, setting, folder)
    _write(found, given, [{"method": job.name, **record(job, failed)} for job in jobs])
    return found


def _jobs(given: Given, wanted: Wanted, folder: Path) -> list[Job]:
    """Seed by seed, so that a comparison that is stopped has all methods."""
    first = given.recipe.train.seed
    jobs: list[Job] = []
    problems: list[str] = []
    for seed in range(first, first + wanted.seeds):
        for name in wanted.names:
            try:
                jobs.append(Job(name, seed, recipe_for(given, name, seed), folder))
            except RecipeError as error:
                problems += error.problems
    if problems:
        raise RecipeError(*dict.fromkeys(problems))
    return jobs


def _latencies(given: Given, jobs: Sequence[Job], progress: Progress) -> tuple[dict[str, float], str]:
    """Name → how much longer a forward pass takes than the base's; and the setting, in words."""
    recipes = {job.name: job.recipe for job in jobs}
    if not recipes:
        return {}, _NOT_MEASURED
    if given.recipe.model.quantize is not None:
        return {}, f"{_NOT_MEASURED}, since what is timed are whole bases, and this one is in 4 bits"
    base = prepare_base(given.recipe)
    deployed: dict[str, Deployed] = {}
    for name, recipe in recipes.items():
        try:
            deployed[name] = replace(deploy(base, name, recipe.method)[0], label=f"{name}:")  # none is called `base`
        except LorakitError as error:
            progress.say(f"warning: no latency of {name}: {error}")
    places = max((one.slots.count for one in deployed.values()), default=0)
    length = min(GRID.lengths[0], (base.max_tokens or GRID.lengths[0]) - places)
    if length < 1:
        return {}, _NOT_MEASURED
    cells = measure(base, list(deployed.values()), replace(GRID, lengths=[length]), progress)
    over = {cell.label: cell.over_base for cell in cells}
    return {name: over[one.label] for name, one in deployed.items()}, f"batch {GRID.batches[0]}, {length} tokens"


def _write(found: Comparison, given: Given, runs: list[dict[str, Any]]) -> None:
    folder, name = found.folder, given.recipe.name
    facts = {
        "recipe": name,
        "base": given.recipe.model.base,
        "split": found.split,
        "metrics": found.metrics,
        "latency_setting": found.setting,
        "methods": [row.as_dict() for row in found.rows],
        "runs": runs,
    }
    write_atomic(folder / "compare.json", json.dumps(json_ready(facts), indent=1, ensure_ascii=False) + "\n")
    text = [f"# {escape(name)}: methods compared\n", markdown_table(*found.table(), "---:")]
    text += [f"{escape(note)}.\n" for note in found.notes()]
    picture = plot(found.rows, found.metrics[0])
    for ending in ("png", "svg"):
        (folder / f"compare.{ending}").unlink(missing_ok=True)
    if picture is not None:
        write_alone(picture, folder)
        text.append(f"![{escape(picture.alt)}](compare.png)\n")
    text += [f"Failed: {escape(reason)}\n" for reason in found.failures]
    write_atomic(folder / "compare.md", "\n".join(text))

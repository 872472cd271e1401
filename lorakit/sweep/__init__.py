"""`lorakit sweep`: one recipe over a grid of values, or over points drawn from it; tables and plots."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorakit.errors import LorakitError, RecipeError
from lorakit.progress import Progress
from lorakit.recipe import Recipe
from lorakit.recipe_errors import refusal_of
from lorakit.report.markdown import escape
from lorakit.report.plots import write_alone
from lorakit.runtime import json_ready, write_atomic
from lorakit.sweep.axes import Axis, read_words
from lorakit.sweep.budget import parse_budget
from lorakit.sweep.found import Sweep, row_of
from lorakit.sweep.plots import pictures
from lorakit.sweep.points import draw, grid
from lorakit.sweep.prepare import Planned, prepare
from lorakit.sweep.table import markdown_tables
from lorakit.trials.jobs import Job, make_place
from lorakit.trials.settings import Given, check_names, read
from lorakit.trials.summary import TEXT_METRICS, lower_is_better, metrics_of, record
from lorakit.trials.workers import devices, run_all

PICTURES = ("curve", "heatmap", "scatter")
"""Names that a sweep's pictures may have."""


@dataclass(frozen=True)
class Asked:
    """What the person asked for.

    Args:
        recipe: A file.
        words: `key=value`, axes among them.
        methods: Names, see `variants`; None: the recipe's own.
        random: How many points to draw; None: all.
        budget: Trained parameters that ranks are chosen for, as 18M; None: ranks are the recipe's.
        metric: That judges; None: the one that chooses the step.
    """

    recipe: Path
    words: Sequence[str]
    methods: Sequence[str] | None = None
    random: int | None = None
    budget: str | None = None
    metric: str | None = None


@dataclass(frozen=True)
class Plan:
    """A sweep that can be run.

    Args:
        given: The person's recipe, with the values that are the same for all points.
        axes: What varies.
        points: In order.
        metrics: To report.
        drawn: Whether the points are drawn ones.
        budget: Trained parameters that the ranks were chosen for.
    """

    given: Given
    axes: list[Axis]
    points: list[Planned]
    metrics: list[str]
    drawn: bool
    budget: int | None


def plan(asked: Asked, progress: Progress) -> Plan:
    """Read what was asked for, and check every point on the model, without its weights.

    Raises:
        RecipeError: Everything that is wrong.
        LorakitError: The base is not there.
    """
    axes: list[Axis] = []
    budget: int | None = None
    given: Given | None = None
    problems: list[str] = []
    try:
        fixed, axes = read_words(asked.words, asked.random is not None)
        problems += _budget_problems(asked, axes, fixed)
        given = read(asked.recipe, fixed)
    except RecipeError as error:
        problems += error.problems
    try:
        budget = None if asked.budget is None else parse_budget(asked.budget)
        if asked.methods is not None and given is not None:
            check_names(given, asked.methods)
    except RecipeError as error:
        problems += error.problems
    if asked.methods is not None:
        problems += [f"{key}: --methods names the methods; keep one" for key in _keys(axes) if key in _METHOD]
        axes.insert(0, Axis((), tuple((name,) for name in asked.methods)))
    if not axes and not problems:
        problems.append("nothing varies: give a key several values, as method.rank=1,2,4,8")
    if problems:
        raise RecipeError(*dict.fromkeys(problems))
    assert given is not None
    points = grid(axes) if asked.random is None else draw(axes, asked.random, given.recipe.train.seed)
    planned = prepare(given, points, budget, progress)
    metrics = _metrics([one.recipe for one in planned], asked.metric)
    return Plan(given, axes, planned, metrics, asked.random is not None, budget)


_METHOD = ("method", "method.name", "method.0", "method.0.name")


def _keys(axes: Sequence[Axis]) -> list[str]:
    return [key for axis in axes for key in axis.keys]


def _budget_problems(asked: Asked, axes: Sequence[Axis], fixed: Sequence[str]) -> list[str]:
    if asked.budget is None:
        return []
    keys = [*_keys(axes), *(word.partition("=")[0] for word in fixed)]
    ranks = [key for key in keys if key.startswith("method.") and key.endswith(".rank")]
    return [f"{key}: --budget chooses the rank; leave one of the two out" for key in ranks]


def _metrics(recipes: Sequence[Recipe], wanted: str | None) -> list[str]:
    """The metrics that all points have, the one that judges first.

    Raises:
        RecipeError: The points have none in common, or not the one that was named.
    """
    there = [name for name in metrics_of(recipes[0]) if all(name in recipe.task.metrics for recipe in recipes)]
    if wanted is None:
        if not there or any(metrics_of(recipe)[0] != there[0] for recipe in recipes):
            names = ", ".join(dict.fromkeys(metrics_of(recipe)[0] for recipe in recipes))
            raise RecipeError(f"the points are judged by different metrics, {names}; name one that all have: --metric")
        return there
    allowed = [
        name for name in (*recipes[0].task.metrics, "loss")
        if name == "loss" or all(name in r.task.metrics and name not in r.task.not_computed() for r in recipes)
    ]  # fmt: skip
    if wanted not in allowed:
        raise RecipeError(f"--metric: {refusal_of(wanted, allowed)}")
    most = TEXT_METRICS if recipes[0].task.kind == "generation" else 1
    return [wanted, *(name for name in there if name != wanted)][:most]


def run(plan: Plan, seeds: int, folder: Path, progress: Progress, *, overwrite: bool, at_once: int | None) -> Sweep:
    """Do what has not been done, and write sweep.json, sweep.md and the plots.

    Args:
        plan: What to do.
        seeds: Runs of each point: train.seed, train.seed + 1, …
        folder: Where to; runs that are finished there are not done again.
        progress: For the person.
        overwrite: Do all again.
        at_once: Runs at the same time; None: one on each GPU.

    Raises:
        RecipeError: The folder is something else's, or has runs of other recipes.
        Interrupted: A signal came; the same command continues.
    """
    jobs = {one.point.label: _jobs(one, seeds, folder) for one in plan.points}
    # Seed by seed, so that a sweep that is stopped has all points.
    every = [of_point[index] for index in range(seeds) for of_point in jobs.values()]
    devices(at_once)  # before anything is overwritten
    make_place(folder, every, overwrite, "sweep")
    progress.say(f"{len(plan.points)} points, {seeds} seed{'s' * (seeds > 1)} each: {len(every)} runs in {folder}")
    failed = run_all(every, progress, label="sweep", at_once=at_once)
    rows = [row_of(one, jobs[one.point.label], failed, plan.metrics) for one in plan.points]
    reports = [report for job in every if (report := job.report()) is not None]
    split = next(iter(reports[0]["metrics"])) if reports else None
    found = Sweep(plan.axes, rows, plan.metrics, split, seeds, plan.drawn, plan.budget)
    _write(found, plan.given.recipe, folder, every, failed)
    return found


def _jobs(planned: Planned, seeds: int, folder: Path) -> list[Job]:
    recipe = planned.recipe
    made = []
    for seed in range(recipe.train.seed, recipe.train.seed + seeds):
        train = recipe.train.model_copy(update={"seed": seed})
        made.append(Job(planned.point.label, seed, recipe.model_copy(update={"train": train}), folder))
    return made


def _write(found: Sweep, recipe: Recipe, folder: Path, jobs: Sequence[Job], failed: dict[str, str]) -> None:
    drawn, lacking = pictures(found)
    ranking = found.ranking()
    facts = {
        "recipe": recipe.name,
        "base": recipe.model.base,
        "split": found.split,
        "metrics": found.metrics,
        "better": "lower" if lower_is_better(found.metric) else "higher",
        "random": found.drawn,
        "budget": found.budget,
        "axes": [{"keys": axis.keys or ["method"], "values": axis.values, "range": axis.range and vars(axis.range)}
                 for axis in found.axes],
        "points": [row.as_dict() for row in found.rows],
        "best": ranking[0].planned.point.label if ranking else None,
        "verdict": found.verdict(),
        "notes": [*found.notes(), *lacking],
        "runs": [{"point": job.name, **record(job, failed)} for job in jobs],
    }  # fmt: skip
    write_atomic(folder / "sweep.json", json.dumps(json_ready(facts), indent=1, ensure_ascii=False) + "\n")
    text = [f"# {escape(recipe.name)}: {escape(' × '.join(found.titles))}\n", *markdown_tables(found)]
    text += [f"{escape(note)}.\n" for note in (found.verdict(), *found.notes(), *lacking)]
    for name in PICTURES:
        for ending in ("png", "svg"):
            (folder / f"{name}.{ending}").unlink(missing_ok=True)
    for picture in drawn:
        write_alone(picture, folder)
        text.append(f"![{escape(picture.alt)}]({picture.name}.png)\n")
    text += [f"Failed: {escape(reason)}\n" for reason in found.failures]
    write_atomic(folder / "sweep.md", "\n".join(text))


def failures(found: Sweep) -> LorakitError | None:
    """The error of runs that failed, if any did."""
    reasons = found.failures
    return LorakitError(*reasons, f"{len(reasons)} runs failed; the same command tries them again") if reasons else None

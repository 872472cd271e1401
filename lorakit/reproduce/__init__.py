"""`lorakit reproduce`: the runs of a published number, and whether they come to it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorakit.errors import LorakitError
from lorakit.progress import Progress
from lorakit.reproduce.entries import Entry, entries
from lorakit.reproduce.judge import judge
from lorakit.reproduce.measure import check_split, metrics_on
from lorakit.reproduce.page import Outcome, Reproduction, write
from lorakit.trials.jobs import Job, make_place
from lorakit.trials.settings import Given
from lorakit.trials.summary import lower_is_better
from lorakit.trials.workers import devices, run_all

__all__ = ["Request", "Reproduction", "reproduce"]


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Args:
        given: Recipes.
        methods: Names of rows, `all` for every row with a number; None: each recipe's own.
        seeds: Runs of each row: train.seed, train.seed + 1, …; None: as many as were reported.
        out: Where to; None: reproduce/NAME, of several recipes each its own, and the table in reproduce.
        overwrite: Do all again.
        jobs: Runs at a time; None: one on each device.
    """

    given: Sequence[Given]
    methods: Sequence[str] | None = None
    seeds: int | None = None
    out: Path | None = None
    overwrite: bool = False
    jobs: int | None = None

    @property
    def folder(self) -> Path:
        """Where the table is."""
        if self.out is not None:
            return self.out
        return Path("reproduce") / self.given[0].recipe.name if len(self.given) == 1 else Path("reproduce")


def reproduce(request: Request, progress: Progress) -> Reproduction:
    """Do the runs, measure and judge them, and write reproduce.json and reproduce.md.

    Args:
        request: What is asked for; runs that are finished in its place are not done again.
        progress: For the person.

    Raises:
        LorakitError: What stands against it, before anything runs: see `entries` and `check_split`; or the place holds
            runs of other recipes.
        Interrupted: A signal came; the same command continues.
    """
    rows = entries(request.given, request.methods, request.seeds, request.out)
    _look_ahead(rows)
    devices(request.jobs)  # before anything is removed
    for place in dict.fromkeys(entry.place for entry in rows):
        make_place(place, [], request.overwrite, "reproduction")
    outcomes: dict[tuple[str, str], Outcome] = {}
    for wave in _waves(rows):
        outcomes |= _done(wave, outcomes, request, progress)
    found = Reproduction([outcomes[entry.key] for entry in rows], request.folder)
    write(found)
    return found


def _look_ahead(rows: Sequence[Entry]) -> None:
    """Raise everything that would otherwise be found out after the training."""
    problems: list[str] = []
    kinds: list[type[LorakitError]] = []
    for entry in {entry.recipe.name: entry for entry in rows if not entry.unavailable}.values():
        try:
            check_split(entry.recipe, entry.contract.split, entry.contract.metric)
        except LorakitError as error:
            problems += error.problems
            kinds.append(type(error))
    if problems:
        raise kinds[0](*problems)


def _waves(rows: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Rows that can run at the same time, after those that they start from."""
    left, done = list(rows), set[tuple[str, str]]()
    while left:
        ready = [entry for entry in left if entry.after is None or entry.after in done]
        assert ready, "entries() refuses rows that start from one another"
        yield ready
        done |= {entry.key for entry in ready}
        left = [entry for entry in left if entry not in ready]


def _done(
    wave: Sequence[Entry], before: Mapping[tuple[str, str], Outcome], request: Request, progress: Progress
) -> dict[tuple[str, str], Outcome]:
    """What comes of some rows, those that they start from being done."""
    jobs: dict[tuple[str, str], list[Job]] = {}
    for entry in wave:
        origin = before[entry.after] if entry.after else None
        best = origin.best() if origin else None
        jobs[entry.key] = [] if origin and best is None else entry.jobs(str(best.run) if best else None)
    every = [job for of_row in jobs.values() for job in of_row]
    for place in dict.fromkeys(entry.place for entry in wave):
        make_place(place, [job for job in every if job.folder == place], False, "reproduction")
    every.sort(key=lambda job: job.seed)  # so that one that is stopped has all rows
    failed = _run(every, request, progress)
    return {
        entry.key: _outcome(entry, jobs[entry.key], failed, before.get(entry.after) if entry.after else None, progress)
        for entry in wave
    }


def _run(jobs: Sequence[Job], request: Request, progress: Progress) -> dict[str, str]:
    """Label → reason, of those that failed."""
    return run_all(jobs, progress, label="reproduce", at_once=request.jobs) if jobs else {}


def _outcome(
    entry: Entry, jobs: Sequence[Job], failed: Mapping[str, str], origin: Outcome | None, progress: Progress
) -> Outcome:
    """Measure and judge a row."""
    contract = entry.contract
    metrics: dict[int, dict[str, float]] = {}
    failures = {job.seed: failed[job.label] for job in jobs if job.label in failed}
    for job in (job for job in jobs if job.seed not in failures):
        try:
            metrics[job.seed] = metrics_on(job, contract.split, progress)
        except LorakitError as error:
            failures[job.seed] = f"evaluation on {contract.split}: {'; '.join(error.problems)}"
    reasons = _grouped(failures)
    if not jobs and origin is not None and not entry.unavailable:
        reasons = [f"not run: {origin.entry.title}, from which it starts, has failed"]
    names = [name for name in entry.recipe.task.metrics if all(name in found for found in metrics.values())]
    if lower_is_better(contract.metric):  # the loss is no metric of a task
        names.append(contract.metric)
    values = {name: [found[name] for found in metrics.values()] for name in names if metrics}
    return Outcome(entry, list(jobs), failures, metrics, judge(contract, entry.reported, values, reasons))


def _grouped(failures: Mapping[int, str]) -> list[str]:
    """One line per reason, with the seeds that it stopped."""
    reasons: dict[str, list[int]] = {}
    for seed, reason in sorted(failures.items()):
        reasons.setdefault(reason, []).append(seed)
    return [
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}: {reason}"
        for reason, seeds in reasons.items()
    ]

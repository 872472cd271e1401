"""Which rows are asked for: one method of one recipe each, over some seeds, and what a row's runs start from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorakit.checkpoint import adapter_file
from lorakit.errors import CheckpointError, RecipeError
from lorakit.recipe import Recipe
from lorakit.references import Paper
from lorakit.schedule import InitFrom
from lorakit.trials.jobs import Job, slug
from lorakit.trials.settings import Given, check_names, is_own, paper_of, recipe_for

ALL = "all"
"""In the place of names: every row that has a number."""


@dataclass(frozen=True)
class Entry:
    """One row of one recipe.

    Args:
        given: The recipe.
        method: Its name, see `variants`.
        contract: Metric, statistic and split, of the recipe.
        reported: The row's own number; None where the recipe has none for it.
        seeds: Of its runs.
        place: Folder of the recipe's runs.
        after: The entry whose best run it starts from; None: the base, or a run that is there.
    """

    given: Given
    method: str
    contract: Paper
    reported: Paper | None
    seeds: range
    place: Path
    after: tuple[str, str] | None = None

    @property
    def key(self) -> tuple[str, str]:
        """(recipe, method)."""
        return self.recipe.name, self.method

    @property
    def recipe(self) -> Recipe:
        """As the person gave it."""
        return self.given.recipe

    @property
    def title(self) -> str:
        """What it is called in lines of text."""
        params = f" ({self.reported.params})" if self.reported and self.reported.params else ""
        return f"{self.recipe.name}, {self.label}{params}"

    @property
    def label(self) -> str:
        """The row's name as printed, else the method's."""
        return self.reported.label if self.reported and self.reported.label else self.method

    @property
    def unavailable(self) -> str | None:
        """Why it cannot be run."""
        return self.reported.unavailable if self.reported else None

    def jobs(self, start: str | None = None) -> list[Job]:
        """Its runs.

        Args:
            start: The run directory in the place of the one that the recipe starts from.

        Raises:
            RecipeError: The method does not fit the recipe.
        """
        if self.unavailable:
            return []
        return [self._job(seed, start) for seed in self.seeds]

    def _job(self, seed: int, start: str | None) -> Job:
        made = recipe_for(self.given, self.method, seed)
        train = made.train
        if start is not None:
            assert train.init_from is not None
            train = train.model_copy(update={"init_from": InitFrom(run=start, head=train.init_from.head)})
        # Without the number: a corrected one must not make finished runs those of another recipe.
        return Job(
            f"{self.recipe.name}-{slug(self.method)}",
            seed,
            made.model_copy(update={"train": train, "paper": None}),
            self.place,
        )


def entries(given: Sequence[Given], methods: Sequence[str] | None, seeds: int | None, out: Path | None) -> list[Entry]:
    """The rows of some recipes.

    Args:
        given: The recipes.
        methods: Names, `all` among them or not; None: each recipe's own method.
        seeds: Runs of each row; None: as many as were reported.
        out: See `place_of`.

    Raises:
        RecipeError: A recipe has no number, a name is unknown, or a run to start from is not to be had.
    """
    problems = []
    names = [one.recipe.name for one in given]
    problems += [f"two recipes are called {name}" for name in dict.fromkeys(names) if names.count(name) > 1]
    found: list[Entry] = []
    for one in given:
        contract = one.recipe.paper
        if contract is None:
            problems.append(f"{one.file}: paper: missing; reproduce needs the number: {{source, metric, value}}")
            continue
        try:
            rows = _names(one, methods)
            check_names(one, rows)
        except RecipeError as error:
            problems += [f"{one.file}: {problem}" for problem in error.problems]
            continue
        first = one.recipe.train.seed
        for name in rows:
            numbers = range(first, first + (seeds or contract.seeds))
            place = place_of(one.recipe.name, out, alone=len(given) == 1)
            found.append(Entry(one, name, contract, paper_of(one.recipe, name), numbers, place))
    if not problems:
        found, problems = _ordered(found)
    if problems:
        raise RecipeError(*problems)
    return found


def place_of(name: str, out: Path | None, *, alone: bool) -> Path:
    """Where a recipe's runs are: the same place by default, whether it is asked for alone or with others."""
    if out is None:
        return Path("reproduce") / name
    return out if alone else out / name


def task_title(recipe: Recipe) -> str:
    """What the task is called at the head of a column: GLUE's by their subsets."""
    return str(getattr(recipe.task, "subset", None) or recipe.task.name)


def own_name(recipe: Recipe) -> str:
    """The name that stands for the recipe's own method."""
    return "+".join(section.name for section in recipe.method)


def _names(given: Given, methods: Sequence[str] | None) -> list[str]:
    recipe = given.recipe
    if methods is None:
        return [own_name(recipe)]
    rows = [own_name(recipe), *(name for name, own in recipe.methods.items() if own.paper)]
    return [name for word in methods for name in (rows if word == ALL else [word])]


def _ordered(found: Sequence[Entry]) -> tuple[list[Entry], list[str]]:
    """The rows with what each starts from, and what is wrong with it."""
    by_run = {name: entry.key for entry in found for name in _run_names(entry)}
    made, problems = [], []
    for entry in found:
        try:
            jobs = entry.jobs()
        except RecipeError as error:
            problems += [f"{entry.recipe.name}: {problem}" for problem in error.problems]
            continue
        start = jobs[0].recipe.train.init_from if jobs else None
        after = by_run.get(Path(start.run).name) if start else None
        if after == entry.key:
            after = None
        if start and after is None and (problem := _absent(start.run, slug(entry.method))):
            problems.append(f"{entry.recipe.name}, {entry.method}: it starts from {start.run}: {problem}")
        made.append(replace(entry, after=after))
    return made, problems or _circles(made)


def _run_names(entry: Entry) -> list[str]:
    """The last components of `train.init_from.run` that mean this row."""
    name = entry.recipe.name
    return [f"{name}-{slug(entry.method)}", *([name] if is_own(entry.recipe, entry.method) else [])]


def _absent(run: str, method: str) -> str | None:
    """Why a run cannot be started from; None where it can."""
    try:
        adapter_file(Path(run).expanduser())
    except CheckpointError:
        name = Path(run).name.removesuffix(f"-{method}")
        also = f", with --methods {method}" if name != Path(run).name else ""
        return (
            f"no finished run is there; give the recipe {name} as well{also} (it is run first, and its best seed is "
            f"taken), or make that run: lorakit train RECIPE --out {run}"
        )
    return None


def _circles(made: Sequence[Entry]) -> list[str]:
    after = {entry.key: entry.after for entry in made}
    for first, origin in after.items():
        at, seen = origin, 0
        while at is not None and at != first and seen < len(after):
            at, seen = after.get(at), seen + 1
        if at == first:
            return [f"{' '.join(first)}: it starts from a run that starts from it"]
    return []

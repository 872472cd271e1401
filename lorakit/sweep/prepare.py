"""The recipe of every point, checked on the model before anything runs."""

from collections.abc import Sequence
from dataclasses import dataclass

from lorakit.errors import LorakitError, RecipeError
from lorakit.progress import Progress
from lorakit.recipe import Recipe, load
from lorakit.sweep.budget import Counts, counted, within
from lorakit.sweep.points import Point
from lorakit.trials.settings import Given, recipe_for


@dataclass(frozen=True)
class Planned:
    """A point that can be run.

    Args:
        point: Its values.
        recipe: Of the first seed.
        parameters: That its method trains, without the task's head.
    """

    point: Point
    recipe: Recipe
    parameters: int


def prepare(given: Given, points: Sequence[Point], budget: int | None, progress: Progress) -> list[Planned]:
    """The recipes, with what each trains.

    Args:
        given: The person's recipe.
        points: Of the sweep.
        budget: Trained parameters that the ranks are chosen for; None: ranks are the recipe's.
        progress: For the person.

    Raises:
        RecipeError: Everything that is wrong with any of them, each problem with a point that has it.
        LorakitError: The base is not there.
    """
    found: list[Planned] = []
    problems: dict[str, list[Point]] = {}
    counter = _Counter()
    with progress.bar("check", len(points), "points") as bar:
        for point in points:
            try:
                recipe = _recipe(given, point)
                if budget is not None:
                    recipe = within(recipe, budget, counter)
                found.append(Planned(point, recipe, counter(recipe).parameters))
            except LorakitError as error:
                for problem in error.problems:
                    problems.setdefault(problem, []).append(point)
            bar.advance(1)
    if problems:
        raise RecipeError(*(_told(problem, who, len(points)) for problem, who in problems.items()))
    _check_labels(points)
    return found


def _recipe(given: Given, point: Point) -> Recipe:
    name = f"{given.recipe.name[:35]}-{point.label}"
    # Neither the paper's number nor the map of methods is of these values.
    over = [*point.overrides, f"name={name}", "paper=null", "methods={}"]
    if point.method is None:
        return load(given.file, [*given.overrides, *over])
    return recipe_for(given, point.method, given.recipe.train.seed, over)


class _Counter:
    """Counts parameters, once for every model and method."""

    def __init__(self) -> None:
        self._found: dict[str, Counts] = {}

    def __call__(self, recipe: Recipe) -> Counts:
        task = recipe.task.model_dump(mode="json") | {"limit": None}
        key = str([recipe.model, recipe.method, task, recipe.train.head_bias])
        if key not in self._found:
            self._found[key] = counted(recipe)
        return self._found[key]


def _told(problem: str, points: Sequence[Point], count: int) -> str:
    """A problem, and where it is, unless it is everywhere."""
    if len(points) == count:
        return problem
    more = f" (and at {len(points) - 1} more points)" if len(points) > 1 else ""
    return f"at {points[0].title}: {problem.removeprefix('command line: ')}{more}"


def _check_labels(points: Sequence[Point]) -> None:
    titles: dict[str, str] = {}
    for point in points:
        if (other := titles.setdefault(point.label, point.title)) != point.title:
            raise RecipeError(f"{other} and {point.title} would have the same files, {point.label}; sweep them apart")

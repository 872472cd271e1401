"""Ranks for a number of trained parameters: what the paper's Table 5 holds still while it varies the matrices."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from lorakit.errors import RecipeError
from lorakit.layers.low_rank import LowRank
from lorakit.methods.lora import LoRA
from lorakit.modules import parameter_groups
from lorakit.outline import outline
from lorakit.recipe import Recipe

AWAY = 0.25
"""Share of the budget that a point may be away from it."""
_UNITS = {"": 1, "k": 1_000, "m": 1_000_000, "b": 1_000_000_000}
_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kmb]?)", re.IGNORECASE)


@dataclass(frozen=True)
class Counts:
    """What a recipe's model has.

    Args:
        parameters: That the method trains, without the task's head, as the paper counts.
        largest: The greatest rank that every matrix with a low-rank pair can have; None where there is none.
    """

    parameters: int
    largest: int | None


def parse_budget(text: str) -> int:
    """`18M`, `300k`, `1.5B` or a plain number.

    Raises:
        RecipeError: It is none of these, or 0.
    """
    match = _NUMBER.fullmatch(text.strip())
    count = round(float(match[1]) * _UNITS[match[2].lower()]) if match else 0
    if count < 1:
        raise RecipeError(f"--budget: got {text!r}; give a number of parameters, as 18M, 300k or 294912")
    return count


def counted(recipe: Recipe) -> Counts:
    """Count on the meta device.

    Raises:
        LorakitError: A target or a rank does not fit the model.
    """
    made = outline(recipe, on_cuda=False)
    heads = () if recipe.task.head == "generation" else made.row.head
    pairs = [module for module in made.model.modules() if isinstance(module, LowRank)]
    largest = min((min(pair.A.shape[1], pair.B.shape[0]) for pair in pairs), default=None)
    if largest and any(isinstance(method, LoRA) and method.init == "pissa" for method in recipe.method):
        largest //= 2  # it is published with twice the rank
    return Counts(parameter_groups(made.model, heads)["method"], largest)


def within(recipe: Recipe, budget: int, count: Callable[[Recipe], Counts] = counted) -> Recipe:
    """The recipe with the rank whose number of parameters is nearest to the budget; alpha stays.

    Args:
        recipe: Whose LoRA's rank is chosen.
        budget: Trained parameters, without the task's head.
        count: How they are counted.

    Raises:
        RecipeError: There is no LoRA in it, or the nearest number is further than `AWAY` from the budget.
        LorakitError: A target does not fit the model.
    """
    if not any(isinstance(method, LoRA) for method in recipe.method):
        raise RecipeError(f"--budget: {' + '.join(one.name for one in recipe.method)} has no rank to choose")
    # Linear in the rank, whatever else is trained: two counts say all.
    one, two = count(_ranked(recipe, 1)), count(_ranked(recipe, 2))
    first, step = one.parameters, two.parameters - one.parameters
    assert one.largest is not None
    if step == 0:
        raise RecipeError("--budget: method.ranks sets the rank of every matrix; there is none left to choose")
    rank = min(max(1, 1 + round((budget - first) / step)), one.largest)
    found = first + (rank - 1) * step
    if abs(found - budget) > AWAY * budget:
        share = abs(found - budget) / budget
        raise RecipeError(
            f"--budget: the nearest to {budget:,} is rank {rank} with {found:,} parameters, which is {share:.0%} away; "
            f"{AWAY:.0%} is allowed"
        )
    return _ranked(recipe, rank)


def rank_of(recipe: Recipe) -> int | None:
    """The rank of its LoRA; None without one."""
    return next((method.rank for method in recipe.method if isinstance(method, LoRA)), None)


def _ranked(recipe: Recipe, rank: int) -> Recipe:
    methods = [
        method.model_copy(update={"rank": rank}) if isinstance(method, LoRA) else method for method in recipe.method
    ]
    return recipe.model_copy(update={"method": methods})

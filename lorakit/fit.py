"""What fits into a memory: the largest micro-batch, and, where a run does not fit, the changes with which it would."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from lorakit.evaluate import resolve_precision
from lorakit.forecast import Batches, forecast, training_peak
from lorakit.lengths import Shape
from lorakit.memory import BuildOptimizer, Simulation
from lorakit.outline import cast_frozen
from lorakit.recipe import Recipe

_SHORTEST = 32


@dataclass(frozen=True)
class Change:
    """A change of the recipe, and what the run then needs.

    Args:
        text: As overrides on the command line.
        bytes: At the fullest moment.
    """

    text: str
    bytes: int


@dataclass(frozen=True)
class Situation:
    """A run that is to be fitted.

    Args:
        model: The outline's.
        recipe: What is asked for.
        build: Makes the optimiser.
        on_cuda: For whose kernels to plan.
        row: The longest row.
        batches: What the run meets.
        capacity: Bytes.
    """

    model: torch.nn.Module
    recipe: Recipe
    build: BuildOptimizer
    on_cuda: bool
    row: Shape
    batches: Batches
    capacity: int


def need_of_rows(simulation: Simulation, row: Shape, known: int = 2) -> Callable[[int], int]:
    """What training needs for a micro-batch of so many equal rows: a constant and so much per row.

    Args:
        simulation: The model.
        row: One row: its width and its targets.
        known: A number of rows, two or more, that has been simulated already, or may be.
    """
    one, several = (training_peak(simulation, _times(row, count), True).total for count in (1, known))
    each = (several - one) / (known - 1)
    return lambda rows: int(one + (rows - 1) * each)


def rows_that_fit(need: Callable[[int], int], capacity: int) -> int:
    """The most rows that a micro-batch may have; 0 where not even one fits."""
    one, each = need(1), need(2) - need(1)
    return 0 if one > capacity else int((capacity - one) // max(1, each)) + 1


def _times(row: Shape, count: int) -> Shape:
    """So many rows of that length but for one token: packing needs room where there is padding, and none else."""
    return Shape(count, row.width, row.targets * count, padding=int(row.width > 1))


def changes(found: Situation) -> list[Change]:
    """Changes with which the run fits; where none does, those that bring it nearest.

    Tried in the order of what they cost: smaller micro-batches are exact, checkpointing takes time, bfloat16 rounds the
    base; both together, and shorter rows, only where neither is enough.
    """
    recipe = found.recipe
    slow = recipe.model_copy(update={"train": recipe.train.model_copy(update={"gradient_checkpointing": True})})
    variants: list[tuple[str, Recipe]] = [("", recipe)]
    if not recipe.train.gradient_checkpointing:
        variants.append(("train.gradient_checkpointing=true", slow))
    whole = recipe.model.quantize is None
    if whole and any(p.dtype == torch.float32 and not p.requires_grad for p in found.model.parameters()):
        variants.append(("model.dtype=bfloat16", _rounded(recipe)))
        if slow is not variants[-1][1] and len(variants) == 3:
            variants.append(("train.gradient_checkpointing=true model.dtype=bfloat16", _rounded(slow)))
    made: list[Change] = []
    for text, variant in variants:
        if len(variants) == 4 and variant is variants[3][1] and any(c.bytes <= found.capacity for c in made):
            break
        made += _with(found, text, variant)
    return made


def _rounded(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"dtype": "bfloat16"})})


def _with(found: Situation, text: str, variant: Recipe) -> list[Change]:
    """One variant with the largest micro-batch that fits; with shorter rows, where no micro-batch does."""
    simulation = _simulate(found, variant)
    need = need_of_rows(simulation, found.row)
    rows = min(max(1, rows_that_fit(need, found.capacity)), found.recipe.train.batch_size)
    size = f"{text} train.micro_batch_size={rows}".strip()
    whole = replace(found.batches, training=[_times(found.row, rows)], accumulating=True)
    result = [Change(size, forecast(simulation, whole)[0].total)]
    width = 1 << ((found.row.width - 1).bit_length() - 1)
    while result[-1].bytes > found.capacity and width >= _SHORTEST and rows == 1:
        result = [
            *result[:1],
            Change(f"{size} task.max_length={width}", forecast(simulation, _cut(whole, width))[0].total),
        ]
        width //= 2
    return result


def _cut(batches: Batches, width: int) -> Batches:
    """The batches with rows of so many tokens at most."""

    def cut(shape: Shape) -> Shape:
        return Shape(shape.rows, min(width, shape.width), min(shape.targets, shape.rows * width))

    generation = None if batches.generation is None else cut(batches.generation)
    return Batches(
        [cut(s) for s in batches.training], True, [cut(s) for s in batches.evaluation[:1]], generation, batches.known
    )


def _simulate(found: Situation, variant: Recipe) -> Simulation:
    model = copy.deepcopy(found.model)
    if variant.model.dtype == "bfloat16":
        cast_frozen(model, torch.bfloat16)
    precision = resolve_precision(variant, torch.device("cuda" if found.on_cuda else "cpu"))
    return Simulation(model, variant, precision, found.build, found.on_cuda)

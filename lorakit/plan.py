"""What a recipe will do, before anything runs: targets, parameters, rows, steps, tokens, padding and memory.

The base is built on the meta device, so no weight is loaded; nothing is fetched. Rows are read where they are on this
machine; else the official counts of the data set stand in.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from lorakit.data.batches import Lengths, Limit, steps_per_epoch
from lorakit.data.rows import ChoiceRow
from lorakit.errors import DataError
from lorakit.evaluate import BATCH, resolve_precision
from lorakit.fit import Change, Situation, changes, need_of_rows, rows_that_fit
from lorakit.forecast import Batches, Phase, batches_of, forecast, loading_phase
from lorakit.generate import batch_limit
from lorakit.lengths import Padding, Shape, cut_steps, padding
from lorakit.memory import Simulation
from lorakit.modules import ModuleRow, module_rows, parameter_groups
from lorakit.outline import Outline, offline, outline
from lorakit.packing import packing_in
from lorakit.progress import Progress
from lorakit.recipe import Recipe
from lorakit.runtime import available_memory
from lorakit.splits import SplitData, read_split, token_limit
from lorakit.tasks.base import Task
from lorakit.training.optim import outline_optimizer, total_steps
from lorakit.training.setup import first_limit


@dataclass(frozen=True)
class Machine:
    """Where the recipe would run.

    Args:
        on_cuda: On a GPU.
        capacity: Bytes for the run; None where that is unknown.
        source: Where the capacity is from.
    """

    on_cuda: bool
    capacity: int | None
    source: str

    @property
    def device(self) -> str:
        """As torch calls it."""
        return "cuda" if self.on_cuda else "cpu"


@dataclass(frozen=True)
class SplitPlan:
    """A split.

    Args:
        name: train, validation, …
        rows: None where nobody knows.
        official: Whether the count is the published one, and not that of files.
        dropped: Rows left out; None where the files are not here.
        truncated: Rows that lose tokens, likewise.
        tokens: In one pass, padding not counted, likewise.
    """

    name: str
    rows: int | None
    official: bool = False
    dropped: int | None = None
    truncated: int | None = None
    tokens: int | None = None


@dataclass
class Plan:
    """What will happen. See the fields' classes; sizes are in bytes.

    Args:
        recipe: With the methods' defaults filled in.
        machine: What it is planned for.
        precision: What is computed in.
        base: "here" where the base is on this machine, else "table".
        dtype: Of the frozen weights.
        parameters: total, trainable, method, head.
        modules: The table of modules.
        splits: The data.
        lengths: Tokens of the training rows; None where they are not here.
        max_length: Tokens that a row may have.
        padding: Shares of padding; None likewise.
        steps: Of the run; None where the rows are unknown.
        epochs: Passes over the rows, likewise.
        limit: Of a micro-batch.
        phases: What each part of the run needs, the fullest first.
        longest: Tokens of the longest row.
        largest: The most rows of the longest length in a micro-batch; None where the capacity is unknown.
        adapter: Of the published file.
        checkpoint: Of one checkpoint, with the optimiser's state.
        notes: What a reader must know.
        changes: Where it does not fit: what would.
    """

    recipe: Recipe
    machine: Machine
    precision: str
    base: str
    dtype: str
    parameters: dict[str, int]
    modules: list[ModuleRow]
    splits: list[SplitPlan]
    lengths: Lengths | None
    max_length: int
    padding: Padding | None
    steps: int | None
    epochs: float | None
    limit: Limit
    phases: list[Phase]
    longest: int
    largest: int | None
    adapter: int
    checkpoint: int
    notes: list[str] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)

    @property
    def bound(self) -> bool:
        """Whether lengths are unknown, so that every row counts as long as may be: less may be needed."""
        return self.lengths is None

    @property
    def fits(self) -> bool:
        """Whether the fullest moment has room; true where the capacity is unknown."""
        return self.machine.capacity is None or self.phases[0].total <= self.machine.capacity


def make_plan(recipe: Recipe, machine: Machine, progress: Progress) -> Plan:
    """Plan a recipe; nothing is loaded or fetched, and nothing written but token ids into the cache.

    Raises:
        LorakitError: The base is unknown here, or the recipe does not fit it.
    """
    notes: list[str] = []
    precision = resolve_precision(recipe, torch.device(machine.device))
    with offline():
        fetch = f". plan downloads nothing: fetch the base first (hf download {recipe.model.base}), or name a directory"
        made = outline(recipe, machine.on_cuda, fetch)
        if made.prepared is None:
            notes.append(f"{recipe.model.base} is not on this machine: its shapes are from lorakit's table")
        data = _read(recipe, made, progress, notes)
    splits = [_split(recipe, name, data.get(name)) for name in _names(recipe)]
    if lacking := None if recipe.task.has_rows else recipe.task.missing():
        raise DataError(lacking)
    width = token_limit(recipe.task, made)
    train, rows = data.get("train"), splits[0].rows
    steps = recipe.train.steps if rows is None else total_steps(recipe.train, rows)
    build = partial(outline_optimizer, recipe.train)
    simulation = Simulation(made.model, recipe, precision, build, machine.on_cuda)
    row = _longest_row(recipe, train, width)
    limit, largest = first_limit(recipe, made.model, not machine.on_cuda), None
    if machine.capacity is not None:
        need = need_of_rows(simulation, row)
        limit, largest = _settled(recipe, limit, need, machine.capacity), rows_that_fit(need, machine.capacity)
    batches = _batches(recipe, data, limit, row)
    phases = forecast(simulation, batches, loading_phase(made))
    counts = parameter_groups(made.model, () if recipe.task.head == "generation" else made.row.head)
    plan = Plan(
        recipe=recipe.model_copy(update={"method": made.methods}),
        machine=machine,
        precision=precision,
        base="table" if made.prepared is None else "here",
        dtype=str(made.dtype).removeprefix("torch."),
        parameters=counts,
        modules=module_rows(made.model, made.coverage),
        splits=splits,
        lengths=None if train is None else train.encoded.lengths,
        max_length=width,
        padding=_padding(recipe, train, limit, steps, width, packing_in(made.model) is not None),
        steps=steps,
        epochs=None if rows is None or steps is None else steps / steps_per_epoch(rows, recipe.train.batch_size),
        limit=limit,
        phases=phases,
        longest=row.width,
        largest=largest,
        adapter=4 * counts["trainable"],
        checkpoint=4 * counts["trainable"] + simulation.optimizer_bytes,
        notes=notes,
    )
    if machine.capacity is not None and not plan.fits:
        plan.changes = changes(Situation(made.model, recipe, build, machine.on_cuda, row, batches, machine.capacity))
    return plan


def _names(recipe: Recipe) -> list[str]:
    return [name for name in recipe.task.splits if name.startswith(("train", "validation"))]


def _read(recipe: Recipe, made: Outline, progress: Progress, notes: list[str]) -> dict[str, SplitData]:
    """The splits, where both the rows and the tokenizer are on this machine."""
    if made.prepared is None:
        notes.append("without its tokenizer lengths are unknown: every row counts as long as may be")
        return {}
    try:
        return {
            name: read_split(recipe.task, name, made.prepared, progress, keep_rows=False) for name in _names(recipe)
        }
    except DataError as error:
        notes.append("the rows are not on this machine: every row counts as long as may be")
        notes.append(f"why: {error.problems[0]}")
        return {}


def _split(recipe: Recipe, name: str, data: SplitData | None) -> SplitPlan:
    if data is None:
        whole, most = recipe.task.official_rows.get(name), {str(k): v for k, v in recipe.task.limit.items()}.get(name)
        rows = whole if whole is None or most is None else min(whole, most)
        return SplitPlan(name, rows, official=rows is not None)
    tokens = int(data.encoded.lengths.sum())
    return SplitPlan(name, len(data.encoded), False, sum(data.dropped.values()), data.encoded.truncated, tokens)


def _longest_row(recipe: Recipe, train: SplitData | None, width: int) -> Shape:
    """One row of the greatest length, with as many targets as any row has."""
    if train is None:
        return Shape(1, width, _most_targets(recipe.task, width))
    return Shape(1, int(train.encoded.lengths.max()), int(train.encoded.targets.max()))


def _most_targets(task: Task, width: int) -> int:
    """What a row of this width has to learn at most, where neither the rows nor the tokenizer are known."""
    if task.head != "generation":
        return 1
    if task.kind == "generation":
        return width
    row = task.sample(1, seed=0)[0]
    assert isinstance(row, ChoiceRow)
    return min(width, max(len(word.encode()) for word in row.choices) + 1)  # no token is shorter than a byte


def _settled(recipe: Recipe, limit: Limit, need: Callable[[int], int], capacity: int) -> Limit:
    """The micro-batch that training settles on: on a GPU `auto` halves it while memory runs out."""
    rows = limit.rows
    if rows is None or recipe.train.micro_batch_size != "auto":
        return limit
    while rows > 1 and need(rows) > capacity:
        rows //= 2
    return Limit(rows=rows)


def _batches(recipe: Recipe, data: dict[str, SplitData], limit: Limit, row: Shape) -> Batches:
    """What training and evaluation meet; without the rows, batches of the longest row."""
    train, size = data.get("train"), recipe.train.batch_size
    if train is not None:
        steps = total_steps(recipe.train, len(train.encoded))
        return batches_of(recipe, train, [data[name] for name in _names(recipe)[1:]], limit, steps)
    rows = min(size, limit.rows or max(1, (limit.tokens or 0) // row.width))
    count = max(1, min(BATCH.rows or 1, (BATCH.tokens or 0) // row.width))
    generation = None
    if recipe.generate is not None:
        prompts = max(1, (batch_limit(recipe.generate).tokens or 0) // row.width)
        generation = Shape(prompts * recipe.generate.beams, row.width, 0)
    return Batches(
        [Shape(rows, row.width, row.targets * rows)],
        rows < size,
        [Shape(count, row.width, row.targets * count)],
        generation,
        known=False,
    )


def _padding(
    recipe: Recipe, train: SplitData | None, limit: Limit, steps: int | None, width: int, packed: bool
) -> Padding | None:
    if train is None or steps is None:
        return None
    lengths = train.encoded.lengths
    return replace(padding(cut_steps(recipe.train, lengths, steps, limit), lengths, width), packed=packed)


def this_machine(on_cuda: bool | None, memory: int | None) -> Machine:
    """The machine to plan for.

    Args:
        on_cuda: None for what this machine has.
        memory: Bytes that a person gave; None for what is free here.
    """
    if on_cuda is None:
        on_cuda = torch.cuda.is_available()
    if memory is not None:
        return Machine(on_cuda, memory, "--memory")
    if on_cuda:
        if not torch.cuda.is_available():
            return Machine(on_cuda, None, "")
        return Machine(on_cuda, int(torch.cuda.mem_get_info()[0]), "free on the GPU")
    return Machine(on_cuda, available_memory(), "free on this machine")

"""How long one forward pass takes: base, merged and unmerged LoRA, adapters (the paper's Table 1, section 3).

All variants stand in one process and share the base's weights; they are timed one after the other within every trial,
each trial beginning with another one, so that a machine that slows down slows all of them.
"""

import copy
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorakit.data.slots import NO_SLOTS, Slots
from lorakit.errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lorakit.layers.adapted import Adapted
    from lorakit.methods.base import Method
    from lorakit.model import Prepared
    from lorakit.progress import Progress
    from lorakit.recipe import Recipe

BASE = "base"
WARMUPS = 2
"""Passes of every variant that are not counted."""


@dataclass(frozen=True)
class Deployed:
    """A model as it would be served.

    Args:
        label: For the table: `lora (merged)`.
        model: In eval mode, on the device.
        slots: Places of a prefix, which make every row longer.
    """

    label: str
    model: Any
    slots: Slots = NO_SLOTS


@dataclass(frozen=True)
class Cell:
    """One number of the table.

    Args:
        label: The variant's.
        batch: Rows.
        length: Tokens per row, without a prefix.
        milliseconds: Median over the trials.
        over_base: How much longer than the base's, as a share: 0.03 is 3 % more.
    """

    label: str
    batch: int
    length: int
    milliseconds: float
    over_base: float


@dataclass(frozen=True)
class Grid:
    """What is measured.

    Args:
        batches: Rows per pass.
        lengths: Tokens per row.
        trials: Passes of each variant that count.
    """

    batches: Sequence[int]
    lengths: Sequence[int]
    trials: int = 20


def prepare_base(recipe: "Recipe") -> "Prepared":
    """The bare base on the device, all of it in the dtype that the recipe computes in, as one would serve it.

    Raises:
        LorakitError: The base is missing or does not fit the task.
        RecipeError: It would be in 4 bits, which no merged model is.
    """
    import torch

    from lorakit.checkpoint import head_of
    from lorakit.evaluate import resolve_precision
    from lorakit.model import prepare

    if recipe.model.quantize:
        raise RecipeError("model.quantize: what is timed here are whole bases, as merged models are: set it to null")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, resolve_precision(recipe, device))
    prepared = prepare(recipe.model, [], head_of(recipe), recipe.train.seed)
    prepared.model.requires_grad_(False).to(device=device, dtype=dtype)
    return prepared


def deploy(prepared: "Prepared", name: str, methods: "Sequence[Method]", *, both: bool = False) -> list[Deployed]:
    """The base with a method, as it leaves a run: merged where it can be.

    The weights are the initial ones; times do not depend on them.

    Args:
        prepared: See `prepare_base`.
        name: Of the method, for the labels.
        methods: From a recipe.
        both: Merged and unmerged, where a merge removes something.

    Raises:
        RecipeError: A target or an option does not fit the model.
    """
    from lorakit.layers.adapted import Adapted
    from lorakit.methods.base import publish, slots_of

    published, _ = publish([method.resolve(prepared.row) for method in methods], {})
    model = _shared_copy(prepared.model)
    dtype, device = prepared.model.dtype, prepared.model.device
    try:
        for method in published:
            method.apply(model, prepared.row, seed=0)
    finally:
        # A method that trains the base's own parameters has released them, in float32; the base shares them.
        prepared.model.requires_grad_(False).to(dtype)
    model.requires_grad_(False).to(device=device, dtype=dtype).eval()
    slots = slots_of(published)
    unmerged = Deployed(name, model, slots)
    if any(method.unmergeable() for method in published):
        return [unmerged]
    if not any(isinstance(module, Adapted) for module in model.modules()):
        return [unmerged]  # the base's own tensors with other values
    merged = Deployed(f"{name} (merged)", _merged(model))
    return [merged, Deployed(f"{name} (unmerged)", model, slots)] if both else [merged]


def _shared_copy(model: "nn.Module") -> "nn.Module":
    """The modules once more, around the same tensors."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def _merged(model: "nn.Module") -> "nn.Module":
    from lorakit.layers.adapted import Adapted
    from lorakit.surgery import replace

    merged = _shared_copy(model)
    for path, layer in list(merged.named_modules()):
        if isinstance(layer, Adapted):
            replace(merged, path, _plain(layer))
    return merged


def _plain(layer: "Adapted") -> "nn.Module":
    """The layer that was replaced, with the update in its weight."""
    from torch import nn

    weight = layer.weight
    stored = weight.detach().float()
    edited = layer.edit(lambda: iter([(0, stored)])).rows(stored, 0)
    plain = _shared_copy(layer.frozen)
    plain.weight = nn.Parameter(edited.to(weight.dtype), requires_grad=False)
    return plain


def measure(prepared: "Prepared", deployed: Sequence[Deployed], grid: Grid, progress: "Progress") -> list[Cell]:
    """Time one forward pass of every variant, and of the base, at every batch size and length.

    Args:
        prepared: See `prepare_base`.
        deployed: Variants of it, with labels of their own.
        grid: What to measure.
        progress: For the person.

    Returns:
        Setting by setting, the base first.

    Raises:
        RecipeError: The model has no positions for such a length.
    """
    variants = [Deployed(BASE, prepared.model), *deployed]
    _check_lengths(prepared, variants, grid)
    settings = [(batch, length) for length in grid.lengths for batch in grid.batches]
    cells: list[Cell] = []
    with progress.bar("latency", len(settings) * (WARMUPS + grid.trials), "trials") as bar:
        for batch, length in settings:
            ids = _ids(prepared, batch, length)
            inputs = [_with_places(ids, variant.slots) for variant in variants]
            times: dict[str, list[float]] = {variant.label: [] for variant in variants}
            for trial in range(-WARMUPS, grid.trials):
                turn = trial % len(variants)
                for index in (*range(turn, len(variants)), *range(turn)):
                    seconds = _pass(variants[index].model, inputs[index])
                    if trial >= 0:
                        times[variants[index].label].append(seconds)
                bar.advance()
            cells += _cells(times, batch, length)
    return cells


def _cells(times: Mapping[str, Sequence[float]], batch: int, length: int) -> list[Cell]:
    medians = {label: 1000 * statistics.median(seconds) for label, seconds in times.items()}
    base = medians[BASE]
    return [Cell(label, batch, length, median, median / base - 1) for label, median in medians.items()]


def _check_lengths(prepared: "Prepared", variants: Sequence[Deployed], grid: Grid) -> None:
    most = prepared.max_tokens
    places = max(variant.slots.count for variant in variants)
    if most is not None and (longest := max(grid.lengths) + places) > most:
        beside = f" with the {places} places of a prefix" if places else ""
        raise RecipeError(f"--length: {longest} tokens{beside} exceed the {most} positions of this base")


def _ids(prepared: "Prepared", batch: int, length: int) -> "Tensor":
    """Random ids of the vocabulary but for the padding."""
    import torch

    model = prepared.model
    size = len(model.get_input_embeddings().weight)  # an adapted table has no other word for it
    ids = torch.randint(0, size, (batch, length), generator=torch.Generator().manual_seed(0))
    ids[ids == prepared.tokenizer.pad_token_id] = (prepared.tokenizer.pad_token_id + 1) % size
    return ids.to(model.device)


def _with_places(ids: "Tensor", slots: Slots) -> "dict[str, Tensor]":
    import torch

    rows = [slots.insert(row, 1, max(1, len(row) - 1), slots.ids) for row in ids.tolist()]
    placed = torch.tensor(rows, device=ids.device)
    return {"input_ids": placed, "attention_mask": torch.ones_like(placed)}


def _pass(model: Any, inputs: "Mapping[str, Tensor]") -> float:
    """Seconds of one forward pass."""
    import torch

    on_gpu = inputs["input_ids"].is_cuda
    with torch.inference_mode():
        if on_gpu:
            torch.cuda.synchronize()
        began = time.perf_counter()
        model(**inputs)
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - began


def table(cells: Sequence[Cell]) -> tuple[list[str], list[list[str]]]:
    """(header, rows): one row per variant, one column per setting, as `12.3 (+4.1 %)` in milliseconds."""
    settings = list(dict.fromkeys((cell.batch, cell.length) for cell in cells))
    found = {(cell.label, cell.batch, cell.length): cell for cell in cells}
    header = ["ms per forward pass", *(f"{batch} × {length}" for batch, length in settings)]
    rows = []
    for label in dict.fromkeys(cell.label for cell in cells):
        row = [found[label, *setting] for setting in settings]
        beside = ["" if label == BASE else f" ({100 * cell.over_base:+.1f} %)" for cell in row]
        rows.append([label, *(f"{c.milliseconds:.2f}{text}" for c, text in zip(row, beside, strict=True))])
    return header, rows

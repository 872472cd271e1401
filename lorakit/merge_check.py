"""The proof of a merge: what stands on the disk is what the adapted model computes.

Peers' users report merges that silently return the base, and merges that differ from the adapter; both fail here.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lorakit.checkpoint import head_of
from lorakit.errors import MergeError
from lorakit.layers.adapted import Adapted
from lorakit.layers.low_rank import transposed
from lorakit.merge_plan import FLOATS, Piece, Plan, read_rows, read_stored
from lorakit.model import Prepared, prepare
from lorakit.nf4 import Onto, take_weights
from lorakit.surgery import WRAPPED, load_trainable
from lorakit.weights import Entry, model_entries

if TYPE_CHECKING:
    from lorakit.checkpoint import Opened
    from lorakit.methods.base import Method

BLOCK = 2**18
"""Elements of a block: 2 MiB in float64, and another size than the writer's, so that a wrong offset shows."""
COPY = 2**22
"""Bytes of untouched tensors that are compared at a time."""
UNITS = 32
"""Unit vectors on which an adapted layer is compared with the written weight."""
EXACT_SHARE = 1e-3
"""Of the effect, that float32 weights may lose. Rounding W + ΔW loses 6e-8 of W for an update that is seldom below 1e-3
of W, and depth multiplies that by little: sound merges measure 1e-6 to 1e-4, a single wrong matrix 1e-2 and more."""
NOISE = 1e-5
"""Of the largest logit: what two orders of float32 summation may differ by, however small the effect is."""
ROUNDED_SHARE = 0.5
"""Of the effect, that 16-bit weights may lose. A merge that returned the base would have lost all of it."""


@dataclass(frozen=True)
class LogitCheck:
    """What the merged model does beside the adapted one, on real rows, both computed in float32.

    Args:
        max_difference: max |merged - adapted| over the logits.
        effect: max |adapted - base|; the base has the trained head where the head is new.
        lost_share: Their ratio: the part of the adapter's effect that the merge lost.
        largest: max |adapted|.
        rows: Compared.
    """

    max_difference: float
    effect: float
    lost_share: float
    largest: float
    rows: int


def verify_tensors(plan: Plan, merged: Path) -> None:
    """Read every written tensor back and recompute it.

    Untouched tensors must have the base's bytes. The others must have the formula's values, recomputed in float64, to
    one rounding of their dtype; and a plain layer with the written weight must do on unit vectors what the adapted one
    does: that does not use the formula at all.

    Args:
        plan: What was to be written.
        merged: The directory.

    Raises:
        MergeError: Names every tensor that is not what it should be.
    """
    entries = model_entries(merged)
    planned = {piece.key for piece in plan.pieces}
    problems = [f"{key}: is in the files, though it should not be" for key in sorted(entries.keys() - planned)]
    for piece in plan.pieces:
        entry = entries.get(piece.key)
        if entry is None or (entry.dtype, entry.shape) != (piece.dtype, piece.shape):
            problems.append(f"{piece.key}: is missing, or has another shape or dtype than it should")
        else:
            probe = _Probe(piece.layer, piece.shape) if piece.layer is not None else None
            if not (_same_bytes(piece, entry) if piece.verbatim else _same_values(piece, entry, probe)):
                problems.append(f"{piece.key}: the file does not hold the values that were to be {piece.kind}")
            elif probe is not None and not _same_function(probe, piece, entry):
                problems.append(f"{piece.key}: the merged layer does not compute what the adapted one does")
    if problems:
        raise MergeError(*problems)


def verify_logits(opened: "Opened", merged: Path, batches: Sequence[Mapping[str, Tensor]]) -> LogitCheck:
    """Load the merged directory with plain transformers and compare it with the base and the adapter, in float32.

    A base in 4 bits is loaded as in training, and its codes are then what the layers' weights are made from. The three
    models are in memory one after the other, never together.

    Args:
        opened: The run; its base is loaded anew.
        merged: The directory.
        batches: Model inputs of real rows; positions that the attention mask hides are not compared.

    Raises:
        MergeError: It does not load, or does not do what the adapter does; gives the numbers.
    """
    adapted = list(logits_of(adapted_model(opened, opened.onto), batches))
    effect = _largest_difference(adapted, logits_of(_base_model(opened), batches))
    difference = _largest_difference(adapted, logits_of(merged_model(opened, merged), batches))
    largest = max(float(logits.abs().max()) for logits in adapted)
    share = difference / effect if effect else float("inf")
    check = LogitCheck(difference, effect, share, largest, sum(len(batch["input_ids"]) for batch in batches))
    rounded = {entry.dtype for entry in model_entries(merged).values()} & {"BF16", "F16"}
    if problem := _problem(check, exact=not rounded):
        raise MergeError(problem)
    return check


def _problem(check: LogitCheck, exact: bool) -> str | None:
    if check.effect == 0:
        return f"the adapter has no effect on the logits of {check.rows} rows: there is nothing to merge"
    allowed = max(EXACT_SHARE * check.effect, NOISE * check.largest) if exact else float("inf")
    if check.lost_share < ROUNDED_SHARE and check.max_difference <= allowed:
        return None
    reason = "" if exact else ": rounding to 16 bits loses too much of it; use --dtype float32"
    return (
        f"the merged model does not do what the adapter does{reason}. On the logits of {check.rows} rows "
        f"max |merged - adapted| is {check.max_difference:.3g}, max |adapted - base| is {check.effect:.3g}: "
        f"{check.lost_share:.1%} of the adapter's effect is lost"
    )


def _same_bytes(piece: Piece, entry: Entry) -> bool:
    base = piece.base
    assert base is not None
    starts = range(0, piece.size, COPY)
    return all(base.read(start, COPY) == entry.read(start, COPY) for start in starts)


def _same_values(piece: Piece, entry: Entry, probe: "_Probe | None") -> bool:
    """Whether the written values are those of the formula; shows the probe every block meanwhile.

    Almost all values are the formula's to the bit, and the others close by what they are themselves: only where that
    fails is the whole block looked at, whose largest update allows for more.
    """
    edit = piece.layer.edit(partial(piece.blocks, BLOCK)) if piece.layer else None
    dtype = FLOATS[piece.dtype]
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]  # floats of 16 bits compare slowly on CPUs
    for start, rows in piece.blocks(BLOCK):
        source = rows.double()
        expected = edit.rows(source, start) if edit else source
        written = read_stored(entry, start, tuple(rows.shape))
        other = expected.to(dtype).view(bits) != written.view(bits)
        near = not other.any() or _close(written[other].double(), expected[other], source[other], dtype)
        if not near and not _close(written.double(), expected, source, dtype):
            return False
        if probe is not None and piece.layer is not None and piece.layer.additive:
            probe.show(start, rows, written.float())
    return True


class _Probe:
    """What a plain layer with the base's weight, and one with the written weight, make of unit vectors.

    Both are run on blocks of the weight's rows, so that no weight need be whole in memory.

    Args:
        layer: The adapted layer.
        shape: Of the stored weight.
    """

    def __init__(self, layer: Adapted, shape: Sequence[int]) -> None:
        self.layer = layer
        self.by_input = transposed(layer.frozen)  # a row of the stored weight is of an input, else of an output
        self.width = shape[0 if self.by_input else 1]
        self.chosen = torch.linspace(0, self.width - 1, min(self.width, UNITS)).long()
        """The units: some of the layer's inputs, spread over all of them."""
        outputs = shape[1 if self.by_input else 0]
        # Whole from the start: small tensors kept from each block would lie scattered, and the heap grow around them.
        self.base, self.merged = torch.empty(2, len(self.chosen), outputs).unbind()

    def show(self, start: int, base: Tensor, merged: Tensor) -> None:
        """Run both layers on a block of rows of the weights, from row `start` on."""
        stop = start + len(base)
        if self.by_input:
            here = (self.chosen >= start) & (self.chosen < stop)
            units = self.units(self.chosen[here] - start, len(base))
            if len(units):
                self.base[here], self.merged[here] = self._run(base, units), self._run(merged, units)
        else:
            units = self.units(self.chosen, self.width)
            self.base[:, start:stop], self.merged[:, start:stop] = self._run(base, units), self._run(merged, units)

    def agree(self, dtype: torch.dtype) -> bool:
        """Whether the merged layer does what the adapted one does: the one that trains, run on what the base said."""
        units, frozen = self.units(self.chosen, self.width), self.layer.frozen
        self.layer.frozen = _Said(self.base)
        try:
            with torch.no_grad():
                adapted = self.layer(units)
        finally:
            self.layer.frozen = frozen
        return _close(self.merged, adapted, self.base, dtype)

    def units(self, chosen: Tensor, width: int) -> Tensor:
        """Those of some inputs, of `width` in all; for a table of embeddings, ids."""
        return chosen if isinstance(self.layer.frozen, nn.Embedding) else F.one_hot(chosen, width).float()

    def _run(self, rows: Tensor, units: Tensor) -> Tensor:
        frozen = copy.copy(self.layer.frozen)
        if isinstance(frozen, nn.Embedding):
            frozen.padding_idx = None  # it may be beyond these rows, and matters for gradients alone
        out = rows.shape[1] if self.by_input else rows.shape[0]
        bias = {} if self.layer.bias is None else {"bias": torch.zeros(out)}
        with torch.no_grad():
            said: Tensor = functional_call(frozen, {"weight": rows, **bias}, (units,))
        return said


class _Said(nn.Module):
    """In the place of a frozen projection: what that has said."""

    def __init__(self, said: Tensor) -> None:
        super().__init__()
        self.said = said

    def forward(self, _: Tensor) -> Tensor:
        return self.said


def _same_function(probe: _Probe, piece: Piece, entry: Entry) -> bool:
    """Whether a plain layer with the written weight maps unit vectors as the adapted one does.

    An update that depends on the weight needs it whole.
    """
    layer = probe.layer
    if layer.additive:
        return probe.agree(FLOATS[piece.dtype])
    (_, source), *_ = piece.blocks(torch.Size(piece.shape).numel())
    probe.show(0, source, read_rows(entry, 0, piece.shape))
    bias = {} if layer.bias is None else {f"{WRAPPED}.bias": torch.zeros(layer.bias.shape)}
    units = probe.units(probe.chosen, probe.width)
    with torch.no_grad():
        adapted = functional_call(layer, {f"{WRAPPED}.weight": source, **bias}, (units,))
    return _close(probe.merged, adapted, probe.base, FLOATS[piece.dtype])


def _close(written: Tensor, expected: Tensor, before: Tensor, dtype: torch.dtype) -> bool:
    """Whether `written` is `expected` to one rounding of the dtype, and to that of the float32 sums that led there."""
    limits = torch.finfo(dtype)
    rounding = limits.eps * expected.abs() + limits.eps * limits.tiny
    sums = 1e-6 * (expected.abs() + before.abs()) + 1e-5 * (expected - before).abs().max()
    return bool(((written - expected).abs() <= rounding + sums).all())


def adapted_model(opened: "Opened", onto: Onto) -> nn.Module:
    """The run's model, loaded anew, in float32.

    Args:
        opened: The run.
        onto: With the base as it was in training, or as its files have it.
    """
    live = _prepared(opened, opened.prepared.methods, onto)
    load_trainable(live.model, opened.state, "adapter")
    model: nn.Module = live.model
    return model


def _prepared(opened: "Opened", methods: "Sequence[Method]", onto: Onto) -> Prepared:
    recipe, head = opened.recipe, head_of(opened.recipe)
    whole = recipe.model.model_copy(update={"dtype": "float32", "quantize": None})
    made = prepare(whole, methods, head, recipe.train.seed)
    if recipe.model.quantize is not None and onto == "trained":
        take_weights(made.model, prepare(recipe.model, [], head, recipe.train.seed).model)
    return made


def _base_model(opened: "Opened") -> nn.Module:
    """The base; with the trained head where that is new and not all that was trained, so that only the rest counts."""
    bare = _prepared(opened, [], opened.onto)
    model: nn.Module = bare.model
    new = {name: p for name, p in model.named_parameters() if name in opened.state and name not in bare.file_names}
    if opened.state.keys() - new.keys():
        with torch.no_grad():
            for name, parameter in new.items():
                parameter.copy_(opened.state[name])
    return model


def merged_model(opened: "Opened", merged: Path) -> nn.Module:
    """A merged directory as plain transformers loads it, in float32.

    Raises:
        MergeError: It does not load, or not all of it.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    generation = head_of(opened.recipe).kind == "generation"
    auto: Any = AutoModelForCausalLM if generation else AutoModelForSequenceClassification
    try:
        with _quiet():
            model, info = auto.from_pretrained(
                merged,
                dtype=torch.float32,
                trust_remote_code=opened.recipe.model.trust_remote_code,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise MergeError(f"transformers cannot load the merged model: {str(error).splitlines()[0]}") from error
    if lost := sorted(str(name) for name in [*info["missing_keys"], *info["mismatched_keys"]]):
        raise MergeError(f"transformers misses {len(lost)} tensors of the merged model: {', '.join(lost[:3])}")
    loaded: nn.Module = model.eval()
    return loaded


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars and loading reports: what they say is checked."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


def logits_of(model: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> Iterator[Tensor]:
    """The logits of each batch, of real positions only."""
    for batch in batches:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        with torch.no_grad():
            logits: Tensor = model(**inputs).logits
        mask = batch.get("attention_mask")
        yield logits[mask.bool()] if logits.ndim == 3 and mask is not None else logits


def _largest_difference(adapted: Sequence[Tensor], other: Iterator[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(adapted, other, strict=True))

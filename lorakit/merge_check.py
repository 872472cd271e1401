"""The proof of a merge: what stands on the disk is what the adapted model computes.

Peers' users report merges that silently return the base, and merges that differ from the adapter; both fail here.
"""

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
from lorakit.merge_plan import FLOATS, Piece, Plan, read_rows
from lorakit.methods.base import Adapted
from lorakit.model import prepare
from lorakit.surgery import WRAPPED, load_trainable
from lorakit.targets import out_features
from lorakit.weights import Entry, model_entries

if TYPE_CHECKING:
    from lorakit.checkpoint import Opened

BLOCK = 2**18
"""Elements of a block: 2 MiB in float64, and another size than the writer's, so that a wrong offset shows."""
COPY = 2**22
"""Bytes of untouched tensors that are compared at a time."""
UNITS = 64
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
        elif not (_same_bytes(piece, entry) if piece.verbatim else _same_values(piece, entry)):
            problems.append(f"{piece.key}: the file does not hold the values that were to be {piece.kind}")
        elif piece.layer is not None and not _same_function(piece, piece.layer, entry):
            problems.append(f"{piece.key}: the merged layer does not compute what the adapted one does")
    if problems:
        raise MergeError(*problems)


def verify_logits(opened: "Opened", merged: Path, batches: Sequence[Mapping[str, Tensor]]) -> LogitCheck:
    """Load the merged directory with plain transformers and compare it with the base and the adapter, in float32.

    The three models are in memory one after the other, never together.

    Args:
        opened: The run; its base is loaded anew.
        merged: The directory.
        batches: Model inputs of real rows; positions that the attention mask hides are not compared.

    Raises:
        MergeError: It does not load, or does not do what the adapter does; gives the numbers.
    """
    adapted = list(_logits(_adapted_model(opened), batches))
    effect = _largest_difference(adapted, _logits(_base_model(opened), batches))
    difference = _largest_difference(adapted, _logits(_merged_model(opened, merged), batches))
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


def _same_values(piece: Piece, entry: Entry) -> bool:
    edit = piece.layer.edit(partial(piece.blocks, BLOCK)) if piece.layer else None
    for start, rows in piece.blocks(BLOCK):
        source = rows.double()
        expected = edit.rows(source, start) if edit else source
        written = read_rows(entry, start, tuple(rows.shape)).double()
        if not _close(written, expected, source, FLOATS[piece.dtype]):
            return False
    return True


def _same_function(piece: Piece, layer: Adapted, entry: Entry) -> bool:
    """Whether a plain layer with the written weight maps unit vectors as the adapted one does."""
    (_, source), *_ = piece.blocks(torch.Size(piece.shape).numel())
    bias = {} if layer.bias is None else {"bias": torch.zeros(layer.bias.shape)}
    before, after = {"weight": source, **bias}, {"weight": read_rows(entry, 0, piece.shape), **bias}
    units = _units(layer.frozen, source.numel())
    with torch.no_grad():
        base = functional_call(layer.frozen, before, (units,))
        adapted = functional_call(layer, {f"{WRAPPED}.{name}": value for name, value in before.items()}, (units,))
        merged = functional_call(layer.frozen, after, (units,))
    return _close(merged, adapted, base, FLOATS[piece.dtype])


def _units(frozen: nn.Module, elements: int) -> Tensor:
    """Some of the layer's unit vectors, spread over all of them; for a table of embeddings, ids."""
    out = out_features(frozen)
    assert out is not None
    count = elements // out
    chosen = torch.linspace(0, count - 1, min(count, UNITS)).long()
    return chosen if isinstance(frozen, nn.Embedding) else F.one_hot(chosen, count).float()


def _close(written: Tensor, expected: Tensor, before: Tensor, dtype: torch.dtype) -> bool:
    """Whether `written` is `expected` to one rounding of the dtype, and to that of the float32 sums that led there."""
    limits = torch.finfo(dtype)
    rounding = limits.eps * expected.abs() + limits.eps * limits.tiny
    sums = 1e-6 * (expected.abs() + before.abs()) + 1e-5 * (expected - before).abs().max()
    return bool(((written - expected).abs() <= rounding + sums).all())


def _adapted_model(opened: "Opened") -> nn.Module:
    recipe = opened.recipe
    base = recipe.model.model_copy(update={"dtype": "float32"})
    live = prepare(base, opened.prepared.methods, head_of(recipe), recipe.train.seed)
    load_trainable(live.model, opened.state, "adapter")
    model: nn.Module = live.model
    return model


def _base_model(opened: "Opened") -> nn.Module:
    """The base; with the trained head where that is new and not all that was trained, so that only the rest counts."""
    recipe = opened.recipe
    bare = prepare(recipe.model.model_copy(update={"dtype": "float32"}), [], head_of(recipe), recipe.train.seed)
    model: nn.Module = bare.model
    new = {name: p for name, p in model.named_parameters() if name in opened.state and name not in bare.file_names}
    if opened.state.keys() - new.keys():
        with torch.no_grad():
            for name, parameter in new.items():
                parameter.copy_(opened.state[name])
    return model


def _merged_model(opened: "Opened", merged: Path) -> nn.Module:
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


def _logits(model: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> Iterator[Tensor]:
    """The logits of each batch, of real positions only."""
    for batch in batches:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        with torch.no_grad():
            logits: Tensor = model(**inputs).logits
        mask = batch.get("attention_mask")
        yield logits[mask.bool()] if logits.ndim == 3 and mask is not None else logits


def _largest_difference(adapted: Sequence[Tensor], other: Iterator[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(adapted, other, strict=True))

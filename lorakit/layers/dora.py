"""DoRA (Liu et al. 2024, arXiv 2402.09353): a matrix's magnitude and its direction are trained apart.

W' = m · (W0 + ΔW) / ‖W0 + ΔW‖ (section 4.1, equation 5), where m is one trained number per output and the norm is that
of the output's weights. m starts as ‖W0‖ and ΔW as zero, so that W' starts as W0.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from lorakit.arch import Rows
from lorakit.layers.adapted import Edit, Stored
from lorakit.layers.low_rank import LoRALayer, RowBlocks, Update, low_rank_edit, transposed
from lorakit.nf4 import weight_of
from lorakit.targets import out_features

_LEAST = torch.finfo(torch.float32).tiny
"""In the place of the norm of a row of zeros."""


class DoRALayer(LoRALayer):
    """A projection with a trained magnitude for every adapted output.

    As section 4.3 proposes, no gradient flows through the norm. Dropout acts on the update's input alone, as without
    DoRA (PEFT drops the whole layer's input for the magnitude's share).

    Args:
        frozen: An `nn.Linear` or transformers' `Conv1D`.
        update: As of `LoRALayer`.
        dropout: Likewise.
        rows: The paper's name → its rows in a fused projection; the outputs of no block have no magnitude.
    """

    additive: ClassVar[bool] = False
    outputs: Tensor | None

    def __init__(self, frozen: nn.Module, update: Update, dropout: float, rows: Mapping[str, Rows]) -> None:
        super().__init__(frozen, update, dropout)
        self.register_buffer("outputs", _outputs(frozen, update, rows), persistent=False)
        if frozen.get_parameter("weight").is_meta:
            count = out_features(frozen) if self.outputs is None else len(self.outputs)
            assert count is not None
            self.magnitude = nn.Parameter(torch.empty(count, device="meta"))
        else:
            norms = self._norms()
            self.magnitude = nn.Parameter(norms if self.outputs is None else norms[self.outputs])

    def _norms(self) -> Tensor:
        """‖W0 + ΔW‖ of every output, (out,), float32, without a graph."""
        weight = weight_of(self.frozen).detach().float()
        left, right = self.update.factors()
        if transposed(self.frozen):
            left, right = right.T, left.T
        with torch.autocast(weight.device.type, enabled=False):
            moved = torch.addmm(weight, left, right)
        norms: Tensor = torch.linalg.vector_norm(moved, dim=int(not transposed(self.frozen)))
        return norms

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out): as (m/‖…‖ - 1) W0 x is added to what the base computes, step 0 is the base to the bit.

        On CUDA to a rounding: the magnitude is made on the CPU, which sums in another order.
        """
        h: Tensor = self.frozen(x)
        scale = self._scale(self._norms())
        plain = h if self.bias is None else h - self.bias
        delta: Tensor = (scale - 1) * plain + scale * self.update(self.dropout(x))
        return h + delta.to(h.dtype)

    def _scale(self, norms: Tensor) -> Tensor:
        """The factor m / ‖W0 + ΔW‖ of every output, in the norms' precision; 1 for the outputs without a magnitude."""
        if self.outputs is None:
            whole: Tensor = self.magnitude / norms.clamp_min(_LEAST)
            return whole
        ratio = self.magnitude / norms[self.outputs].clamp_min(_LEAST)
        return torch.ones_like(norms).index_copy(0, self.outputs, ratio)

    def whole_magnitude(self, stored: Stored) -> Tensor:
        """The magnitude of every output, (out,): that of an output which has none of its own is ‖W0‖."""
        own = self.magnitude.detach()
        if self.outputs is None:
            return own
        update = low_rank_edit(self.frozen, *self.update.factors())  # zero in the other outputs' rows
        return stored_norms(self.frozen, update, stored).float().index_copy(0, self.outputs, own)

    def edit(self, stored: Stored) -> Edit:
        """W0 + ΔW, scaled for each output."""
        update = low_rank_edit(self.frozen, *self.update.factors())
        return DoRAEdit(
            update, self._scale(stored_norms(self.frozen, update, stored)).detach(), transposed(self.frozen)
        )


class DoRAEdit:
    """W ← (W + ΔW) · scale, on the tensor as it is stored.

    Args:
        update: W + ΔW.
        scale: m / ‖W0 + ΔW‖ of every output, (out,).
        columns: Whether the outputs are the stored tensor's columns.
    """

    def __init__(self, update: Edit, scale: Tensor, columns: bool) -> None:
        self.update, self.scale, self.columns = update, scale, columns

    def rows(self, block: Tensor, start: int) -> Tensor:
        """See `Edit`."""
        scale = self.scale.to(block.dtype)
        return self.update.rows(block, start) * (scale if self.columns else scale[start : start + len(block), None])


def dora_edit(frozen: nn.Module, update: Edit, magnitude: Tensor, stored: Stored) -> DoRAEdit:
    """The edit of a matrix of which every output has a magnitude.

    Args:
        frozen: The module, for its kind alone.
        update: W + ΔW.
        magnitude: (out,).
        stored: The frozen weight.
    """
    norms = stored_norms(frozen, update, stored).clamp_min(_LEAST)
    return DoRAEdit(update, magnitude / norms, transposed(frozen))


def stored_norms(frozen: nn.Module, update: Edit, stored: Stored) -> Tensor:
    """‖W0 + ΔW‖ of every output, (out,), float64, from the base's tensor in blocks.

    Where the weight is stored as (in, out), every block has a part of every output.
    """
    squares = [(update.rows(block.double(), start) ** 2).sum(int(not transposed(frozen))) for start, block in stored()]
    return (torch.stack(squares).sum(0) if transposed(frozen) else torch.cat(squares)).sqrt()


def _outputs(frozen: nn.Module, update: Update, rows: Mapping[str, Rows]) -> Tensor | None:
    """The numbers of the outputs that have a magnitude; None for all."""
    if not rows:
        return None
    assert isinstance(update, RowBlocks)
    every = torch.arange(update.out_features, device="cpu")
    chosen = torch.cat([every[block if isinstance(block, slice) else list(block)] for block in rows.values()])
    device = frozen.get_parameter("weight").device
    return chosen if device.type == "meta" else chosen.to(device)  # as in `RowBlocks`

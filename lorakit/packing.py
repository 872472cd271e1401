"""Packing: the blocks of a model compute the real tokens of a padded batch, and no padding.

All that a block does but its attention, it does to one token at a time. So between the embeddings and the last norm
the tokens of all rows stand behind one another in a single row; only for the attention itself are they parted into
padded rows, and put together again. The model around the blocks, masks, positions and heads, sees padded tensors as
ever. What each token is mapped to does not change, nor does any gradient.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

ATTENTION = "lorakit"
"""What transformers knows our attention as: it parts packed rows."""
_HANDLE = "lorakit_packing"
_STEP = 8
"""Packed rows end with zeros up to a multiple of this: a row of another length is another shape of every product,
and on a CPU in 16 bits each shape is compiled anew."""


class _Gather(torch.autograd.Function):
    """Padded (batch · seq, …) → packed (length, …), with zeros behind the real tokens."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, places: Tensor, length: int) -> Tensor:
        """Takes the tokens at `places`."""
        ctx.save_for_backward(places)
        ctx.size = padded.shape[0]
        return _gathered(padded, places, length)

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None, None]:
        """The gradient goes back to where the tokens came from."""
        (places,) = ctx.saved_tensors
        return _scattered(above, places, ctx.size), None, None


class _Scatter(torch.autograd.Function):
    """Packed (length, …) → padded (batch · seq, …), with zeros as padding: the inverse of `_Gather`."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, places: Tensor, size: int) -> Tensor:
        """Puts the tokens at `places`."""
        ctx.save_for_backward(places)
        ctx.length = packed.shape[0]
        return _scattered(packed, places, size)

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None, None]:
        """See `_Gather.forward`."""
        (places,) = ctx.saved_tensors
        return _gathered(above, places, ctx.length), None, None


def _gathered(padded: Tensor, places: Tensor, length: int) -> Tensor:
    packed = padded.new_empty(length, *padded.shape[1:])
    packed[len(places) :] = 0
    torch.index_select(padded, 0, places, out=packed[: len(places)])
    return packed


def _scattered(packed: Tensor, places: Tensor, size: int) -> Tensor:
    return packed.new_zeros(size, *packed.shape[1:]).index_copy_(0, places, packed[: len(places)])


class Packing:
    """The packing of one model; it decides with each forward pass.

    Args:
        blocks: The model's, in order.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self._places: Tensor | None = None
        self._shape = (0, 0)
        self._length = 0
        self._first, self._last = blocks[0], blocks[-1]

    def begin(self, _: nn.Module, __: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        """Before the model: find out whether this batch has padding, and nothing in it that a cache remembers."""
        mask = inputs.get("attention_mask")
        cached = inputs.get("use_cache") or inputs.get("past_key_values") is not None
        self._places = None
        if cached or not isinstance(mask, Tensor) or mask.ndim != 2 or not _is_real(mask):
            return
        places = mask.flatten().nonzero()[:, 0]
        if 0 < len(places) < mask.numel():
            self._places, self._shape = places, (mask.shape[0], mask.shape[1])
            self._length = -(-len(places) // _STEP) * _STEP

    def before_block(self, block: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Pack what the first block is given, and for every block what belongs to positions (rotary angles)."""
        if self._places is None:
            return None
        hidden, *rest = args
        rest = [self._of_positions(one) for one in rest]
        named = {name: one if "mask" in name else self._of_positions(one) for name, one in named.items()}
        return (self.pack(hidden) if block is self._first else hidden, *rest), named

    def after_block(self, block: nn.Module, _: tuple[Any, ...], out: Any) -> Any:
        """Part what the last block returns into padded rows."""
        if self._places is None or block is not self._last:
            return None
        return (self.unpack(out[0]), *out[1:]) if isinstance(out, tuple) else self.unpack(out)

    @property
    def packed(self) -> bool:
        """Whether this forward pass is."""
        return self._places is not None

    def pack(self, padded: Tensor) -> Tensor:
        """(batch, seq, …) → (1, length, …)."""
        assert self._places is not None
        found: Tensor = _Gather.apply(padded.flatten(0, 1), self._places, self._length)  # type: ignore[no-untyped-call]
        return found[None]

    def unpack(self, packed: Tensor) -> Tensor:
        """(1, length, …) → (batch, seq, …)."""
        batch, seq = self._shape
        found: Tensor = _Scatter.apply(packed[0], self._places, batch * seq)  # type: ignore[no-untyped-call]
        return found.view(batch, seq, *found.shape[1:])

    def _of_positions(self, given: Any) -> Any:
        """A tensor (batch or 1, seq, …) packed; anything else as it is."""
        if isinstance(given, tuple):
            return tuple(self._of_positions(one) for one in given)
        batch, seq = self._shape
        if not isinstance(given, Tensor) or given.ndim < 2 or given.shape[1] != seq or given.shape[0] not in (1, batch):
            return given
        return self.pack(given.expand(batch, *given.shape[1:]))


def pack(model: Any, blocks: Sequence[nn.Module]) -> None:
    """Let a model's blocks compute no padding; a model with an attention of its own (DeBERTa) is left as it is.

    Args:
        model: Prepared by `attention.install`.
        blocks: Its blocks, in order.
    """
    if model.config._attn_implementation != ATTENTION:
        return
    packing = Packing(blocks)
    model.register_forward_pre_hook(packing.begin, with_kwargs=True)
    for block in blocks:
        block.register_forward_pre_hook(packing.before_block, with_kwargs=True)
        block.register_forward_hook(packing.after_block)
    for module in (model, *(module for block in blocks for module in block.modules())):
        setattr(module, _HANDLE, packing)


def packs(model: Any) -> bool:
    """Whether `pack` prepared a model, so that its blocks never compute padding."""
    return hasattr(model, _HANDLE)


def packing_of(module: Any) -> Packing | None:
    """The packing of the model that a module is part of, where this forward pass is packed."""
    packing: Packing | None = getattr(module, _HANDLE, None)
    return packing if packing is not None and packing.packed else None


def _is_real(tensor: Tensor) -> bool:
    """Whether there are numbers in it: not in a memory model's."""
    from torch._subclasses.fake_tensor import FakeTensor

    return not isinstance(tensor, FakeTensor) and not tensor.is_meta

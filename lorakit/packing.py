"""Packing: the blocks of a model compute the real tokens of a padded batch, and no padding.

All that a block does but its attention, it does to one token at a time. So between the embeddings and the last norm
the tokens of all rows stand behind one another in a single row; only for the attention itself are they parted into
padded rows, and put together again. The model around the blocks, masks, positions and heads, sees padded tensors as
ever. What each token is mapped to does not change, nor does any gradient.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lorakit.data.collate import send

ATTENTION = "lorakit"
"""What transformers knows our attention as: it parts packed rows."""
_HANDLE = "lorakit_packing"
_STEP = 8
"""Packed rows end with zeros up to a multiple of this: a row of another length is another shape of every product,
and on a CPU in 16 bits each shape is compiled anew."""


_padding_shows: ContextVar[tuple[Any, bool] | None] = ContextVar("padding_shows", default=None)
"""Of the model with a config."""


def padding_shows(config: Any) -> bool | None:
    """Whether real tokens would see padding if there were no mask, in the forward pass of a model that is going on.

    They would not where there is none, or where it is behind them and no token sees a later one. None: nobody counted.

    Args:
        config: The model's: another one's forward pass may be going on around this one.
    """
    known = _padding_shows.get()
    return known[1] if known is not None and known[0] is config else None


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


def gather(padded: Tensor, places: Tensor, length: int) -> Tensor:
    """The rows (…) of a tensor (size, …) at some places, followed by zeros: (length, …)."""
    found: Tensor = _Gather.apply(padded, places, length)  # type: ignore[no-untyped-call]
    return found


def scatter(packed: Tensor, places: Tensor, size: int) -> Tensor:
    """The inverse of `gather`: rows put at their places of (size, …), zeros elsewhere."""
    found: Tensor = _Scatter.apply(packed, places, size)  # type: ignore[no-untyped-call]
    return found


class Packing:
    """The packing of one model; it decides with each forward pass.

    It knows no module: a model whose parts know it is to be freed when its last user lets it go.

    Args:
        config: The model's.
        causal: Whether no token sees a later one.
    """

    def __init__(self, config: Any, causal: bool) -> None:
        self._config, self._causal = config, causal
        self._told: list[int] | None = None
        self._places: Tensor | None = None
        self._shape = (0, 0)
        self.length = 0
        """Tokens of the packed row, with the zeros at its end."""
        self.runs: list[tuple[int, int]] = []
        """(rows, tokens of each) of rows of one length that follow one another."""
        self.firsts = torch.empty(0)
        """Where each row's first token stands in the packed row."""
        self._bounds: Tensor | None = None
        self._masks: dict[tuple[int, bool], tuple[Tensor, list[Tensor | None]]] = {}

    @contextmanager
    def told(self, lengths: list[int]) -> Iterator[None]:
        """Within it, forward passes need not read the mask: which a GPU would have to be waited for.

        Args:
            lengths: Real tokens of each row; padding is behind them.
        """
        self._told = lengths
        try:
            yield
        finally:
            self._told = None

    def begin(self, _: nn.Module, __: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        """Before the model: find out whether this batch has padding, and nothing in it that a cache remembers."""
        mask = inputs.get("attention_mask")
        watched = any(inputs.get(name) for name in ("use_cache", "output_hidden_states", "output_attentions"))
        self.end()
        _padding_shows.set(None)
        if watched or inputs.get("past_key_values") is not None or not isinstance(mask, Tensor) or mask.ndim != 2:
            return
        lengths, places, behind = self._real(mask)
        _padding_shows.set((self._config, len(places) < mask.numel() and not (self._causal and behind)))
        if not 0 < len(places) < mask.numel():
            return
        self._places, self._shape = send(places, mask.device), (mask.shape[0], mask.shape[1])
        self.length = self.rounded(len(places))
        self.firsts = send(torch.tensor(np.cumsum([0, *lengths[:-1]])), mask.device)
        self.runs = [(len(list(run)), length) for length, run in groupby(lengths) if length]

    def _real(self, mask: Tensor) -> tuple[list[int], Tensor, bool]:
        """Real tokens of each row, where they stand in the batch, and whether all padding is behind them."""
        if self._told is not None:
            batch, seq = mask.shape
            assert len(self._told) == batch
            at = [row * seq + np.arange(length) for row, length in enumerate(self._told)]
            return self._told, torch.tensor(np.concatenate(at)), True
        real = mask.ne(0).cpu()
        return real.sum(1).tolist(), real.flatten().nonzero()[:, 0], not bool((real[:, 1:] > real[:, :-1]).any())

    def after(self, *_: object) -> None:
        """Behind the model, also where it failed: where no backward pass will come, the batch is done with."""
        _padding_shows.set(None)
        if not torch.is_grad_enabled():
            self.end()

    def end(self) -> None:
        """Forget the last batch; its backward pass, which may compute blocks anew (checkpointing), must be over."""
        self._places, self.firsts, self._bounds = None, torch.empty(0), None
        self._masks.clear()

    @staticmethod
    def rounded(tokens: int) -> int:
        """Tokens of a packed row, with the zeros at its end."""
        return -(-tokens // _STEP) * _STEP

    def enter(self, _: nn.Module, args: tuple[Any, ...]) -> Any:
        """Before the first block: pack the hidden states."""
        return None if self._places is None else (self.pack(args[0]), *args[1:])

    def before_block(self, _: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Before every block: pack what belongs to positions (rotary angles)."""
        if self._places is None:
            return None
        rest = [self._of_positions(one) for one in args[1:]]
        named = {name: one if "mask" in name else self._of_positions(one) for name, one in named.items()}
        return (args[0], *rest), named

    def leave(self, _: nn.Module, __: tuple[Any, ...], out: Any) -> Any:
        """Behind the last block: part what it returns into padded rows."""
        if self._places is None:
            return None
        return (self.unpack(out[0]), *out[1:]) if isinstance(out, tuple) else self.unpack(out)

    @property
    def packed(self) -> bool:
        """Whether this forward pass is."""
        return self._places is not None

    @property
    def width(self) -> int:
        """Tokens of a padded row."""
        return self._shape[1]

    @property
    def zeros(self) -> int:
        """Zeros behind the last real token."""
        assert self._places is not None
        return self.length - len(self._places)

    @property
    def bounds(self) -> tuple[Tensor, int]:
        """Where rows begin and the last one ends, (rows + 1,) int32, and the longest; zeros at the end are one too."""
        assert self._places is not None
        lengths = [length for rows, length in self.runs for _ in range(rows)] + [self.zeros] * (self.zeros > 0)
        if self._bounds is None:
            self._bounds = send(torch.tensor(np.cumsum([0, *lengths], dtype=np.int32)), self._places.device)
        return self._bounds, max(lengths)

    def run_masks(self, mask: Tensor | None, causal: bool) -> list[Tensor | None]:
        """Of each of `runs` what its tokens see; None where that is all, or all that are not later.

        Args:
            mask: (batch, 1, seq, seq), True where a token sees another; None as above.
            causal: Which of the two None means.

        Returns:
            Masks (rows, 1, length, length).
        """
        if mask is None or not _is_real(mask):
            return [None] * len(self.runs)
        if (id(mask), causal) not in self._masks:  # all blocks of a kind share one
            self._masks[id(mask), causal] = (mask, list(self._run_masks(mask, causal)))
        return self._masks[id(mask), causal][1]

    def _run_masks(self, mask: Tensor, causal: bool) -> Iterator[Tensor | None]:
        assert self._places is not None
        parts = torch.split(self._places, [rows * length for rows, length in self.runs])
        for (rows, length), places in zip(self.runs, parts, strict=True):
            row, at = places.view(rows, length) // self.width, places.view(rows, length) % self.width
            seen = mask[:, 0][row[:, :1, None], at[:, :, None], at[:, None, :]][:, None]
            usual = torch.ones_like(seen, dtype=torch.bool)
            yield None if torch.equal(seen, usual.tril() if causal else usual) else seen

    def pack(self, padded: Tensor) -> Tensor:
        """(batch, seq, …) → (1, length, …)."""
        assert self._places is not None
        return gather(padded.flatten(0, 1), self._places, self.length)[None]

    def unpack(self, packed: Tensor) -> Tensor:
        """(1, length, …) → (batch, seq, …)."""
        assert self._places is not None
        batch, seq = self._shape
        return scatter(packed.squeeze(0), self._places, batch * seq).view(batch, seq, *packed.shape[2:])

    def _of_positions(self, given: Any) -> Any:
        """A tensor (batch or 1, seq, …) packed; anything else as it is."""
        if isinstance(given, tuple):
            return tuple(self._of_positions(one) for one in given)
        batch, seq = self._shape
        if not isinstance(given, Tensor) or given.ndim < 2 or given.shape[1] != seq or given.shape[0] not in (1, batch):
            return given
        return self.pack(given.expand(batch, *given.shape[1:]))


def pack(model: Any, blocks: Sequence[nn.Module], causal: bool) -> None:
    """Let a model's blocks compute no padding; a model with an attention of its own (DeBERTa) is left as it is.

    Args:
        model: Prepared by `attention.install`.
        blocks: Its blocks, in order.
        causal: Whether no token sees a later one.
    """
    if model.config._attn_implementation != ATTENTION:
        return
    packing = Packing(model.config, causal)
    model.register_forward_pre_hook(packing.begin, with_kwargs=True)
    model.register_forward_hook(packing.after, always_call=True)
    blocks[0].register_forward_pre_hook(packing.enter)
    for block in blocks:
        block.register_forward_pre_hook(packing.before_block, with_kwargs=True)
    blocks[-1].register_forward_hook(packing.leave)
    for module in (model, *(module for block in blocks for module in block.modules())):
        setattr(module, _HANDLE, packing)


def share_packing(model: Any, module: nn.Module) -> None:
    """Let a module that is set into a model be packed as that is.

    Args:
        model: The model.
        module: Made for another model of the same form.
    """
    setattr(module, _HANDLE, packing_in(model))


def packing_in(model: Any) -> Packing | None:
    """The packing of a model that `pack` prepared, so that its blocks never compute padding."""
    packing: Packing | None = getattr(model, _HANDLE, None)
    return packing


def packing_of(module: Any) -> Packing | None:
    """The packing of the model that a module is part of, where this forward pass is packed."""
    packing = packing_in(module)
    return packing if packing is not None and packing.packed else None


def _is_real(tensor: Tensor) -> bool:
    """Whether there are numbers in it: not in a memory model's."""
    from torch._subclasses.fake_tensor import FakeTensor

    return not isinstance(tensor, FakeTensor) and not tensor.is_meta

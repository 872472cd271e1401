"""A ledger of the memory that tensors hold, kept while a model computes on fake tensors: shapes without data.

Every kernel of every architecture is seen, gradient checkpointing and autocast included, so nothing about a model need
be known beforehand. What libraries allocate inside a kernel is not seen.
"""

import copy
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

Bytes = dict[str, int]
"""Part → bytes."""


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of live storages by the part that they were made for, and remembers the fullest moment."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.part = "weights"
        self.live: Counter[str] = Counter()
        self.peak: Bytes = {}
        self._parts: dict[int, str] = {}
        self._watched: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run a kernel and enter what it made."""
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, list | tuple) else (out,):
            if isinstance(made, Tensor):
                self.enter(made, self.part)
        return out

    def enter(self, tensor: Tensor, part: str) -> None:
        """Count a tensor's storage, if it is not yet, for a part."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._parts:
            return
        self._parts[key] = part
        self._watched[key] = weakref.ref(storage, lambda _: self._leave(key, size))
        self.live[part] += size
        if self.live.total() > sum(self.peak.values()):
            self.peak = dict(self.live)

    def _leave(self, key: int, size: int) -> None:
        self.live[self._parts.pop(key)] -= size
        del self._watched[key]

    def move(self, tensor: Tensor, part: str) -> None:
        """From now on the tensor counts for another part."""
        storage = tensor.untyped_storage()
        self.live[self._parts[storage._cdata]] -= storage.nbytes()
        self._parts[storage._cdata] = part
        self.live[part] += storage.nbytes()

    @contextmanager
    def peak_of(self) -> Iterator[Bytes]:
        """The fullest moment of a block, filled in when the block ends."""
        self.peak = dict(self.live)
        found: Bytes = {}
        yield found
        found |= {part: size for part, size in self.peak.items() if size}


class LikeCuda(TorchFunctionMode):
    """Lets the CPU's fake kernels keep what CUDA's keep: a fused attention with dropout, wide norms under autocast."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call `func` as CUDA would."""
        kwargs = dict(kwargs or {})
        if func is nn.functional.scaled_dot_product_attention:
            kwargs["dropout_p"] = 0.0  # the CPU's fused kernel takes none; CUDA's do
        if func in (nn.functional.layer_norm, nn.functional.softmax) and torch.is_autocast_enabled("cpu"):
            args = (args[0].float(), *args[1:])
        return func(*args, **kwargs)


def fake_copy(model: nn.Module, mode: FakeTensorMode) -> Any:
    """The same model without data, on a CPU that is not there.

    Args:
        model: On any device, the meta device too; it stays as it is.
        mode: What the copy can compute under.
    """
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        fake: Tensor = FakeTensor(mode, tensor.detach().to("meta"), torch.device("cpu"))
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(fake, requires_grad=tensor.requires_grad) if is_parameter else fake
    return copy.deepcopy(model, memo)

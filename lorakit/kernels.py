"""Whose kernels compute: what has a way of its own for a CPU asks here."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

_as_on_gpu: ContextVar[bool] = ContextVar("as_on_gpu", default=False)


def on_cpu(tensor: Tensor) -> bool:
    """Whether a tensor is a CPU's, and not one that stands for a GPU's."""
    return tensor.device.type == "cpu" and not stands_for_gpu()


def stands_for_gpu() -> bool:
    """Whether a CPU's tensors stand for a GPU's."""
    return _as_on_gpu.get()


@contextmanager
def as_on_gpu() -> Iterator[None]:
    """Within it a CPU's tensors go the ways of a GPU's: for plans and tests."""
    token = _as_on_gpu.set(True)
    try:
        yield
    finally:
        _as_on_gpu.reset(token)

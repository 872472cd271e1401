"""One loaded base for the runs that follow one another in a process.

To build and read a base takes longer than many a short run. While `sharing` is entered, the last base that was loaded
is kept as it was, and each run of it gets a model of its own around the same tensors: frozen ones are shared, and of
those that it trains it gets copies (`own`), so that nothing a run does reaches the next.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_KEPT: "ContextVar[Kept | None]" = ContextVar("kept", default=None)


class Kept:
    """A base as its files have it, and what was in memory before the first one.

    Attributes:
        model: As loaded; nobody else holds it.
        before: Bytes in use when the first run began to load; see `lorakit.meter`.
    """

    def __init__(self) -> None:
        self.model: nn.Module | None = None
        self.before: int | None = None
        self._key: object = None
        self._new: set[str] = set()

    def take(self, key: object, load: "Callable[[], tuple[nn.Module, set[str]]]") -> "tuple[nn.Module, set[str]]":
        """A model with the kept tensors; loads, and keeps, where another base is kept.

        Args:
            key: All that the loaded model depends on.
            load: Gives the model, and the names of the parameters that its files lack.
        """
        if self._key != key:
            self._key, self.model = None, None  # first: there is never room needed for two
            self.model, self._new = load()
            self._key = key
        assert self.model is not None
        return _around(self.model, self._new), set(self._new)


@contextmanager
def sharing() -> Iterator[Kept]:
    """While entered, `take` keeps the last base; outside it loads each time."""
    kept = Kept()
    token = _KEPT.set(kept)
    try:
        yield kept
    finally:
        _KEPT.reset(token)


def current() -> Kept | None:
    """What is kept, while `sharing` is entered."""
    return _KEPT.get()


def stamps(directory: Path) -> list[tuple[str, int, int, int]]:
    """(name, inode, size, time of the last change) of a directory's files: another where a file was replaced."""
    found = [(path.name, path.stat()) for path in sorted(directory.iterdir()) if path.is_file()]
    return [(name, about.st_ino, about.st_size, about.st_mtime_ns) for name, about in found]


def own(model: "nn.Module") -> None:
    """Give a model copies of those kept tensors that it is going to train.

    Args:
        model: With its methods applied.
    """
    kept = current()
    if kept is None or kept.model is None:
        return
    places = {parameter.untyped_storage().data_ptr() for parameter in kept.model.parameters()}
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.untyped_storage().data_ptr() in places:
            parameter.data = parameter.data.clone()


def _around(model: "nn.Module", new: set[str]) -> Any:
    """Another model with the same parameters' values: the very tensors, but for `new`, which will be written to."""
    from torch import nn

    every = list(model.named_parameters(remove_duplicate=False))
    written = {id(parameter) for name, parameter in every if name in new}
    shared = {
        id(parameter): nn.Parameter(
            parameter.detach().clone() if id(parameter) in written else parameter.detach(), parameter.requires_grad
        )
        for _, parameter in every
    }
    return copy.deepcopy(model, shared)

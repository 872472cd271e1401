"""What a layer that stands in the place of a frozen one can say, and how a merge changes the base's tensors."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar, Protocol

from torch import Tensor, nn

Stored = Callable[[], Iterator[tuple[int, Tensor]]]
"""Reads the base's tensor as it is stored, in blocks of whole rows: the first row's index, and the rows in float32."""


class Edit(Protocol):
    """How a merge changes one of the base's tensors, block of rows by block of rows."""

    def rows(self, block: Tensor, start: int) -> Tensor:
        """The merged rows.

        Args:
            block: Rows `start` … of the stored tensor, float32, of shape (rows, …).
            start: Index of the block's first row.

        Returns:
            Float32, of the block's shape.
        """
        ...


class Adapted(nn.Module, ABC):
    """A layer that stands in the place of a frozen one and can say what a merge does to its weight."""

    frozen: nn.Module
    additive: ClassVar[bool] = True
    """Whether a merge adds a ΔW that does not depend on the weight."""

    @property
    def weight(self) -> Tensor:
        """The frozen weight, for models that look at it (read-only)."""
        return self.frozen.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The frozen module's bias, for models that look at it (read-only)."""
        return getattr(self.frozen, "bias", None)

    @abstractmethod
    def edit(self, stored: Stored) -> Edit:
        """What merging does to the frozen weight, as it is stored.

        Args:
            stored: The frozen weight, which in a skeleton the layer itself does not have.
        """

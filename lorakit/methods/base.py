"""What a method is: it changes a model so that some parameters are trained and the rest is frozen."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Protocol, Self

from torch import Tensor, nn

from lorakit.arch import Architecture
from lorakit.section import Section

Coverage = dict[str, list[str]]
"""Target → the module paths that it matched."""


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

    @property
    def weight(self) -> Tensor:
        """The frozen weight, for models that look at it (read-only)."""
        return self.frozen.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The frozen module's bias, for models that look at it (read-only)."""
        return getattr(self.frozen, "bias", None)

    @abstractmethod
    def edit(self) -> Edit:
        """What merging does to the frozen weight, as it is stored."""


class Method(Section):
    """A way to train a model: which parameters exist beside the base's, and which of all are trained."""

    name: str

    def resolve(self, row: Architecture) -> Self:
        """The method with the defaults that depend on the architecture filled in."""
        return self

    @abstractmethod
    def apply(self, model: nn.Module, row: Architecture, seed: int) -> Coverage:
        """Change a frozen model in place; meta-device models stay on the meta device.

        Args:
            model: All parameters frozen, but for the task's head.
            row: Its architecture.
            seed: Initial values are a function of this seed and of the module's path alone.

        Returns:
            What each target matched.

        Raises:
            RecipeError: A target matches nothing, or an option cannot apply to this model.
        """

    def publish(self, state: Mapping[str, Tensor]) -> "tuple[Method, Mapping[str, Tensor]]":
        """The method and the tensors as they leave the run; the same for most."""
        return self, state

    def unmergeable(self) -> str | None:
        """Why the base's own tensors cannot hold what this method trains; None where a merge can."""
        return None

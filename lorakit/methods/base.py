"""What a method is: it changes a model so that some parameters are trained and the rest is frozen."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, Protocol, Self

from torch import Tensor, nn

from lorakit.arch import Architecture
from lorakit.data.slots import NO_SLOTS, Slots
from lorakit.section import Section

Coverage = dict[str, list[str]]
"""Target → the module paths that it matched."""

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


class Method(Section):
    """A way to train a model: which parameters exist beside the base's, and which of all are trained."""

    name: str

    usual_lr: ClassVar[tuple[float, float]]
    """A learning rate to begin with, of encoders and of decoders: what `compare` takes where a recipe names none."""
    combines_with: ClassVar[tuple[str, ...]] = ()
    """Names of the methods that may stand behind this one in a list."""

    @property
    def slots(self) -> Slots:
        """Places that the method needs in every row, for vectors that it trains."""
        return NO_SLOTS

    def shrunk(self) -> Self:
        """The method with sizes that fit a tiny model, for `--smoke`."""
        return self

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
        """The method and the tensors as they leave the run; the same for most.

        Args:
            state: The whole adapter; without tensors the method alone counts.
        """
        return self, state

    def needs_whole_weights(self) -> str | None:
        """Which key makes the method train the base's own tensors, that a base in 4 bits cannot; None where none."""
        return None

    def unmergeable(self) -> str | None:
        """Why the base's own tensors cannot hold what this method trains; None where a merge can."""
        return None


def slots_of(methods: Sequence[Method]) -> Slots:
    """Places that a run's methods need: at most one of them has any."""
    return next((method.slots for method in methods if method.slots.count), NO_SLOTS)


def publish(methods: Sequence[Method], state: Mapping[str, Tensor]) -> tuple[list[Method], dict[str, Tensor]]:
    """The methods of a run and its adapter as they leave it."""
    published: list[Method] = []
    for method in methods:
        left, state = method.publish(state)
        published.append(left)
    return published, dict(state)

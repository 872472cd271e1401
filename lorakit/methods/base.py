"""What a method is: it changes a model so that some parameters are trained and the rest is frozen."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Self

from lorakit.arch import Architecture
from lorakit.data.slots import NO_SLOTS, Slots
from lorakit.section import Section

if TYPE_CHECKING:
    from torch import Tensor, nn

Coverage = dict[str, list[str]]
"""Target → the module paths that it matched."""


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
    def apply(self, model: "nn.Module", row: Architecture, seed: int) -> Coverage:
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

    def publish(self, state: "Mapping[str, Tensor]") -> "tuple[Method, Mapping[str, Tensor]]":
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


def publish(methods: Sequence[Method], state: "Mapping[str, Tensor]") -> "tuple[list[Method], dict[str, Tensor]]":
    """The methods of a run and its adapter as they leave it."""
    published: list[Method] = []
    for method in methods:
        left, state = method.publish(state)
        published.append(left)
    return published, dict(state)

"""What the prefix methods share: vectors that stand in the places that `encode` has kept in every row."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from pydantic import NonNegativeInt, model_validator

from lorakit.arch import Architecture
from lorakit.data.slots import Slots
from lorakit.errors import RecipeError
from lorakit.methods.base import Coverage, Method
from lorakit.runtime import derive

if TYPE_CHECKING:
    from torch import nn

    from lorakit.layers.places import Places

MODULE = "prefix"
"""Under this name the model holds what a prefix method trains."""
_TINY = 2


class PrefixMethod(Method, ABC):
    """A method that trains vectors in places of their own, beside a frozen model."""

    title: ClassVar[str]
    """For error messages."""

    @property
    @abstractmethod
    def slots(self) -> Slots:
        """See `Method`."""

    def unmergeable(self) -> str | None:
        """Vectors have no place in the base's tensors."""
        return (
            f"method: {self.name}: trained {self.title} are no part of the base's weights, so that no merge can hold "
            "them: keep the adapter (lorakit eval and predict take the run), or train lora"
        )

    def apply(self, model: "nn.Module", row: Architecture, seed: int) -> Coverage:
        """Add the vectors, and the hooks that put them into their places."""
        from lorakit.layers.places import Places, reader

        if not row.places:
            raise RecipeError(f"method: {self.name}: is not known for {row.model_type} models; use lora")
        pad = getattr(model.config, "pad_token_id", None)
        places = Places(self.slots, stand_in=1 if pad == 0 else 0)
        places.watch(reader(model))
        device = next(model.parameters()).device
        module, coverage = self.build(model, row, places, derive(seed, self.name))
        model.add_module(MODULE, module.to(device))
        return coverage

    @abstractmethod
    def build(self, model: "nn.Module", row: Architecture, places: "Places", seed: int) -> "tuple[nn.Module, Coverage]":
        """The trained module, its hooks registered on the model, and what they were put on."""


class PromptVectors(PrefixMethod, ABC):
    """Vectors in front of the text and behind the prompt (section 5.1: l_p and l_i)."""

    prefix: NonNegativeInt = 8
    """l_p: vectors in front of the text."""
    infix: NonNegativeInt = 8
    """l_i: vectors behind the prompt; in a text that is classified in front of its last token."""

    @model_validator(mode="after")
    def _some(self) -> "PromptVectors":
        if not self.slots.count:
            raise ValueError("prefix and infix are both 0, so nothing would be trained")
        return self

    @property
    def slots(self) -> Slots:
        """See `Method`."""
        return Slots(self.prefix, self.infix)

    def shrunk(self) -> "PromptVectors":
        """See `Method`."""
        return self.model_copy(update={"prefix": min(_TINY, self.prefix), "infix": min(_TINY, self.infix)})

"""What the prefix methods share: vectors that stand in the places that `encode` has kept in every row.

The vectors are put in by hooks on the frozen model, while it reads whole rows; when it goes on from its cache token by
token, nothing has to be done. Knowledge of how transformers calls its modules stays in this file.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from pydantic import NonNegativeInt, model_validator
from torch import Tensor, nn

from lorakit.arch import Architecture, Rows
from lorakit.data.slots import PLACEHOLDER, Slots
from lorakit.errors import RecipeError
from lorakit.methods.base import Coverage, Method
from lorakit.runtime import derive

MODULE = "prefix"
"""Under this name the model holds what a prefix method trains."""
_TINY = 2


class Places(nn.Module):
    """Finds the places in what the body reads, and gives them ids that have an embedding.

    Args:
        slots: How many there are in each row.
        stand_in: An id that is in the vocabulary and no padding; what it stands for is overwritten.
    """

    def __init__(self, slots: Slots, stand_in: int) -> None:
        super().__init__()
        self.slots, self.stand_in = slots, stand_in
        self.at: Tensor | None = None
        """(batch, count) positions in the rows that are being read; None where none has places."""

    def watch(self, body: nn.Module) -> None:
        """Look at all that a body reads from now on."""
        body.register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        ids: Tensor = args[0] if args else kwargs["input_ids"]
        cache = kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0:
            self.at = None
            return None
        # The ids of places are the largest, so that the top ones are they, the last vector's first. Looking for them
        # with a comparison would give a number of places that depends on the data, and a memory model has none.
        self.at = ids.topk(self.slots.count, dim=1).indices.flip(1)
        ids = ids.where(ids < PLACEHOLDER, self.stand_in)
        return ((ids, *args[1:]), kwargs) if args else (args, {**kwargs, "input_ids": ids})

    def put(self, hidden: Tensor, vectors: Tensor, columns: Rows | None = None) -> Tensor:
        """Overwrite the places.

        Args:
            hidden: (batch, seq, dim).
            vectors: (count, columns).
            columns: Of `hidden`; None for all.

        Returns:
            A fresh tensor of `hidden`'s shape and dtype.
        """
        if self.at is None:
            return hidden
        at = self.at[..., None].expand(-1, -1, hidden.shape[-1])
        values = vectors.to(hidden.dtype).expand(len(hidden), -1, -1)
        if columns is not None:
            whole = hidden.gather(1, at)
            whole[..., columns if isinstance(columns, slice) else list(columns)] = values
            values = whole
        return hidden.scatter(1, at, values)


def reader(model: nn.Module) -> nn.Module:
    """The module that every forward pass hands the ids to; of OPT's language model that is a part of the body."""
    body: nn.Module = model.base_model  # type: ignore[assignment]
    part: nn.Module = getattr(body, "decoder", body)
    return part


def first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A block's hidden states (batch, seq, dim), given by position or by name."""
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


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

    def apply(self, model: nn.Module, row: Architecture, seed: int) -> Coverage:
        """Add the vectors, and the hooks that put them into their places."""
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
    def build(self, model: nn.Module, row: Architecture, places: Places, seed: int) -> tuple[nn.Module, Coverage]:
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


def sample_words(vocabulary: int, count: int, seed: int) -> Tensor:
    """(count,) random ids, a function of the seed alone."""
    return torch.randint(0, vocabulary, (count,), generator=torch.Generator().manual_seed(seed))

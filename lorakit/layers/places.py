"""Vectors in the places that `encode` has kept in every row, put there by hooks on a frozen model.

They are put in while it reads whole rows; when it goes on from its cache token by token, nothing has to be done.
Knowledge of how transformers calls its modules stays in this file.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lorakit.arch import Rows
from lorakit.data.slots import PLACEHOLDER, Slots


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


def sample_words(vocabulary: int, count: int, seed: int) -> Tensor:
    """(count,) random ids, a function of the seed alone."""
    return torch.randint(0, vocabulary, (count,), generator=torch.Generator().manual_seed(seed))


class EmbeddedVectors(nn.Module):
    """Vectors at the output of the table of embeddings.

    Args:
        vectors: (count, dim) initial values.
        places: Where they stand.
    """

    def __init__(self, vectors: Tensor, places: Places) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors)
        self.places = places

    def after(self, _: nn.Module, args: Any, embedded: Tensor) -> Tensor:
        """Hook of the table: (batch, seq, dim) with the vectors in their places."""
        return self.places.put(embedded, self.vectors)


class LayerVectors(nn.Module):
    """Vectors at the input of every block.

    Args:
        vectors: (blocks, count, dim) initial values.
        places: Where they stand.
    """

    def __init__(self, vectors: Tensor, places: Places) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors)
        self.places = places

    def watch(self, block: nn.Module, index: int) -> None:
        """Put the vectors into what a block reads."""
        block.register_forward_pre_hook(_Before(self, index), with_kwargs=True)


class _Before:
    """Hook of one block; an object, so that a copy of the model has hooks of its own."""

    def __init__(self, owner: LayerVectors, index: int) -> None:
        self.owner, self.index = owner, index

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        hidden = self.owner.places.put(first_input(args, kwargs), self.owner.vectors[self.index])
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})


def read_by(model: nn.Module, found: list[nn.Module], count: int, seed: int) -> Tensor:
    """(blocks, count, dim): what the blocks read of random words."""
    table: Any = model.get_input_embeddings()  # type: ignore[operator]
    if table.weight.is_meta:
        return torch.empty(len(found), count, model.config.hidden_size, device="meta")  # type: ignore[union-attr, arg-type]
    seen: list[Tensor] = []
    hooks = [
        block.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(first_input(args, kwargs)[0].float().clone()), with_kwargs=True
        )
        for block in found
    ]
    words = sample_words(table.weight.shape[0], count, seed).to(table.weight.device)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            reader(model)(input_ids=words[None], attention_mask=torch.ones_like(words[None]))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return torch.stack(seen)

"""Trained keys and values of every layer, and the hooks that put them into their places."""

from typing import Any

import torch
from torch import Tensor, nn

from lorakit.arch import Rows
from lorakit.layers.places import Places


class KeysAndValues(nn.Module):
    """Keys and values of every layer, as they are or as what a small network makes of trained embeddings.

    Args:
        count: Vectors in front of the text.
        size: Of all layers' keys and values together: layer 0's keys, layer 0's values, layer 1's keys, …
        places: Where they stand.
        hidden: Width of the network; None: keys and values are trained as they are.
        dim: Of the network's embeddings.
    """

    def __init__(self, count: int, size: int, places: Places, hidden: int | None, dim: int) -> None:
        super().__init__()
        self.places = places
        self.now: Tensor | None = None
        if hidden is None:
            self.vectors = nn.Parameter(torch.empty(count, size))
        else:
            self.embedding = nn.Parameter(torch.empty(count, dim))
            self.down = nn.Linear(dim, hidden)
            self.up = nn.Linear(hidden, size)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the values: N(0, 0.02²), but N(0, 1) for the network's embeddings and zero for its biases."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=1.0 if name == "embedding" else 0.02, generator=generator)

    def all(self) -> Tensor:
        """(count, size)."""
        if hasattr(self, "vectors"):
            return self.vectors
        return fold(self.embedding, self.down.weight, self.down.bias, self.up.weight, self.up.bias)

    def begin(self, *_: Any) -> None:
        """Hook of the body: computed once for all layers."""
        self.now = self.all()


def fold(embedding: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor) -> Tensor:
    """up(tanh(down(embedding))): (count, dim) → (count, size), in float32."""
    with torch.autocast(embedding.device.type, enabled=False):
        return torch.tanh(embedding @ down.T + down_bias) @ up.T + up_bias


class Layer:
    """The hooks of one block: its projection's first output gets the keys or values, at the places alone.

    Only the first: DeBERTa sends its relative positions through the same projections.
    """

    def __init__(self, owner: KeysAndValues) -> None:
        self.owner = owner
        self.due: set[str] = set()

    def begin(self, *_: Any) -> None:
        """Hook of the attention: below the block, which checkpointing may not call again as a whole."""
        self.due = {"k", "v"}


class Projected:
    """Hook of a projection; an object, so that a copy of the model has hooks of its own."""

    def __init__(self, layer: Layer, name: str, columns: slice, rows: Rows | None) -> None:
        self.layer, self.name, self.columns, self.rows = layer, name, columns, rows

    def __call__(self, _: nn.Module, args: Any, projected: Tensor) -> Tensor:
        """(batch, seq, columns) with the vectors in their places."""
        owner = self.layer.owner
        if self.name not in self.layer.due or owner.places.at is None:
            return projected
        self.layer.due.discard(self.name)
        assert owner.now is not None
        return owner.places.put(projected, owner.now[:, self.columns], self.rows)

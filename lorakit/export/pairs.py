"""A run's updates as one low-rank pair per module: what every format of adapters is made from."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lorakit.errors import MergeError
from lorakit.layers.low_rank import LoRALayer, LowRank, RowBlocks
from lorakit.merge_plan import adapted_layers


@dataclass(frozen=True)
class Pair:
    """The low-rank pair of a module: ΔW = scaling · b · a, of shapes (out, r) and (r, in).

    Args:
        a: (r, in); of a table of embeddings (r, vocabulary).
        b: (out, r); of a table of embeddings (dim, r).
        scaling: alpha / r, or whatever else the update is multiplied by.
    """

    a: Tensor
    b: Tensor
    scaling: float

    @property
    def rank(self) -> int:
        """Rows of a."""
        return self.a.shape[0]


def lora_layers(model: nn.Module) -> dict[str, LoRALayer]:
    """Path → adapted layer, of a model of which every adapted layer has a low-rank update.

    Raises:
        MergeError: There is none, or a layer of another kind.
    """
    layers = adapted_layers(model)
    if not layers:
        raise MergeError("this run adapts no matrix, and formats of adapters hold low-rank updates; use lorakit merge")
    foreign = [path for path, layer in layers.items() if not isinstance(layer, LoRALayer)]
    if foreign:
        kind = type(layers[foreign[0]]).__name__
        raise MergeError(f"{foreign[0]}: {kind} is no low-rank update, as formats of adapters hold; use lorakit merge")
    return {path: layer for path, layer in layers.items() if isinstance(layer, LoRALayer)}


def pair_of(layer: LoRALayer) -> Pair:
    """The layer's update as one pair; row blocks become one pair of their ranks' sum, with each B in its own rows.

    Where the blocks' scalings differ, each B takes up what its own differs from the first's.
    """
    update = layer.update
    if isinstance(update, LowRank):
        b, a = update.pair()
        return Pair(a, b, update.scaling)
    assert isinstance(update, RowBlocks)
    blocks = update.pairs()
    scaling = next(iter(blocks.values())).scaling
    a = torch.cat([block.pair()[1] for block in blocks.values()])
    b = a.new_zeros(update.out_features, a.shape[0])
    column = 0
    for name, block in blocks.items():
        own = block.pair()[0]
        b[update.rows(name), column : column + own.shape[1]] = own * (block.scaling / scaling)
        column += own.shape[1]
    return Pair(a, b, scaling)

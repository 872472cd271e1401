"""What servers of adapters can take: plain low-rank updates of the blocks' matrices, and nothing beside them."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn

from lorakit.errors import MergeError
from lorakit.export.base import whole_tensors
from lorakit.export.pairs import Pair, lora_layers, pair_of
from lorakit.layers.dora import DoRALayer
from lorakit.layers.low_rank import LoRALayer

if TYPE_CHECKING:
    from lorakit.checkpoint import Opened


def folded_pairs(opened: "Opened", server: str) -> dict[str, Pair]:
    """The update of every adapted module with its scaling folded into B in float32, so that ΔW = b · a.

    Folding removes what servers read differently or not at all: rsLoRA, and alphas of single modules.

    Args:
        opened: The run; its frozen part may be a skeleton.
        server: What is to read the files, for the errors.

    Raises:
        MergeError: Names each thing that was trained and that such a server does not take, and the way that does.
    """
    layers = lora_layers(opened.prepared.model)
    kinds: dict[str, list[str]] = {}
    for kind, name in _strange(opened, layers):
        kinds.setdefault(kind, []).append(name)
    problems = [
        f"{names[0]}{f' (and {len(names) - 1} more)' if len(names) > 1 else ''}: {kind}, which {server} does not take; "
        "use lorakit merge, or --to peft for PEFT alone"
        for kind, names in kinds.items()
    ]
    if problems:
        raise MergeError(*problems)
    pairs = {path: pair_of(layer) for path, layer in layers.items()}
    return {path: Pair(pair.a.float(), pair.b.float() * pair.scaling, 1.0) for path, pair in pairs.items()}


def _strange(opened: "Opened", layers: dict[str, LoRALayer]) -> Iterator[tuple[str, str]]:
    """What was trained and is no plain update of a block's matrix: (what it is, its name)."""
    inside = f".{opened.prepared.row.blocks}."
    for path, layer in layers.items():
        if isinstance(layer, DoRALayer):
            yield "has magnitudes of DoRA", path
        elif isinstance(layer.frozen, nn.Embedding) or inside not in f".{path}":
            yield "is outside the blocks", path
    for name in whole_tensors(opened):
        if opened.prepared.in_head(name):
            yield "is a trained head", name
        else:
            yield "is a trained bias" if name.endswith(".bias") else "is trained whole", name

"""What servers of adapters can take: plain low-rank updates of the blocks' matrices, and nothing beside them."""

from typing import TYPE_CHECKING

from torch import nn

from lorakit.errors import MergeError
from lorakit.export.base import whole_tensors
from lorakit.export.pairs import Pair, lora_layers, pair_of
from lorakit.methods.dora import DoRALayer
from lorakit.methods.low_rank import LoRALayer

if TYPE_CHECKING:
    from lorakit.checkpoint import Opened
    from lorakit.model import Prepared


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
    problems = [*_layer_problems(opened.prepared, layers, server), *_whole_problems(opened, server)]
    if problems:
        raise MergeError(*problems)
    pairs = {path: pair_of(layer) for path, layer in layers.items()}
    return {path: Pair(pair.a.float(), pair.b.float() * pair.scaling, 1.0) for path, pair in pairs.items()}


def _layer_problems(prepared: "Prepared", layers: dict[str, LoRALayer], server: str) -> list[str]:
    problems = []
    inside = f".{prepared.row.blocks}."
    for path, layer in layers.items():
        if isinstance(layer, DoRALayer):
            problems.append(
                f"{path}: DoRA's magnitudes, which {server} does not take; --to peft holds them, or use lorakit merge"
            )
        elif isinstance(layer.frozen, nn.Embedding) or inside not in f".{path}":
            problems.append(
                f"{path}: is outside the blocks, where {server} takes no adapter, or not in every version; --to peft "
                "holds it, or use lorakit merge"
            )
    return problems[:1] + [f"and {len(problems) - 1} more such modules"] if len(problems) > 1 else problems


def _whole_problems(opened: "Opened", server: str) -> list[str]:
    kinds: dict[str, list[str]] = {}
    for name in whole_tensors(opened):
        head = opened.prepared.in_head(name)
        kind = (
            "a trained head" if head else "a trained bias" if name.endswith(".bias") else "trained beside the matrices"
        )
        kinds.setdefault(kind, []).append(name)
    return [
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {kind}, which {server} does not take; "
        "--to peft holds what PEFT can, or use lorakit merge"
        for kind, names in kinds.items()
    ]

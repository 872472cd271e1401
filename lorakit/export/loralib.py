"""A checkpoint as the authors' own code reads it: what loralib's `lora_state_dict` gives, saved by `torch.save`."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from lorakit.checkpoint import head_of
from lorakit.errors import MergeError
from lorakit.export.base import Exporter, Read, whole_tensors
from lorakit.layers.adapted import Edit
from lorakit.layers.dora import DoRALayer
from lorakit.layers.low_rank import LoRALayer, LowRank, RowBlocks, low_rank_edit, stacked
from lorakit.merge_plan import adapted_layers

if TYPE_CHECKING:
    from lorakit.checkpoint import Opened

FILE = "lora.pt"
WRAPPED_IN = "model_state_dict"
"""Where the files of the authors' GPT-2 code hold their tensors; those of the encoders hold them at once."""


@dataclass(frozen=True)
class _Stack:
    """What stands in the file for one module: ΔW = alpha / r · B A, or, of a `MergedLinear`, so for each of its parts.

    Args:
        a: (n·r, in).
        b: (rows, r).
        rank: r.
        scaling: Of ΔW.
    """

    a: Tensor
    b: Tensor
    rank: int
    scaling: float


class LoraLib(Exporter):
    """A `.pt` for `model.load_state_dict(torch.load(…), strict=False)` of a model made of loralib's layers."""

    name: Literal["loralib"] = "loralib"

    def write(self, opened: "Opened", out: Path) -> None:
        """See `Exporter`."""
        stacks = _stacks(opened.prepared.model)
        alpha, tensors = _alpha(stacks), dict(whole_tensors(opened))
        for path, stack in stacks.items():
            tensors[f"{path}.lora_A"] = stack.a.contiguous()
            tensors[f"{path}.lora_B"] = (stack.b * (stack.scaling * stack.rank / alpha)).contiguous()
        wrapped = head_of(opened.recipe).kind == "generation"
        torch.save({WRAPPED_IN: tensors} if wrapped else tensors, out / FILE)

    def loading(self, opened: "Opened") -> str:
        """See `Exporter`. It says what the file does not."""
        stacks = _stacks(opened.prepared.model)
        (most, _), *_ = Counter(stack.rank for stack in stacks.values()).most_common(1)
        others = {path: stack.rank for path, stack in stacks.items() if stack.rank != most}
        lines = [
            f"`{FILE}` holds what loralib's `lora_state_dict` gives. It does not say how to make the layers:",
            "",
            f"- `lora_alpha={_alpha(stacks):g}`",
            f"- `r={most}`" + ("; of single layers:" if others else ""),
            *(f"  - `{path}`: `r={rank}`" for path, rank in others.items()),
            "",
            "```python",
            f'state = torch.load("{FILE}", weights_only=True)',
            f'model.load_state_dict(state.get("{WRAPPED_IN}", state), strict=False)',
            "```",
        ]
        return "\n".join(lines) + "\n"

    def read(self, opened: "Opened", out: Path) -> Read:
        """See `Exporter`."""
        alpha = _alpha(_stacks(opened.prepared.model))
        found = torch.load(out / FILE, map_location="cpu", weights_only=True)
        tensors: dict[str, Tensor] = dict(found.get(WRAPPED_IN, found))
        edits: dict[str, Edit] = {}
        for path, layer in adapted_layers(opened.prepared.model).items():
            if f"{path}.lora_A" not in tensors:
                continue
            a, b = tensors.pop(f"{path}.lora_A"), tensors.pop(f"{path}.lora_B")
            rank = b.shape[1]
            assert isinstance(layer, LoRALayer)
            if isinstance(layer.update, RowBlocks):
                rows = [layer.update.rows(name) for name in _in_order(layer.update)]
                parts = zip(rows, torch.split(b, len(b) // len(rows)), torch.split(a, rank), strict=True)
                b, a = stacked(layer.update.out_features, list(parts))
            edits[path] = low_rank_edit(layer.frozen, b * (alpha / rank), a)
        return Read(edits, tensors)


def _stacks(model: nn.Module) -> dict[str, _Stack]:
    layers = adapted_layers(model)
    if not layers:
        raise MergeError("this run adapts no matrix, and loralib's format holds low-rank updates; use lorakit merge")
    problems = []
    found = {}
    for path, layer in layers.items():
        if isinstance(layer, DoRALayer) or not isinstance(layer, LoRALayer):
            kind = "DoRA" if isinstance(layer, DoRALayer) else type(layer).__name__
            problems.append(f"{path}: {kind} has no form in loralib; use lorakit export --to peft, or lorakit merge")
            continue
        stack = _stack(layer.update)
        if isinstance(stack, str):
            problems.append(f"{path}: {stack}; use lorakit export --to peft, or lorakit merge")
        else:
            found[path] = stack
    if problems:
        raise MergeError(*problems)
    return found


def _stack(update: LowRank | RowBlocks) -> _Stack | str:
    """The factors of a module's update as loralib holds them, or why it cannot.

    The parts of a `MergedLinear` share one rank: pairs of a lower one are filled up with zeros.
    """
    if isinstance(update, LowRank):
        b, a = update.pair()
        return _Stack(a, b, a.shape[0], update.scaling)
    pairs = update.pairs()
    blocks = {name: update.rows(name) for name in pairs}
    slices = [rows for rows in blocks.values() if isinstance(rows, slice)]
    sizes = {rows.stop - rows.start for rows in slices}
    if len(slices) < len(blocks) or len(sizes) > 1 or update.out_features % next(iter(sizes), 1):
        return f"the rows of {', '.join(blocks)} are no equal parts of it, which loralib's MergedLinear needs"
    ordered = _in_order(update)
    rank = max(pair.pair()[1].shape[0] for pair in pairs.values())
    scaling = pairs[ordered[0]].scaling
    rights: list[Tensor] = []
    lefts: list[Tensor] = []
    for name in ordered:
        left, right = pairs[name].pair()
        missing = rank - right.shape[0]
        rights.append(nn.functional.pad(right, (0, 0, 0, missing)))
        lefts.append(nn.functional.pad(left, (0, missing)) * (pairs[name].scaling / scaling))
    return _Stack(torch.cat(rights), torch.cat(lefts), rank, scaling)


def _in_order(update: RowBlocks) -> list[str]:
    """The blocks' names in the order of their rows."""
    return sorted(update.pairs(), key=lambda name: int(torch.arange(update.out_features)[update.rows(name)][0]))


def _alpha(stacks: Mapping[str, _Stack]) -> float:
    """The one alpha that loralib's layers are to be made with: that of most modules; B takes up what others have."""
    alphas = Counter(round(stack.scaling * stack.rank, 12) for stack in stacks.values())
    return alphas.most_common(1)[0][0]

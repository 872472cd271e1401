"""The two ways to merge a run whose base was in 4 bits: how far each leads from the model that was trained.

The update was trained to go with the weights that 4 bits left, rounding errors included. Added to those it gives the
trained model; added to the original weights it meets errors that are not there.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lorakit.merge_check import adapted_model, logits_of, merged_model
from lorakit.merge_plan import adapted_layers
from lorakit.nf4 import Onto
from lorakit.surgery import replace

if TYPE_CHECKING:
    from lorakit.checkpoint import Opened


def compare_routes(
    opened: "Opened", merged: Path, batches: Sequence[Mapping[str, Tensor]], dtype: torch.dtype
) -> dict[Onto, float]:
    """||merged - trained|| / ||trained|| over the logits of real rows, in float32, for both ways.

    The way that was gone is measured on the files, the other in memory. One model is loaded at a time.

    Args:
        opened: The run.
        merged: The merged directory.
        batches: Model inputs.
        dtype: Of the merged weights.
    """
    trained = list(logits_of(adapted_model(opened, "trained"), batches))
    other: Onto = "original" if opened.onto == "trained" else "trained"
    found = {opened.onto: _relative(trained, logits_of(merged_model(opened, merged), batches))}
    folded = adapted_model(opened, other)
    _fold(folded, dtype)
    found[other] = _relative(trained, logits_of(folded, batches))
    order: tuple[Onto, Onto] = ("trained", "original")
    return {way: found[way] for way in order}


def _relative(trained: Sequence[Tensor], other: Iterable[Tensor]) -> float:
    apart = whole = 0.0
    for one, two in zip(trained, other, strict=True):
        apart += float((one - two).double().square().sum())
        whole += float(one.double().square().sum())
    return (apart / whole) ** 0.5 if whole else 0.0


def _fold(model: nn.Module, dtype: torch.dtype) -> None:
    """Merge a live model in place, rounded once to a dtype and computed in float32."""
    for path, layer in adapted_layers(model).items():
        weight = layer.weight.detach()
        with torch.no_grad():
            edited = layer.edit(lambda weight=weight: iter([(0, weight)])).rows(weight, 0)  # type: ignore[misc]
        plain = layer.frozen
        plain.weight = nn.Parameter(edited.to(dtype).float(), requires_grad=False)
        replace(model, path, plain)

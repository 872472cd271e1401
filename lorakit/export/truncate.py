"""A lower rank afterwards: each module's ΔW replaced by the nearest matrix of a given rank (Eckart and Young 1936).

Only factors are decomposed, never ΔW = b · a itself: with the QR decompositions b = Q₁ R₁ and aᵀ = Q₂ R₂ its singular
values are those of R₁ R₂ᵀ, which is r × r. What is cut is the tail of the singular values; its norm is the error.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lorakit.errors import MergeError
from lorakit.export.pairs import lora_layers
from lorakit.layers.dora import DoRALayer
from lorakit.layers.low_rank import LoRALayer, LowRank, LowRankEmbedding
from lorakit.methods.lora import LoRA
from lorakit.surgery import trainable_state

if TYPE_CHECKING:
    from lorakit.checkpoint import Opened


@dataclass(frozen=True)
class Truncation:
    """What was cut, and what it cost.

    Args:
        rank: At most this much is left of each module's.
        modules: Of how many something was cut.
        error: ‖ΔW - ΔW cut‖ / ‖ΔW‖ (Frobenius) over all modules together.
        worst: Likewise, of the module where it is largest.
        worst_module: That module's path.
    """

    rank: int
    modules: int
    error: float
    worst: float
    worst_module: str

    def rows(self) -> list[tuple[str, str]]:
        """Label and value, for a table."""
        return [
            (f"modules cut to rank {self.rank}", f"{self.modules:,}"),
            ("relative error of ΔW by that", f"{self.error:.2%}"),
            ("of the worst module", f"{self.worst:.2%}, {self.worst_module}"),
        ]

    def note(self) -> str:
        """A sentence for the model card."""
        return (
            f"{self.modules} modules' updates were cut to rank {self.rank} by a singular value decomposition; that "
            f"changed ΔW by {self.error:.2%} (Frobenius norm), that of {self.worst_module}, the worst, by "
            f"{self.worst:.2%}. Scores below are those before it."
        )


def truncate(opened: "Opened", rank: int) -> "tuple[Opened, Truncation]":
    """Cut every module's ΔW to a rank; a module that has no more keeps its pair as it is.

    A fused projection's row blocks are cut together, as one matrix.

    Args:
        opened: A run; its model is changed in place.
        rank: At least 1.

    Returns:
        The run with the updates that are left, and what was lost.

    Raises:
        MergeError: The run has no low-rank updates, or scales them by DoRA's magnitudes, which belong to the whole ΔW.
    """
    layers = lora_layers(opened.prepared.model)
    if dora := [path for path, layer in layers.items() if isinstance(layer, DoRALayer)]:
        raise MergeError(
            f"{dora[0]}: DoRA's magnitudes belong to the whole ΔW, which --rank would cut; leave --rank out, or use "
            "lorakit merge"
        )
    cut, lost, total = 0, dict.fromkeys(layers, 0.0), dict.fromkeys(layers, 0.0)
    for path, layer in layers.items():
        left, right = layer.update.factors()
        b, a, values = best(left, right, rank)
        total[path] = float(values.square().sum())
        if right.shape[0] > rank:
            layer.update = _pair(layer, b, a)
            cut += 1
            lost[path] = float(values[rank:].square().sum())
    errors = {path: _relative(lost[path], total[path]) for path in layers}
    worst = max(errors, key=lambda path: errors[path])
    plain = [
        method.model_copy(update={"rank": rank, "alpha": float(rank), "ranks": {}, "alphas": {}, "rslora": False})
        if isinstance(method, LoRA)
        else method
        for method in opened.prepared.methods
    ]
    left_over = replace(
        opened, prepared=replace(opened.prepared, methods=plain), state=trainable_state(opened.prepared.model)
    )
    whole = _relative(sum(lost.values()), sum(total.values()))
    return left_over, Truncation(rank, cut, whole, errors[worst], worst)


def _relative(lost: float, total: float) -> float:
    """√(lost / total) of two squared norms."""
    return math.sqrt(lost / total) if total else 0.0


def best(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest matrix of a rank to left · right, and all singular values.

    Args:
        left: (out, r).
        right: (r, in).
        rank: Of the result.

    Returns:
        (out, rank) and (rank, in), float32, each with the square roots of the singular values; (min(r, out, in),)
        float64.
    """
    u, values, v = decompose(left, right)
    roots = values[:rank].sqrt()
    return (u[:, :rank] * roots).float(), (roots[:, None] * v[:, :rank].T).float(), values


def decompose(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The singular value decomposition of left · right, from the factors alone.

    Args:
        left: (out, r).
        right: (r, in).

    Returns:
        u (out, k), the singular values (k,), falling, and v (in, k), float64, with left · right = u · diag(values) · vᵀ
        and k = min(r, out, in).
    """
    q1, r1 = torch.linalg.qr(left.double())
    q2, r2 = torch.linalg.qr(right.double().T)
    u, values, v = torch.linalg.svd(r1 @ r2.T, full_matrices=False)
    return q1 @ u, values, q2 @ v.T


def _pair(layer: LoRALayer, b: Tensor, a: Tensor) -> LowRank:
    kind = LowRankEmbedding if isinstance(layer.frozen, nn.Embedding) else LowRank
    update = kind(a.shape[1], b.shape[0], a.shape[0], 1.0)
    with torch.no_grad():
        update.A.copy_(a)
        update.B.copy_(b)
    return update

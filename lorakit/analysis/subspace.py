"""How much two runs' updates of one matrix point the same way: φ of the paper's §7.2 and appendix G."""

import torch
from torch import Tensor

from lorakit.layers.low_rank import LowRank


def directions(pair: LowRank) -> dict[str, Tensor]:
    """What a pair reads and what it writes, the strongest first, as the paper has it.

    Args:
        pair: (b, a), of shapes (out, r) and (r, in).

    Returns:
        "A" → the right singular vectors of A, (in, k); "B" → the left ones of B, (out, k); k is the factor's rank,
        since directions of singular value 0 are any.
    """
    b, a = pair.pair()
    return {"A": _left(a.double().T), "B": _left(b.double())}


def overlap(one: Tensor, other: Tensor) -> Tensor:
    """φ(i, j) of the first i directions of one subspace and the first j of another, for all i and j at once.

    φ(i, j) = ‖U₁ᵀU₂‖_F² / p = 1 - d²/p with p = min(i, j) and d² = p - Σ σ², the squared projection distance on the
    Grassmannian (σ: the singular values of U₁ᵀU₂). 1 where one space lies in the other, 0 where they are orthogonal.

    Args:
        one: (n, r₁), orthonormal columns.
        other: (n, r₂), likewise.

    Returns:
        (r₁, r₂) float64, φ(i, j) at [i - 1, j - 1].
    """
    sums = (one.T @ other).square().cumsum(0).cumsum(1)  # of rows 1 … i and columns 1 … j
    i, j = torch.arange(1, len(sums) + 1), torch.arange(1, sums.shape[1] + 1)
    phi: Tensor = sums / torch.minimum(i[:, None], j[None, :])
    return phi


def by_chance(i: int, j: int, size: int) -> float:
    """The expectation of φ(i, j) of two random subspaces of `size` dimensions.

    Each of the i · j squared entries of U₁ᵀU₂ is 1/n in the mean; over min(i, j) that is max(i, j) / n.
    """
    return max(i, j) / size


def _left(factor: Tensor) -> Tensor:
    """Left singular vectors of a tall factor (n, r), as many as its rank."""
    u: Tensor
    u, values, _ = torch.linalg.svd(factor, full_matrices=False)
    tiny = torch.finfo(torch.float32).eps * max(factor.shape)  # the factors were trained in float32
    return u[:, values > tiny * values[:1]] if len(values) and values[0] > 0 else u[:, :0]

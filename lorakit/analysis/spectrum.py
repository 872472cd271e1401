"""The singular values of ΔW, and how many of them count."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lorakit.export.truncate import decompose
from lorakit.layers.low_rank import LowRank

ENERGY = 0.99
"""Share of ‖ΔW‖² that a rank has to keep to be enough."""


@dataclass(frozen=True)
class Decomposed:
    """ΔW = u · diag(values) · vᵀ.

    Args:
        u: (out, k), orthonormal columns.
        values: (k,), falling.
        v: (in, k), orthonormal columns.
    """

    u: Tensor
    values: Tensor
    v: Tensor


@dataclass(frozen=True)
class Spectrum:
    """What the singular values of ΔW say.

    Args:
        values: All that the update can have, falling.
        norm: ‖ΔW‖_F.
        effective_rank: See `effective_rank`.
        energy_rank: See `energy_rank`.
    """

    values: list[float]
    norm: float
    effective_rank: float
    energy_rank: int


def of_pair(pair: LowRank) -> Decomposed:
    """The decomposition of a pair's ΔW from its factors: the matrix itself is never made."""
    u, values, v = decompose(*pair.factors())
    return Decomposed(u, values, v)


def of_matrix(delta: Tensor) -> Decomposed:
    """The decomposition of a ΔW that is no product of two thin factors.

    Args:
        delta: (out, in).
    """
    u, values, vt = torch.linalg.svd(delta.double(), full_matrices=False)
    return Decomposed(u, values, vt.T)


def spectrum(values: Tensor) -> Spectrum:
    """All numbers of a spectrum.

    Args:
        values: The singular values, falling.
    """
    norm = float(torch.linalg.vector_norm(values))
    return Spectrum(values.tolist(), norm, effective_rank(values), energy_rank(values.square()))


def effective_rank(values: Tensor) -> float:
    """The exponential of the entropy of the singular values' shares (Roy and Vetterli 2007, "The effective rank").

    It is k for k equal values, near 1 where one is far larger than the others, and 0 for a matrix of zeros.

    Args:
        values: The singular values.
    """
    shares = values[values > 0] / values.sum()
    return math.exp(float(torch.special.entr(shares).sum())) if len(shares) else 0.0


def energy_rank(energies: Tensor, share: float = ENERGY) -> int:
    """The smallest rank that keeps a share of the energy; 0 where there is none.

    Args:
        energies: The squares of singular values, falling; of several matrices, their sums by index.
        share: Of Σ σ².
    """
    kept = energies.double().cumsum(0)
    if not len(kept) or not kept[-1] > 0:
        return 0
    return int((kept < share * kept[-1] * (1 - 1e-12)).sum()) + 1

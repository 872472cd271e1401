"""Whether ΔW strengthens what W already does: ‖UᵀWVᵀ‖_F and the amplification factor of the paper's §7.3, Table 7."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lorakit.analysis.spectrum import Decomposed


@dataclass(frozen=True)
class Amplification:
    """W, seen in the first r directions of ΔW, of W itself, and of chance.

    Args:
        directions: r.
        base_norm: ‖W‖_F.
        onto_update: ‖UᵀWV‖_F for the first r singular vectors of ΔW.
        onto_base: For those of W: √(σ₁² + … + σᵣ²), the most that r directions can hold.
        onto_random: For those of a random matrix, one draw; about r ‖W‖_F / √(out · in).
        factor: ‖ΔW‖_F / ‖UᵀWV‖_F: how many times as large ΔW is there as W; None where W has nothing there.
    """

    directions: int
    base_norm: float
    onto_update: float
    onto_base: float
    onto_random: float
    factor: float | None


def amplification(
    update: Decomposed, weight: Tensor, base_values: Tensor, directions: int, seed: int
) -> Amplification | None:
    """The row of Table 7 for one matrix.

    Args:
        update: Of ΔW.
        weight: W, (out, in).
        base_values: W's singular values, falling.
        directions: r, at most so many; fewer where ΔW has fewer.
        seed: Of the random matrix.

    Returns:
        None where ΔW is zero.
    """
    r = min(directions, int((update.values > 1e-6 * update.values[:1]).sum()))
    if not r or not update.values[0] > 0:
        return None
    onto_update = projected(update.u[:, :r], weight, update.v[:, :r])
    norm = float(torch.linalg.vector_norm(update.values))
    generator = torch.Generator().manual_seed(seed)
    random = [random_directions(size, r, generator) for size in weight.shape]
    return Amplification(
        directions=r,
        base_norm=float(torch.linalg.vector_norm(base_values)),
        onto_update=onto_update,
        onto_base=float(torch.linalg.vector_norm(base_values[:r])),
        onto_random=projected(random[0], weight, random[1]),
        factor=norm / onto_update if onto_update > 0 else None,
    )


def projected(u: Tensor, weight: Tensor, v: Tensor) -> float:
    """‖uᵀ · W · v‖_F.

    Args:
        u: (out, r).
        weight: (out, in).
        v: (in, r).
    """
    return float(torch.linalg.matrix_norm(u.to(weight.dtype).T @ weight @ v.to(weight.dtype)))


def random_directions(size: int, count: int, generator: torch.Generator) -> Tensor:
    """The first singular vectors of a Gaussian matrix are any orthonormal ones alike: (size, count), float64."""
    drawn = torch.randn(size, count, generator=generator, dtype=torch.float64)
    frame: Tensor = torch.linalg.qr(drawn)[0]
    return frame


def base_values(weight: Tensor) -> Tensor:
    """W's singular values, float64; on CUDA where there is one, since a CPU takes minutes for a large matrix.

    Args:
        weight: (out, in).
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    values: Tensor = torch.linalg.svdvals(weight.to(device))
    return values.cpu().double()

"""Low-rank updates of which everything is known beforehand."""

import torch
from torch import Tensor

from lorakit.layers.low_rank import LowRank


def frame(size: int, count: int, seed: int) -> Tensor:
    """Random orthonormal columns (size, count), float64."""
    generator = torch.Generator().manual_seed(seed)
    made: Tensor = torch.linalg.qr(torch.randn(size, count, generator=generator, dtype=torch.float64))[0]
    return made


def pair(b: Tensor, a: Tensor, scaling: float) -> LowRank:
    """An update with these factors, (out, r) and (r, in)."""
    made = LowRank(a.shape[1], b.shape[0], a.shape[0], scaling)
    with torch.no_grad():
        made.A.copy_(a)
        made.B.copy_(b)
    return made

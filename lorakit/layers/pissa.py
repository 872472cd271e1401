"""PiSSA (Meng et al. 2024, arXiv 2404.02948): LoRA that starts from a matrix's principal components.

The paper (section 3, equations 2 to 4) starts A and B from the r largest singular values of W0 = U S Vᵀ and freezes
the rest of W0. Here W0 stays as it is and what the pair began with is subtracted, which is the same function:
h = W0 x + scaling · (B A - B0 A0) x. So the base needs no second copy, and what was learned is a plain LoRA of rank 2r.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorakit.arch import Rows
from lorakit.layers.low_rank import LowRank, transposed
from lorakit.nf4 import weight_of


class Principal(LowRank):
    """A pair beside what it began with: x → scaling · (B A - B0 A0) x.

    Args:
        in_features: Columns of A (r, in).
        out_features: Rows of B (out, r).
        rank: r.
        scaling: As of `LowRank`.
    """

    saved_buffers: ClassVar[tuple[str, ...]] = ("A0", "B0")
    """Held by checkpoints: another machine's decomposition would not be the same to the last bit."""
    A0: Tensor
    B0: Tensor

    def __init__(self, in_features: int, out_features: int, rank: int, scaling: float) -> None:
        super().__init__(in_features, out_features, rank, scaling)
        self.register_buffer("A0", torch.zeros(rank, in_features))
        self.register_buffer("B0", torch.zeros(out_features, rank))

    def begin(self, weight: Tensor) -> None:
        """Start from the principal components of a matrix, so that scaling · B0 A0 is its best approximation of rank r.

        A = √(S / scaling) Vᵀ and B = U √(S / scaling), as PEFT has it: the pair's product, scaled, has the singular
        values of W0 itself.

        Args:
            weight: (out, in), real. Decomposed on CUDA where there is one: on a CPU a large matrix takes minutes.
        """
        device = "cuda" if torch.cuda.is_available() else weight.device
        u, s, vt = torch.linalg.svd(weight.detach().to(device, torch.float32), full_matrices=False)
        root = (s[: len(self.A)] / self.scaling).sqrt()
        with torch.no_grad():
            for tensor in (self.A, self.A0):
                tensor.copy_(root[:, None] * vt[: len(root)])
            for tensor in (self.B, self.B0):
                tensor.copy_(u[:, : len(root)] * root)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out), in the adapter's precision, or autocast's.

        B A - B0 A0 = B (A - A0) + (B - B0) A0. The right side is exactly zero at first, and does not lose a small
        difference of two large products to rounding.
        """
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.A.dtype)
        moved = F.linear(F.linear(x, self.A - self.A0), self.B)
        return (moved + F.linear(F.linear(x, self.A0), self.B - self.B0)) * self.scaling

    def pair(self) -> tuple[Tensor, Tensor]:
        """See `LowRank.pair`; of rank 2r."""
        return _joined(self.A.detach(), self.B.detach(), self.A0, self.B0)


def _joined(a: Tensor, b: Tensor, a0: Tensor, b0: Tensor) -> tuple[Tensor, Tensor]:
    """(b', a') of rank 2r with b' a' = b a - b0 a0, written as in `Principal.forward`."""
    return torch.cat([b, b - b0], dim=1), torch.cat([a - a0, a0])


def as_plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An adapter with every `Principal` pair in it turned into a plain one of twice the rank.

    Args:
        state: Canonical name → tensor.
    """
    found = dict(state)
    for name in state:
        path, _, last = name.rpartition(".")
        if last == "A0":
            a, b, a0, b0 = (found.pop(f"{path}.{key}") for key in ("A", "B", "A0", "B0"))
            found[f"{path}.B"], found[f"{path}.A"] = _joined(a, b, a0, b0)
    return found


def matrix(frozen: nn.Module, rows: Rows | None) -> Tensor:
    """The matrix that a module multiplies with, (out, in), or its rows of one block of a fused projection."""
    weight = weight_of(frozen).detach()
    weight = weight.T if transposed(frozen) else weight
    if rows is None:
        return weight
    return weight[rows if isinstance(rows, slice) else list(rows)]

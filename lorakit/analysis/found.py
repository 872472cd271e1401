"""What an analysis found, as values."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from lorakit.analysis.amplification import Amplification
from lorakit.analysis.sites import Site
from lorakit.analysis.spectrum import ENERGY, Spectrum, energy_rank
from lorakit.analysis.subspace import by_chance


@dataclass(frozen=True)
class MatrixFound:
    """One adapted matrix of one run.

    Args:
        site: Where it is.
        shape: (out, in).
        rank: Of the pair.
        spectrum: Of ΔW.
        amplification: Of W by ΔW; None where ΔW is zero.
    """

    site: Site
    shape: tuple[int, int]
    rank: int
    spectrum: Spectrum
    amplification: Amplification | None

    def kept(self) -> list[float]:
        """Share of ‖ΔW‖² that the first 1, 2, … singular values hold."""
        squares = [value**2 for value in self.spectrum.values]
        total = sum(squares)
        return [done / total if total else 0.0 for done in accumulate(squares)]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        amplified = None if self.amplification is None else asdict(self.amplification)
        spectrum = asdict(self.spectrum)
        return {
            **_place(self.site),
            "shape": list(self.shape),
            "rank": self.rank,
            "norm": spectrum["norm"],
            "effective_rank": spectrum["effective_rank"],
            "energy_rank": spectrum["energy_rank"],
            "singular_values": [float(f"{value:.7g}") for value in spectrum["values"]],
            "amplification": amplified,
        }


@dataclass(frozen=True)
class RunFound:
    """One run.

    Args:
        label: Its name in tables.
        directory: As it was given.
        seed: train.seed: what its A's started from.
        matrices: In the model's order.
    """

    label: str
    directory: str
    seed: int
    matrices: list[MatrixFound]

    def enough(self) -> int:
        """The smallest rank that, given to every matrix, keeps ENERGY of ‖ΔW‖² of all of them together."""
        longest = max(len(one.spectrum.values) for one in self.matrices)
        energies = torch.zeros(longest, dtype=torch.float64)
        for one in self.matrices:
            values = torch.tensor(one.spectrum.values, dtype=torch.float64)
            energies[: len(values)] += values.square()
        return energy_rank(energies)

    def enough_for_each(self) -> int:
        """The smallest rank that keeps ENERGY of each matrix's own."""
        return max(one.spectrum.energy_rank for one in self.matrices)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "run": self.directory,
            "label": self.label,
            "seed": self.seed,
            "suggested_rank": {"energy": ENERGY, "together": self.enough(), "each": self.enough_for_each()},
            "matrices": [one.as_dict() for one in self.matrices],
        }


@dataclass(frozen=True)
class Overlap:
    """φ of one factor of two runs.

    Args:
        grid: (r₁, r₂), φ(i, j) at [i - 1, j - 1]; empty where one of the factors is zero.
        size: Of the space that both are subspaces of.
    """

    grid: Tensor
    size: int

    @property
    def first(self) -> float | None:
        """φ(1, 1)."""
        return float(self.grid[0, 0]) if self.grid.numel() else None

    @property
    def whole(self) -> float | None:
        """φ of all directions of both."""
        return float(self.grid[-1, -1]) if self.grid.numel() else None

    @property
    def chance(self) -> float | None:
        """The expectation of `whole` of two random subspaces."""
        i, j = self.grid.shape
        return by_chance(i, j, self.size) if self.grid.numel() else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"space": self.size, "phi": [[round(value, 6) for value in row] for row in self.grid.tolist()]}


@dataclass(frozen=True)
class PairFound:
    """Two runs.

    Args:
        one: Label of the first.
        other: Of the second.
        overlaps: Matrix → "A" and "B" → φ, for what both have adapted.
    """

    one: str
    other: str
    overlaps: dict[Site, dict[str, Overlap]]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = [
            _place(site) | {factor: overlap.as_dict() for factor, overlap in both.items()}
            for site, both in self.overlaps.items()
        ]
        return {"one": self.one, "other": self.other, "matrices": found}


@dataclass(frozen=True)
class Analysis:
    """All of it.

    Args:
        base: The runs' base.
        runs: In the order given.
        pairs: Every two of them.
        layer: Whose φ is drawn; None where the matrices that the runs share are in no layer.
    """

    base: str
    runs: Sequence[RunFound]
    pairs: Sequence[PairFound]
    layer: int | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "base": self.base,
            "runs": [run.as_dict() for run in self.runs],
            "layer": self.layer,
            "pairs": [pair.as_dict() for pair in self.pairs],
        }


def _place(site: Site) -> dict[str, Any]:
    return {"module": site.path, "block": site.block or None, "name": site.name, "layer": site.layer}

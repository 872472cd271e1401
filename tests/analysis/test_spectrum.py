"""Spectra of planted updates equal their closed forms."""

import math

import pytest
import torch
from planted import frame, pair

from lorakit.analysis.spectrum import effective_rank, energy_rank, of_matrix, of_pair, spectrum


@pytest.mark.parametrize(("out", "in_"), [(40, 24), (24, 40)])
def test_a_planted_spectrum_is_found(out: int, in_: int) -> None:
    values = torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64)
    u, v, mixing = frame(out, 4, 1), frame(in_, 4, 2), frame(4, 4, 3) + 2 * torch.eye(4)
    update = of_pair(pair(u * values @ torch.linalg.inv(mixing), mixing @ v.T, 0.5))  # any factors of the product
    torch.testing.assert_close(update.values, values / 2, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close((update.u * u).sum(0).abs(), torch.ones(4).double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(update.u * update.values @ update.v.T, u * values @ v.T / 2, rtol=1e-4, atol=1e-5)
    dense = of_matrix(u * values @ v.T / 2)
    torch.testing.assert_close(dense.values[:4], values / 2)
    found = spectrum(dense.values)
    assert found.norm == pytest.approx(math.sqrt(85) / 2)
    # Energies 64, 16, 4, 1 of 85: three of them hold 98.8 %.
    assert (found.energy_rank, energy_rank(update.values**2, 0.98), energy_rank(update.values**2, 0.5)) == (4, 3, 1)
    shares = [8 / 15, 4 / 15, 2 / 15, 1 / 15]
    assert found.effective_rank == pytest.approx(math.exp(-sum(share * math.log(share) for share in shares)))


def test_a_rank_beyond_the_matrix() -> None:
    update = of_pair(pair(torch.randn(5, 9), torch.randn(9, 20), 1.0))
    assert (update.u.shape, update.values.shape, update.v.shape) == ((5, 5), (5,), (20, 5))


@pytest.mark.parametrize("count", [1, 3, 7])
def test_equal_values_have_their_number_as_effective_rank(count: int) -> None:
    values = torch.cat([torch.full((count,), 2.5), torch.zeros(3)]).double()
    assert effective_rank(values) == pytest.approx(count)
    assert energy_rank(values**2) == count


def test_at_the_edge() -> None:
    energies = torch.tensor([0.9, 0.09, 0.01], dtype=torch.float64)
    assert energy_rank(energies, 0.99) == 2
    assert energy_rank(energies, 0.9901) == 3
    assert energy_rank(energies, 0.9) == 1
    zeros = torch.zeros(3, dtype=torch.float64)
    assert (energy_rank(zeros), effective_rank(zeros), energy_rank(zeros[:0])) == (0, 0.0, 0)

"""φ: 1 for equal subspaces, 0 for orthogonal ones, cos² of a planted angle, its expectation for random ones."""

import math

import pytest
import torch
from planted import frame, pair

from lorakit.analysis.subspace import by_chance, directions, overlap


def test_equal_and_orthogonal_subspaces() -> None:
    both = frame(30, 10, 1)
    torch.testing.assert_close(overlap(both[:, :4], both), torch.ones(4, 10).double())
    assert float(overlap(both[:, :4], both[:, 4:]).abs().max()) < 1e-12
    turned = both[:, :4] @ frame(4, 4, 2)  # the same space in other directions
    found = overlap(both[:, :4], turned)
    assert float(found[-1, -1]) == pytest.approx(1)
    assert float(found[0, 0]) < 0.99


def test_a_planted_angle() -> None:
    axes = torch.eye(6, dtype=torch.float64)
    angle = 0.3
    tilted = torch.stack([axes[0] * math.cos(angle) + axes[2] * math.sin(angle), axes[1]], dim=1)
    found = overlap(axes[:, :2], tilted)
    cosine = math.cos(angle) ** 2
    expected = torch.tensor([[cosine, cosine], [cosine, (cosine + 1) / 2]], dtype=torch.float64)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("i", "j"), [(1, 1), (3, 3), (2, 5), (5, 2)])
def test_it_is_one_minus_the_distance_over_p(i: int, j: int) -> None:
    one, other = frame(20, 5, 3), frame(20, 5, 4)
    p = min(i, j)
    cosines = torch.linalg.svdvals(one[:, :i].T @ other[:, :j])
    distance = p - float(cosines.square().sum())
    if i == j:  # of equal dimensions it is the distance between the projections
        apart = one[:, :i] @ one[:, :i].T - other[:, :j] @ other[:, :j].T
        assert distance == pytest.approx(float(apart.square().sum()) / 2)
    assert float(overlap(one, other)[i - 1, j - 1]) == pytest.approx(1 - distance / p)


def test_random_subspaces_have_the_expectation() -> None:
    draws = torch.stack([overlap(frame(40, 4, seed), frame(40, 8, 1000 + seed)) for seed in range(300)])
    chance = torch.tensor([[by_chance(i, j, 40) for j in range(1, 9)] for i in range(1, 5)], dtype=torch.float64)
    error = draws.std(0) / math.sqrt(len(draws))
    assert bool(((draws.mean(0) - chance).abs() < 4 * error).all())
    assert by_chance(4, 8, 40) == 0.2


def test_directions_are_those_that_count() -> None:
    u, v = frame(12, 3, 5), frame(9, 3, 6)
    values = torch.tensor([5.0, 3.0, 0.0], dtype=torch.float64)
    found = directions(pair(u * values, values[:, None] * v.T, 1.0))
    assert {name: tuple(one.shape) for name, one in found.items()} == {"A": (9, 2), "B": (12, 2)}
    for one, planted in ((found["A"], v), (found["B"], u)):
        torch.testing.assert_close((one * planted[:, :2]).sum(0).abs(), torch.ones(2).double(), rtol=1e-5, atol=1e-5)
    nothing = directions(pair(torch.zeros(12, 3), v.T, 1.0))
    assert nothing["B"].shape == (12, 0)
    assert overlap(nothing["B"], found["B"]).shape == (0, 2)

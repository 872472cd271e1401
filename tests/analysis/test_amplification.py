"""‖UᵀWVᵀ‖ and the factor, of updates planted among W's own singular vectors."""

import math

import pytest
import torch
from planted import frame, pair

from lorakit.analysis.amplification import Amplification, amplification, base_values
from lorakit.analysis.spectrum import Decomposed, of_pair

SIZES = torch.tensor([10.0, 8.0, 6.0, 4.0, 2.0, 1.0], dtype=torch.float64)
U, V = frame(30, 8, 1), frame(20, 8, 2)
W = (U[:, :6] * SIZES @ V[:, :6].T).float()


def amplified(left: list[int], right: list[int], values: list[float], directions: int = 4) -> Amplification | None:
    """Of a ΔW with these of U's and V's columns as singular vectors."""
    s = torch.tensor(values, dtype=torch.float64)
    update = of_pair(pair(U[:, left] * s.sqrt(), s.sqrt()[:, None] * V[:, right].T, 1.0))
    return amplification(update, W, base_values(W), directions, 0)


def close(value: float) -> object:
    return pytest.approx(value, rel=1e-4, abs=1e-5)


def test_directions_of_w_itself() -> None:
    found = amplified([3, 4], [3, 4], [30.0, 20.0])
    assert found is not None
    assert found.directions == 2
    assert found.base_norm == close(math.sqrt(221))
    assert found.onto_update == close(math.sqrt(4**2 + 2**2))
    assert found.onto_base == close(math.sqrt(10**2 + 8**2))
    assert found.factor == close(math.sqrt(1300 / 20))


def test_the_strongest_directions_alone() -> None:
    found = amplified([3, 4, 0], [3, 4, 0], [30.0, 20.0, 10.0], directions=2)
    assert found is not None
    assert found.onto_update == close(math.sqrt(20))
    assert found.factor == close(math.sqrt(1400 / 20))  # of the whole ΔW, as in the paper


def test_directions_that_w_does_not_have() -> None:
    found = amplified([6, 7], [6, 7], [3.0, 1.0])
    assert found is not None
    assert found.onto_update == close(0)
    crossed = amplified([0], [1], [5.0])  # W has both, but does not lead the one to the other
    assert crossed is not None
    assert crossed.onto_update == close(0)
    mixed = amplified([0, 1], [1, 0], [5.0, 4.0])
    assert mixed is not None
    assert mixed.onto_update == close(math.sqrt(10**2 + 8**2))  # of the two together it does


def test_random_directions() -> None:
    s = torch.ones(3, dtype=torch.float64)
    update = Decomposed(U[:, :3], s, V[:, :3])
    draws = [amplification(update, W, SIZES, 3, seed) for seed in range(200)]
    squares = torch.tensor([one.onto_random**2 for one in draws if one], dtype=torch.float64)
    error = float(squares.std()) / math.sqrt(len(squares))
    assert abs(float(squares.mean()) - 9 * 221 / (30 * 20)) < 4 * error
    assert draws[0] == amplification(update, W, SIZES, 3, 0)


def test_nothing() -> None:
    assert amplified([0], [0], [0.0]) is None
    zero = amplification(Decomposed(U[:, :1], torch.ones(1), V[:, :1]), 0 * W, torch.zeros(20), 1, 0)
    assert zero is not None
    assert zero.factor is None

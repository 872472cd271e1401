import numpy as np
import pytest

from lorakit.data.batches import Limit, micro_batches, step_rows
from lorakit.lengths import STEPS_LOOKED_AT, Shape, cut_steps, evaluation_shapes, histogram, padding, shapes
from lorakit.schedule import Train

TRAIN = Train(epochs=2, batch_size=4, lr=1e-3)


def test_the_shapes_of_a_run_by_hand() -> None:
    lengths = np.array([10, 20, 30, 40])
    targets = np.array([1, 2, 3, 4])
    cut = cut_steps(TRAIN, lengths, 2, Limit(rows=2))
    found = shapes([group for step in cut for group in step], lengths, targets)
    assert found == [Shape(2, 40, 7, padding=10), Shape(2, 20, 3, padding=10)]
    assert (found[0].tokens, found[0].real) == (80, 70)


def test_the_step_with_the_longest_row_is_always_looked_at() -> None:
    lengths = np.full(4 * 1000, 8)
    lengths[1234] = 99
    cut = cut_steps(TRAIN, lengths, 1000, Limit(rows=4))
    assert len(cut) <= STEPS_LOOKED_AT + 1
    assert max(shape.width for shape in shapes([g for s in cut for g in s], lengths, lengths)) == 99


def test_no_micro_batch_of_a_short_run_is_missed() -> None:
    lengths = np.random.default_rng(0).integers(5, 50, size=40)
    limit = Limit(tokens=64)
    met = {tuple(g) for step in step_rows(0, 40, 4, 10) for g in micro_batches(step.rows.tolist(), lengths, limit)[0]}
    assert met == {tuple(group) for step in cut_steps(TRAIN, lengths, 10, limit) for group in step}


def test_evaluation_shapes_are_largest_first() -> None:
    lengths = np.array([8] * 10 + [64])
    found = evaluation_shapes(lengths, lengths, Limit(rows=4))
    assert found[0] == Shape(4, 64, 64 + 3 * 8, padding=3 * 56)
    assert [shape.tokens for shape in found] == sorted((shape.tokens for shape in found), reverse=True)


def test_padding_by_hand() -> None:
    """Rows of 10 and 30, two to a micro-batch: sorted, the like ones stand together."""
    lengths = np.array([10, 10, 30, 30])
    found = padding([[[2, 3], [0, 1]]], lengths, 40)
    assert found.to_max_length == pytest.approx(0.5)
    assert found.sorted == 0
    assert found.unsorted in (0, pytest.approx(1 - 80 / 120))


def test_a_histogram_has_round_bins_and_every_row() -> None:
    lengths = np.array([3, 19, 20, 21, 125])
    found = histogram(lengths)
    assert found[0] == (0, 19, 2)
    assert found[1] == (20, 39, 2)
    assert found[-1] == (120, 139, 1)
    assert sum(rows for _, _, rows in found) == 5
    assert histogram(np.array([7, 7])) == [(7, 7, 2)]
    assert all(len(histogram(np.array([1, most]))) <= 10 for most in (2, 10, 11, 99, 100, 1000, 2049))

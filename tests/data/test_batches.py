"""Which rows make which step, and how a step is cut."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.data.batches import Limit, by_length, epoch_order, micro_batches, step_rows, steps_per_epoch

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)
LIMITS = st.builds(Limit, st.none() | st.integers(1, 9), st.none() | st.integers(1, 200))
FEW = settings(max_examples=60, deadline=None)


@FEW
@given(seed=st.integers(0, 9), count=st.integers(1, 40), batch=st.integers(1, 50), epochs=st.integers(1, 3))
def test_every_row_once_per_epoch(seed: int, count: int, batch: int, epochs: int) -> None:
    per_epoch = steps_per_epoch(count, batch)
    steps = list(step_rows(seed, count, batch, per_epoch * epochs))
    assert [step.number for step in steps] == list(range(1, per_epoch * epochs + 1))
    for epoch in range(epochs):
        mine = [step for step in steps if step.epoch == epoch]
        assert np.concatenate([step.rows for step in mine]).tolist() == epoch_order(seed, epoch, count).tolist()
        assert sorted(np.concatenate([step.rows for step in mine])) == list(range(count))
        assert [len(step.rows) for step in mine[:-1]] == [batch] * (per_epoch - 1)
        assert [step.ends_epoch for step in mine] == [False] * (per_epoch - 1) + [True]


@FEW
@given(count=st.integers(1, 30), batch=st.integers(1, 9), total=st.integers(0, 40), done=st.integers(0, 45))
def test_resumed_anywhere(count: int, batch: int, total: int, done: int) -> None:
    whole = list(step_rows(3, count, batch, total))
    rest = list(step_rows(3, count, batch, total, done))
    assert [(s.number, s.epoch, s.ends_epoch, s.rows.tolist()) for s in rest] == [
        (s.number, s.epoch, s.ends_epoch, s.rows.tolist()) for s in whole[done:]
    ]


def test_order_is_a_function_of_seed_and_epoch() -> None:
    before = epoch_order(1, 2, 100)
    np.random.seed(0)  # noqa: NPY002 (whatever else is drawn)
    assert before.tolist() == epoch_order(1, 2, 100).tolist()
    others = [epoch_order(0, 2, 100), epoch_order(1, 3, 100), epoch_order(2, 1, 100), np.arange(100)]
    assert all(before.tolist() != other.tolist() for other in others)


def test_order_never_changes() -> None:
    """A known answer: a resumed run must see the order that an older version drew."""
    assert epoch_order(0, 0, 8).tolist() == [6, 0, 5, 4, 2, 7, 3, 1]


@FEW
@given(LENGTHS, LIMITS, st.integers(1, 5), st.randoms(use_true_random=False))
def test_micro_batches(lengths: list[int], limit: Limit, world: int, random: object) -> None:
    rows = list(range(len(lengths)))
    random.shuffle(rows)  # type: ignore[attr-defined]
    plans = micro_batches(rows, np.array(lengths), limit, world)
    assert len(plans) == world and len({len(plan) for plan in plans}) == 1
    assert sorted(row for plan in plans for group in plan for row in group) == sorted(rows)
    for plan in plans:
        for group in plan:
            assert limit.rows is None or len(group) <= limit.rows
            padded = len(group) * max((lengths[row] for row in group), default=0)
            assert limit.tokens is None or padded <= limit.tokens or len(group) == 1
        longest = [max(lengths[row] for row in group) for group in plan if group]
        assert longest == sorted(longest, reverse=True)
        assert all(plan[: len(longest)])  # empty ones come last
    sizes = [sum(map(len, plan)) for plan in plans]
    assert max(sizes) - min(sizes) <= 1
    assert plans == micro_batches(sorted(rows), np.array(lengths), limit, world)


@pytest.mark.parametrize(
    ("limit", "groups"),
    [
        (Limit(), [[1, 3, 0, 2]]),
        (Limit(rows=3), [[1, 3, 0], [2]]),
        (Limit(tokens=18), [[1, 3], [0, 2]]),
        (Limit(tokens=5), [[1], [3], [0], [2]]),
    ],
)
def test_known_plans(limit: Limit, groups: list[list[int]]) -> None:
    assert by_length(np.array([4, 9, 2, 7]), limit) == groups


def test_no_rows() -> None:
    assert by_length(np.array([], dtype=np.int64), Limit(rows=2)) == []


def cost(groups: list[list[int]], lengths: list[int], overhead: int) -> int:
    return sum(len(group) * max(lengths[row] for row in group) + overhead for group in groups)


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=9),
    st.integers(0, 60),
    st.one_of(st.none(), st.integers(1, 90)),
    st.one_of(st.none(), st.integers(1, 4)),
)
@settings(derandomize=True, deadline=None, max_examples=150)
def test_no_cut_is_cheaper(lengths: list[int], overhead: int, tokens: int | None, rows: int | None) -> None:
    """Of all ways to part the sorted rows."""
    limit = Limit(rows=rows, tokens=tokens, overhead=overhead)
    (found,) = micro_batches(range(len(lengths)), np.array(lengths), limit)
    order = [row for group in found for row in group]
    assert order == sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    least = None
    for ends in itertools.product([False, True], repeat=len(order) - 1):
        groups = [[order[0]]]
        for row, end in zip(order[1:], ends, strict=True):
            if end:
                groups.append([row])
            else:
                groups[-1].append(row)
        fits = all(
            len(g) == 1 or ((tokens is None or len(g) * lengths[g[0]] <= tokens) and (rows is None or len(g) <= rows))
            for g in groups
        )
        if fits:
            now = cost(groups, lengths, overhead)
            least = now if least is None else min(least, now)
    assert cost(found, lengths, overhead) == least


def test_rows_are_parted_where_that_saves_more_than_it_costs() -> None:
    lengths = np.array([100, 98, 20, 19, 18])
    assert micro_batches(range(5), lengths, Limit(overhead=48))[0] == [[0, 1], [2, 3, 4]]
    assert micro_batches(range(5), lengths, Limit(overhead=300))[0] == [[0, 1, 2, 3, 4]]
    assert micro_batches(range(5), lengths, Limit(overhead=0))[0] == [[0], [1], [2], [3], [4]]
    assert micro_batches([], lengths, Limit(overhead=48)) == [[]]

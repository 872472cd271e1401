"""Which rows make which step, and how a step is cut into micro-batches.

Everything here is a function of the seed, the epoch and the position, so that a resumed run sees the same rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorakit.runtime import derive

Lengths = NDArray[np.int64]


@dataclass(frozen=True)
class Limit:
    """How large a micro-batch may be.

    Args:
        rows: At most so many rows.
        tokens: At most so many tokens with the padding, though never less than one row.
        overhead: What starting another micro-batch costs, in tokens: rows are parted where that saves more padding.
            None: only where they must be.
    """

    rows: int | None = None
    tokens: int | None = None
    overhead: int | None = None


@dataclass(frozen=True)
class StepRows:
    """The rows of one optimiser step.

    Args:
        number: From 1, over the whole run.
        epoch: From 0.
        ends_epoch: Whether it is the epoch's last.
        rows: Indices of the rows, over all devices.
    """

    number: int
    epoch: int
    ends_epoch: bool
    rows: NDArray[np.int64]


def epoch_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """A permutation of the rows, a function of the seed and the epoch alone."""
    return np.random.default_rng(derive(seed, "order", epoch)).permutation(count)


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Optimiser steps in an epoch; the last may be smaller, and is weighted by its targets like any other."""
    return -(-count // batch_size)


def step_rows(seed: int, count: int, batch_size: int, total: int, done: int = 0) -> Iterator[StepRows]:
    """The rows of the steps after `done`, up to step `total`.

    Args:
        seed: The recipe's.
        count: Rows in the training split.
        batch_size: Rows in a step, over all devices.
        total: Steps in the run.
        done: Steps that are behind us.
    """
    per_epoch = steps_per_epoch(count, batch_size)
    order, of_epoch = None, -1
    for index in range(done, total):
        epoch, position = divmod(index, per_epoch)
        if epoch != of_epoch:
            order, of_epoch = epoch_order(seed, epoch, count), epoch
        assert order is not None
        rows = order[position * batch_size : (position + 1) * batch_size]
        yield StepRows(index + 1, epoch, position == per_epoch - 1, rows)


def micro_batches(rows: Sequence[int], lengths: Lengths, limit: Limit, world: int = 1) -> list[list[list[int]]]:
    """Cut a step's rows into micro-batches of similar length: the gradient is the same, the padding goes.

    Rows are sorted by length and dealt to the devices in turn; every device gets equally many micro-batches, since
    each is a collective step. One that finds no rows left gets an empty micro-batch.

    Args:
        rows: Indices into `lengths`.
        lengths: Tokens of every row.
        limit: Of one micro-batch.
        world: Devices.

    Returns:
        For each device its micro-batches, longest first: what does not fit fails at once.
    """
    by_length = sorted((int(row) for row in rows), key=lambda row: (-int(lengths[row]), row))
    cut = _greedy if limit.overhead is None else _cheapest
    plans = [cut(by_length[rank::world], lengths, limit) for rank in range(world)]
    wanted = max(len(plan) for plan in plans)
    return [_split_to(plan, wanted) for plan in plans]


def _greedy(rows: list[int], lengths: Lengths, limit: Limit) -> list[list[int]]:
    groups: list[list[int]] = []
    for row in rows:  # longest first, so a group's first row sets its padded length
        group = groups[-1] if groups else None
        full = group is None or (
            (limit.rows is not None and len(group) >= limit.rows)
            or (limit.tokens is not None and int(lengths[group[0]]) * (len(group) + 1) > limit.tokens)
        )
        if full or group is None:
            groups.append([row])
        else:
            group.append(row)
    return groups


def _cheapest(rows: list[int], lengths: Lengths, limit: Limit) -> list[list[int]]:
    """The cut of rows, longest first, with the fewest tokens: padding, and each micro-batch's overhead, counted.

    best[i] is the least for the first i rows: of all groups that may end there, the one with the least before it.
    """
    assert limit.overhead is not None
    widths = np.array([int(lengths[row]) for row in rows], dtype=np.int64)
    best, begins = np.zeros(len(rows) + 1, dtype=np.int64), [0] * (len(rows) + 1)
    for end in range(1, len(rows) + 1):
        sizes = end - np.arange(end)  # of the group that begins at each row
        tokens = widths[:end] * sizes
        fits = (tokens <= (limit.tokens or tokens.max())) & (sizes <= (limit.rows or end)) | (sizes == 1)
        costs = np.where(fits, best[:end] + tokens + limit.overhead, np.iinfo(np.int64).max)
        begins[end] = int(costs.argmin())
        best[end] = costs[begins[end]]
    groups, end = [], len(rows)
    while end:
        groups.append(rows[begins[end] : end])
        end = begins[end]
    return groups[::-1]


def _split_to(groups: list[list[int]], wanted: int) -> list[list[int]]:
    groups = list(groups)
    while len(groups) < wanted:
        largest = max(range(len(groups)), key=lambda i: len(groups[i]), default=None)
        if largest is None or len(groups[largest]) < 2:
            groups.append([])
        else:
            half = len(groups[largest]) // 2
            groups[largest : largest + 1] = [groups[largest][:half], groups[largest][half:]]
    return groups


def by_length(lengths: Lengths, limit: Limit) -> list[list[int]]:
    """All rows in batches of similar length, longest first, for evaluation."""
    return micro_batches(range(len(lengths)), lengths, limit)[0]

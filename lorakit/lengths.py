"""What the lengths of rows decide: the padding, and the largest batches that a run will meet."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lorakit.data.batches import Lengths, Limit, StepRows, by_length, micro_batches, step_rows
from lorakit.schedule import Train

STEPS_LOOKED_AT = 200
"""Of the first epoch, spread evenly: sorting every step of a long run would take longer than the rest of a plan."""


@dataclass(frozen=True)
class Shape:
    """A padded batch.

    Args:
        rows: Of the batch.
        width: Tokens of a row, with the padding.
        targets: Learned tokens of the whole batch; for text rows the rows.
        padding: Tokens that are none; 0 where that is not known, and for batches without.
    """

    rows: int
    width: int
    targets: int
    padding: int = 0

    @property
    def tokens(self) -> int:
        """With the padding."""
        return self.rows * self.width

    @property
    def real(self) -> int:
        """Without it: what blocks compute of packed rows."""
        return self.tokens - self.padding

    def __str__(self) -> str:
        return f"{self.rows} x {self.width}"


@dataclass(frozen=True)
class Padding:
    """Shares of a run's input tokens that are padding, 0 to 1.

    Args:
        to_max_length: Every row padded to the longest that is allowed.
        unsorted: Rows in the order of the steps, each micro-batch padded to its longest row.
        sorted: The rows of a step sorted by length first.
        packed: Whether the model's blocks compute none of it.
    """

    to_max_length: float
    unsorted: float
    sorted: float
    packed: bool = False


def shape_of(rows: Sequence[int], lengths: Lengths, targets: Lengths) -> Shape:
    """The padded batch that some rows make."""
    width = int(lengths[rows].max())
    return Shape(len(rows), width, int(targets[rows].sum()), len(rows) * width - int(lengths[rows].sum()))


def cut_steps(train: Train, lengths: Lengths, total: int, limit: Limit, world: int = 1) -> list[list[list[int]]]:
    """The micro-batches of one device, for some steps of the first epoch: evenly spread, the longest row's included."""
    steps = _some(step_rows(train.seed, len(lengths), train.batch_size, _first_epoch(train, lengths, total)), lengths)
    return [[group for group in micro_batches(step, lengths, limit, world)[0] if group] for step in steps]


def _first_epoch(train: Train, lengths: Lengths, total: int) -> int:
    return min(total, -(-len(lengths) // train.batch_size))


def _some(steps: Iterable[StepRows], lengths: Lengths) -> list[list[int]]:
    every = [step.rows.tolist() for step in steps]
    stride = -(-len(every) // STEPS_LOOKED_AT)
    longest = max(range(len(every)), key=lambda index: int(lengths[every[index]].max()))
    return [*every[::stride], every[longest]]


def shapes(batches: Iterable[Sequence[int]], lengths: Lengths, targets: Lengths) -> list[Shape]:
    """The distinct shapes of some batches, most padded tokens first."""
    found = {shape_of(rows, lengths, targets) for rows in batches}
    return sorted(found, key=lambda shape: (-shape.tokens, -shape.targets, shape.width, shape.padding))


def evaluation_shapes(lengths: Lengths, targets: Lengths, limit: Limit) -> list[Shape]:
    """The shapes of a split's batches in evaluation, most padded tokens first."""
    return shapes(by_length(lengths, limit), lengths, targets)


def padding(cut: Sequence[Sequence[Sequence[int]]], lengths: Lengths, max_length: int) -> Padding:
    """The shares of padding for steps that are cut into micro-batches.

    Args:
        cut: Steps of micro-batches of rows, sorted by length.
        lengths: Of all rows.
        max_length: The longest row that is allowed.
    """
    plain: list[list[int]] = []
    for step in cut:
        rows = iter(np.random.default_rng(0).permutation([row for group in step for row in group]).tolist())
        plain += [[next(rows) for _ in group] for group in step]
    ordered = [group for step in cut for group in step]
    return Padding(
        1 - float(lengths.mean()) / max_length, _share_padded(plain, lengths), _share_padded(ordered, lengths)
    )


def _share_padded(batches: Sequence[Sequence[int]], lengths: Lengths) -> float:
    real = sum(int(lengths[rows].sum()) for rows in batches)
    return 1 - real / sum(len(rows) * int(lengths[rows].max()) for rows in batches)


def histogram(lengths: Lengths, most_bins: int = 10) -> list[tuple[int, int, int]]:
    """(first length, last length, rows) of equally wide, round bins from the shortest row to the longest."""
    low, high = int(lengths.min()), int(lengths.max())
    width = next(w for w in _round_numbers() if high // w - low // w < most_bins)
    starts = range(low // width * width, high + 1, width)
    return [(s, s + width - 1, int(((lengths >= s) & (lengths < s + width)).sum())) for s in starts]


def _round_numbers() -> Iterable[int]:
    scale = 1
    while True:
        yield from (scale, 2 * scale, 5 * scale)
        scale *= 10

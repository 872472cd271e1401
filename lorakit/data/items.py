"""Rows in token ids, and what is asked about all of them together."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorakit.data.slots import PLACEHOLDER

IGNORE = -100
"""Label of a position that is not learned."""
Ids = NDArray[np.int32]
Counts = NDArray[np.int64]
_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Item:
    """One tokenised row.

    Args:
        input_ids: (seq,).
        labels: (seq,) token ids, IGNORE where nothing is learned (everywhere in a choice without a label); or () the
            class index or number of a text row (IGNORE for one without a label, whose loss means nothing and is not
            counted by `evaluate`).
        token_type_ids: (seq,), for models that tell a pair's halves apart.
        row: Index of the row it came from.
    """

    input_ids: Ids
    labels: NDArray[Any]
    token_type_ids: Ids | None
    row: int


@dataclass(frozen=True)
class Summary:
    """What is asked about all items of a split.

    Args:
        lengths: (items,) tokens of each.
        targets: (items,) learned tokens of each, or 1 for a text row.
        last: (items,) the last label of each; of a text row its label, without what is behind the point.
        largest: The largest id of a token; places of a prefix hold none.
        digest: SHA-256 of token ids and labels, in order.
    """

    lengths: Counts
    targets: Counts
    last: Counts
    largest: int
    digest: str


class Summarised(Sequence[Item]):
    """Items that are not all in memory, and come with their summary."""

    summary: Summary


@dataclass(frozen=True)
class Encoded:
    """A split in token ids.

    Args:
        items: In the order of the rows.
        truncated: Rows that lost tokens.
        dropped: Why rows were left out → how many.
    """

    items: Sequence[Item]
    truncated: int = 0
    dropped: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def summary(self) -> Summary:
        """What is asked about all items."""
        if isinstance(self.items, Summarised):
            return self.items.summary
        tally = Tally()
        for start in range(0, len(self.items), _AT_ONCE):
            tally.add(self.items[start : start + _AT_ONCE])
        return tally.summary()

    @property
    def lengths(self) -> Counts:
        """Tokens of each item."""
        return self.summary.lengths

    @property
    def targets(self) -> Counts:
        """Targets of each item: learned tokens, or 1 for a text row."""
        return self.summary.targets

    def digest(self) -> str:
        """A hash of all that a run learns from, or is measured on: token ids and labels, in order."""
        return self.summary.digest


class Tally:
    """Makes a summary of items that come in parts."""

    def __init__(self) -> None:
        self._lengths: list[Counts] = []
        self._targets: list[Counts] = []
        self._last: list[Counts] = []
        self._largest = 0
        self._digest = hashlib.sha256()

    def add(self, items: Sequence[Item]) -> None:
        """The next items."""
        lengths = np.array([len(item.input_ids) for item in items], dtype=np.int64)
        self._lengths.append(lengths)
        self._targets.append(np.array([_targets(item.labels) for item in items], dtype=np.int64))
        self._last.append(np.array([_last(item.labels) for item in items], dtype=np.int64))
        ids = np.concatenate([item.input_ids for item in items])
        self._largest = max(self._largest, int(ids[ids < PLACEHOLDER].max(initial=0)))
        for item, length in zip(items, lengths.tolist(), strict=True):
            self._digest.update(length.to_bytes(4, "little") + item.input_ids.tobytes() + item.labels.tobytes())
            if item.token_type_ids is not None:
                self._digest.update(item.token_type_ids.tobytes())

    def summary(self) -> Summary:
        """Of all items so far."""
        none = [np.zeros(0, dtype=np.int64)]
        lengths, targets, last = (np.concatenate(none + of) for of in (self._lengths, self._targets, self._last))
        return Summary(lengths, targets, last, self._largest, self._digest.hexdigest())


def _targets(labels: NDArray[Any]) -> int:
    """The first token of a row has nothing before it that could predict it."""
    return 1 if labels.ndim == 0 else int(np.count_nonzero(labels[1:] != IGNORE))


def _last(labels: NDArray[Any]) -> int:
    if labels.ndim == 0:
        return int(labels)
    return int(labels[-1]) if len(labels) else IGNORE

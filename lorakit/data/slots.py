"""Places in a row that hold no token of the text, but vectors that a method trains (prefixes and infixes).

`encode` marks them by ids beyond every vocabulary, one per vector, so that they cannot be mistaken for text; the
method's hooks put the vectors there. Ids beside the attention mask keep everything that looks at ids working:
positions, padding, pooling of the last token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

PLACEHOLDER = 2**30
"""Id of the first vector's place; the next vector's is one more. It fits 32 bits, and no vocabulary reaches it."""


@dataclass(frozen=True)
class Slots:
    """How many places a row gets.

    Args:
        prefix: In front of the text, but behind a [CLS] or a beginning-of-sequence token: at position 0 of an encoder
            they would take the place of what the head reads.
        infix: Behind the prompt, in front of what is to be said; in a text that is classified in front of the last
            token, which a decoder's head reads.
    """

    prefix: int = 0
    infix: int = 0

    @property
    def count(self) -> int:
        """Places in all: tokens by which a row grows."""
        return self.prefix + self.infix

    @property
    def ids(self) -> range:
        """What stands there in the row."""
        return range(PLACEHOLDER, PLACEHOLDER + self.count)

    def insert(self, row: Sequence[int], start: int, end: int, fill: Sequence[int]) -> list[int]:
        """A row with its places.

        Args:
            row: (seq,) ids, labels or token types.
            start: Where the prefix begins.
            end: In front of which of the row's elements the infix stands; not before `start`.
            fill: (count,) what to put there.
        """
        assert start <= end <= len(row) and len(fill) == self.count
        return [*row[:start], *fill[: self.prefix], *row[start:end], *fill[self.prefix :], *row[end:]]


NO_SLOTS = Slots()
"""Of methods that train no prefix, and of the bare base."""

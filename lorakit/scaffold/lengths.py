"""How long rows are in tokens: counted where the base's tokenizer is here, else estimated from their bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorakit.data.rows import ChatRow, ChoiceRow, CompletionRow, Row

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BYTES_PER_TOKEN = 3
"""English has four and more, most other languages in an English vocabulary two to three: rather too many tokens than
too few, since a limit that is too high costs nothing but the memory of the longest batch."""
SAMPLE = 2000
"""Rows that are looked at, evenly spaced."""
SPECIAL = 4
"""Tokens that a model puts around a text or a pair; a turn of a conversation has about as many."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of rows.

    Args:
        rows: Of each row looked at, ascending.
        targets: Of each completion or answer, ascending; empty where there is none.
        counted: Whether the base's tokenizer counted them.
    """

    rows: Sequence[int]
    targets: Sequence[int]
    counted: bool

    def longer_than(self, limit: int) -> float:
        """The share of rows that have more tokens."""
        return sum(length > limit for length in self.rows) / len(self.rows)


def measure(rows: Sequence[Row], tokenizer: "Tokenizer | None") -> Lengths:
    """Measure some of the rows.

    Args:
        rows: Of the training split.
        tokenizer: The base's.
    """
    seen = rows[:: -(-len(rows) // SAMPLE)]
    texts = [_texts(row) for row in seen]
    pieces = [piece for each in texts for piece in each]
    sizes = iter(_sizes(pieces, tokenizer))
    split = [[next(sizes) for _ in each] for each in texts]
    whole = sorted(sum(each) + SPECIAL * (len(each) if isinstance(seen[0], ChatRow) else 1) for each in split)
    targets = [] if not isinstance(seen[0], CompletionRow | ChatRow) else sorted(each[-1] + 1 for each in split)
    return Lengths(whole, targets, tokenizer is not None)


def share_below(lengths: Sequence[int], share: float) -> int:
    """The length that this share of the rows does not pass.

    Args:
        lengths: Ascending, at least one.
        share: 0 to 1.
    """
    return lengths[min(len(lengths) - 1, int(share * len(lengths)))]


def _texts(row: Row) -> list[str]:
    """A row's texts, the completion or the last answer at the end."""
    if isinstance(row, ChatRow):
        return [message["content"] for message in row.messages]
    if isinstance(row, CompletionRow):
        return [row.prompt, row.target or ""]
    if isinstance(row, ChoiceRow):
        return [row.prompt, max(row.choices, key=len)]
    return [row.text, row.pair] if row.pair is not None else [row.text]


def _sizes(texts: list[str], tokenizer: "Tokenizer | None") -> list[int]:
    if tokenizer is None:
        return [-(-len(text.encode()) // BYTES_PER_TOKEN) for text in texts]
    return [len(found.ids) for found in tokenizer.encode_batch(texts, add_special_tokens=False)]

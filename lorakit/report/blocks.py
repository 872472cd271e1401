"""What a page is made of; `markdown` and `html` each say it in their own way."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of cells.

    Args:
        header: One word per column; empty where the columns need none.
        rows: As many cells each.
        numbers: Whether all columns but the first hold numbers.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: bool = True


@dataclass(frozen=True)
class Picture:
    """A plot, for both pages.

    Args:
        name: plots/NAME.png.
        alt: What it shows, for who cannot see it.
        png: On white.
        svg: In the page's own colours.
    """

    name: str
    alt: str
    png: bytes
    svg: str


@dataclass(frozen=True)
class Pictures:
    """Plots side by side, where there is room."""

    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Examples:
    """Single rows of data: what belongs together is (label, text) pairs."""

    examples: Sequence[Sequence[tuple[str, str]]]


@dataclass(frozen=True)
class Code:
    """Text as it stands in a file."""

    text: str
    language: str


Block = Text | Table | Pictures | Examples | Code


@dataclass(frozen=True)
class Section:
    """A heading and what is below it; `folded` where few will want to read it."""

    title: str
    blocks: Sequence[Block]
    folded: bool = False

    @property
    def pictures(self) -> list[Picture]:
        """All plots in it."""
        return [picture for block in self.blocks if isinstance(block, Pictures) for picture in block.pictures]


@dataclass(frozen=True)
class Card:
    """A number that is worth a large font."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Page:
    """A whole report."""

    title: str
    subtitle: str
    cards: Sequence[Card]
    sections: Sequence[Section]

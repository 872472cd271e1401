"""What a data file's columns hold: one pass, a few numbers per column."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lorakit.data.readers import read_records, shown

Content = Literal[
    "text", "whole numbers", "numbers", "true/false", "conversations", "lists", "objects", "mixed", "empty"
]
MANY = 1000
"""Distinct values are counted up to here."""


@dataclass
class Column:
    """One column.

    Args:
        name: As the file has it.
    """

    name: str
    rows: int = 0
    """With a cell that is neither null nor blank."""
    blank: int = 0
    """Rows with empty text."""
    words: int = 0
    """White-space-separated, of all cells that are text."""
    example: str = ""
    contents: dict[Content, int] = field(default_factory=dict)
    values: dict[str, int] = field(default_factory=dict)
    """Cell → rows, for the first `MANY` distinct ones."""
    as_text: bool = True
    """Whether every cell is text, as in a table; a number in JSON is not."""
    integral: bool = True
    """Whether every number is a whole one, `3.0` included."""
    spaced_before: int = 0
    """Rows whose text begins with white space."""
    spaced_after: int = 0
    """Rows whose text ends with it."""

    @property
    def content(self) -> Content:
        """What all its cells hold; numbers among texts count as text."""
        found = set(self.contents)
        if found == {"whole numbers", "numbers"}:
            return "numbers"
        if "text" in found and found <= {"text", "whole numbers", "numbers"}:
            return "text"
        return "empty" if not found else found.pop() if len(found) == 1 else "mixed"

    @property
    def distinct(self) -> int:
        """How many different values; `MANY` stands for that many or more."""
        return len(self.values)

    @property
    def mean_words(self) -> float:
        """Words per row that has a cell."""
        return self.words / max(1, self.rows)

    def add(self, cell: object) -> None:
        """Count one cell; null counts as absent."""
        if cell is None:
            return
        if isinstance(cell, str):
            self._add_text(cell)
        else:
            self.as_text = False
        if cell == "" or (isinstance(cell, str) and not cell.strip()):
            self.blank += 1
            return
        self.rows += 1
        text = cell if isinstance(cell, str) else shown(cell)
        self.example = self.example or _example(cell, text)
        if len(self.values) < MANY or text in self.values:
            self.values[text] = self.values.get(text, 0) + 1
        content = _content(cell)
        self.contents[content] = self.contents.get(content, 0) + 1
        if content == "numbers":
            self.integral = self.integral and float(text) == int(float(text))

    def _add_text(self, cell: str) -> None:
        self.words += len(cell.split())
        self.spaced_before += cell[:1].isspace()
        self.spaced_after += cell[-1:].isspace()


@dataclass(frozen=True)
class Table:
    """A data file's columns.

    Args:
        path: The file.
        rows: How many it has.
        columns: In the order in which they first appear.
    """

    path: Path
    rows: int
    columns: list[Column]


def look(path: Path) -> Table:
    """Read a data file once.

    Raises:
        DataError: It is missing, malformed or empty; names the line.
    """
    columns: dict[str, Column] = {}
    rows = 0
    for record in read_records(path):
        rows += 1
        for name, cell in record.cells.items():
            columns.setdefault(name, Column(name)).add(cell)
    return Table(path, rows, list(columns.values()))


def _content(cell: object) -> Content:
    if isinstance(cell, bool):
        return "true/false"
    if isinstance(cell, int):
        return "whole numbers"
    if isinstance(cell, float):
        return "numbers" if math.isfinite(cell) else "mixed"
    if isinstance(cell, str):
        return _content_of_text(cell)
    if isinstance(cell, list):
        return "conversations" if cell and all(map(_is_turn, cell)) else "lists"
    return "objects" if isinstance(cell, Mapping) else "mixed"


def _content_of_text(cell: str) -> Content:
    try:
        number = float(cell)
    except ValueError:
        return "text"
    if not math.isfinite(number) or "_" in cell:
        return "text"
    return "whole numbers" if cell.strip().lstrip("+-").isdecimal() else "numbers"


def _example(cell: object, text: str) -> str:
    if isinstance(cell, list) and cell and _is_turn(cell[0]):
        text = f"{cell[0]['role']}: {cell[0]['content']}"
    return " ".join(text.split())[:200]


def _is_turn(turn: object) -> bool:
    return isinstance(turn, Mapping) and "role" in turn and "content" in turn

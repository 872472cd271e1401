"""What every task offers: its rows and its metrics. One class carries both, so that data and scoring cannot drift apart."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field, PositiveInt

from lorakit.data.rows import Row
from lorakit.section import Section

Kind = Literal["classification", "regression", "generation"]
Prediction = int | float | str
"""A class index, a number, or a generated text."""


@dataclass(frozen=True)
class Split:
    """The rows of one split, with what was dropped while reading.

    Args:
        rows: In the order of the file; `limit` already applied.
        dropped: Why rows were left out → how many.
    """

    rows: Sequence[Row]
    dropped: dict[str, int] = field(default_factory=dict)


class Task(Section):
    """A data set in its official layout together with its official metrics."""

    name: str
    max_length: PositiveInt | None = None
    """Tokens per row; null: 512, or what the model has positions for. Truncated rows are counted and reported."""
    limit: dict[Literal["train", "validation", "validation_mismatched", "test"], PositiveInt] = Field(default_factory=dict)
    """The first N rows of a split."""

    @property
    @abstractmethod
    def kind(self) -> Kind:
        """What the model must produce: a class, a number, or text."""

    @property
    @abstractmethod
    def labels(self) -> tuple[str, ...]:
        """Class names by index; one name for regression; empty for generation."""

    @property
    @abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics, the task's own first; all are better when higher, `loss` (always there too) when lower."""

    @property
    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """Splits that this task can have, of train, validation, validation_mismatched, test."""

    @abstractmethod
    def load(self, split: str) -> Split:
        """Read one split.

        Raises:
            DataError: The file is missing, empty or malformed; names the file and the line.
        """

    @abstractmethod
    def sample(self, count: int, seed: int) -> list[Row]:
        """Made-up rows of this task's kind, for `train --smoke`: offline and deterministic."""

    @abstractmethod
    def score(self, rows: Sequence[Row], predictions: Sequence[Prediction]) -> dict[str, float]:
        """The task's metrics, 0 to 1 unless their definition says otherwise.

        Args:
            rows: The rows that were predicted. For generation: one per distinct prompt is predicted, see `prompts`.
            predictions: One per row, or, for generation, one per distinct prompt in first-seen order.
        """

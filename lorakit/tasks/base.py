"""What every task offers: its rows and its metrics. One class carries both, so data and scoring cannot drift apart."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self

from pydantic import Field, PositiveInt

from lorakit.data.readers import Record
from lorakit.data.rows import ChoiceRow, Row, TextRow, distinct_prompts
from lorakit.errors import DataError
from lorakit.metrics import LABEL_METRICS, LACKING, SLOW, TEXT_METRICS
from lorakit.section import Section

Kind = Literal["classification", "regression", "generation"]
Prediction = int | float | str
"""A class index, a number, or a generated text."""
Dropped = str
"""In place of a row: why it was left out."""


@dataclass(frozen=True)
class Split:
    """The rows of one split, with what was dropped while reading.

    Args:
        rows: In the order of the file; `limit` already applied.
        dropped: Why rows were left out → how many.
        revision: The commit that rows from the hub are of; None for files.
    """

    rows: Sequence[Row]
    dropped: dict[str, int] = field(default_factory=dict)
    revision: str | None = None


@dataclass(frozen=True)
class Reading:
    """A split that is being read, row by row.

    Args:
        rows: In the order of the file, up to `limit`; can be gone through once.
        dropped: Why rows were left out → how many; complete when the rows are all read.
        revision: The commit that rows from the hub are of; None for files.
    """

    rows: Iterator[Row]
    dropped: Counter[str] = field(default_factory=Counter)
    revision: str | None = None


@dataclass(frozen=True)
class Scores:
    """What a task says of predictions.

    Args:
        values: The metrics, 0 to 1 unless their definition says otherwise; nan where one is undefined.
        notes: For people: what was not computed and why, what was counted on the way.
        rows: Predictions that were scored; None where the task does not say.
    """

    values: dict[str, float]
    notes: tuple[str, ...] = ()
    rows: int | None = None


class Task(Section):
    """A data set in its official layout together with its official metrics."""

    places: ClassVar[tuple[str, ...]] = ("path",)
    """Keys that say where the data lie; they may change while the rows do not."""
    has_rows: ClassVar[bool] = True
    """Whether there are data at all; without, a run is there to be merged, exported and combined."""

    name: str
    max_length: PositiveInt | None = None
    """Tokens per row; null: 512, or what the model has positions for. Truncated rows are counted and reported."""
    limit: dict[
        Literal["train", "validation", "validation_mismatched", "test", "test_mismatched", "diagnostic"], PositiveInt
    ] = Field(default_factory=dict)
    """The first N rows of a split."""

    def resolve(self) -> Self:
        """The task with what the data decides filled in, so that a run can be rebuilt without its training rows."""
        return self

    def missing(self) -> str | None:
        """What this task needs and this machine lacks, such as a library, and what to do; None where all is there."""
        return None

    @property
    @abstractmethod
    def kind(self) -> Kind:
        """What is predicted: a class, a number, or text."""

    @property
    def head(self) -> Kind:
        """What the model gives it with: that of `kind`, or generation where a language model names the class."""
        return self.kind

    @property
    @abstractmethod
    def labels(self) -> tuple[str, ...]:
        """Class names by index; one name for regression; empty for generation."""

    @property
    @abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics, the paper's first; higher is better, except for `loss`, which every evaluation has."""

    def not_computed(self) -> dict[str, str]:
        """Metric → why it cannot be computed on this machine, or with this data."""
        lacking = {name: LACKING[name]() for name in self.metrics if name in LACKING}
        return {name: reason for name, reason in lacking.items() if reason is not None}

    @property
    def slow_metrics(self) -> frozenset[str]:
        """Metrics that evaluations during training leave out, unless the best step is chosen by one of them."""
        return SLOW & frozenset(self.metrics)

    @property
    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """Splits that this task can have, of those that `limit` names."""

    @property
    def official_rows(self) -> dict[str, int]:
        """Split → its rows as published, for `plan` where the files are not here; empty where nothing is published."""
        return {}

    @abstractmethod
    def read(self, split: str) -> Reading:
        """Begin to read one split; what is wrong with a row is said when it comes.

        Raises:
            DataError: The file is missing, empty or malformed; names the file and the line.
        """

    def load(self, split: str) -> Split:
        """Read one split, all of it into memory.

        Raises:
            DataError: As `read`.
        """
        reading = self.read(split)
        return Split(list(reading.rows), dict(reading.dropped), reading.revision)

    @abstractmethod
    def sample(self, count: int, seed: int) -> list[Row]:
        """Made-up rows of this task's kind, for `train --smoke`: offline and deterministic."""

    @abstractmethod
    def from_input(self, given: Mapping[str, object] | str, where: str) -> Row:
        """A row to be predicted, from what a person gave: without label, target or answer.

        Args:
            given: The fields of a JSON line, or a plain line.
            where: File and line, for messages.

        Raises:
            DataError: A field is missing, unknown or malformed; says which there are.
        """

    def submission(self, split: str, predictions: Sequence[Prediction]) -> tuple[str, str] | None:
        """(name, content) of the official file with the predictions for a split; None where there is no such format."""
        return None

    def submission_splits(self, split: str) -> tuple[str, ...]:
        """What `predict --split` takes at once: the split, with those that a submission needs beside it."""
        return (split,)

    def incomplete(self, split: str, rows: int) -> str | None:
        """Why a split of so many rows makes no valid submission; None where it does, or where there is no such format.

        Raises:
            DataError: It makes none, and nobody asked for fewer rows.
        """
        return None

    def score(self, rows: Sequence[Row], predictions: Sequence[Prediction], *, quick: bool = False) -> Scores:
        """The task's metrics.

        Args:
            rows: The rows that were predicted.
            predictions: One per row, or, for generation, one per row of `distinct_prompts(rows)`.
            quick: Leave out `slow_metrics`.

        Raises:
            DataError: A row has no label, or a prompt no reference.
        """
        missing = self.not_computed()
        names = [name for name in self.metrics if name not in missing and not (quick and name in self.slow_metrics)]
        notes = tuple(f"{name}: not computed: {reason}" for name, reason in missing.items())
        if self.kind == "generation":
            references = [several for _, several in distinct_prompts(rows)]
            assert len(references) == len(predictions), f"{len(predictions)} texts for {len(references)} prompts"
            if not all(references):
                raise DataError("a prompt has no reference to be scored against; `predict` needs none")
            values, failures = _text_metrics(names, references, [str(text) for text in predictions])
            return Scores(values, notes + failures, len(predictions))
        assert len(rows) == len(predictions), f"{len(predictions)} predictions for {len(rows)} rows"
        labels = [row.label for row in rows if isinstance(row, TextRow | ChoiceRow) and row.label is not None]
        if len(labels) < len(rows):
            raise DataError("these rows have no labels to be scored against; `predict` needs none")
        numbers = [float(value) for value in predictions]
        return Scores({name: LABEL_METRICS[name](labels, numbers) for name in names}, notes, len(numbers))

    def gather(self, split: str, rows: Iterable[Row | Dropped], revision: str | None = None) -> Reading:
        """Take rows up to `limit`, and count those left out on the way.

        Args:
            split: Whose limit applies.
            rows: Read lazily: nothing after the limit is looked at.
            revision: Of the hub, if they are from there.

        Returns:
            A reading that ends with a DataError if no row is left.
        """
        most = {str(name): count for name, count in self.limit.items()}.get(split)
        dropped: Counter[str] = Counter()

        def taken() -> Iterator[Row]:
            count = 0
            for row in rows:
                if isinstance(row, str):
                    dropped[row] += 1
                    continue
                count += 1
                yield row
                if count == most:
                    return
            if not count:
                raise DataError(f"{self.name}: no row of the split {split} is left; dropped: {dict(dropped)}")

        return Reading(taken(), dropped, revision)

    def require_split(self, split: str) -> None:
        """Refuse a split that this task does not have.

        Raises:
            DataError: It is none of `splits`.
        """
        if split not in self.splits:
            raise DataError(f"{self.name}: there is no split `{split}`; choose from {', '.join(self.splits)}")


class TextTask(Task):
    """A task whose answers are texts."""

    @property
    def kind(self) -> Kind:
        """Generation."""
        return "generation"

    @property
    def labels(self) -> tuple[str, ...]:
        """None: text is generated."""
        return ()


def _text_metrics(
    names: Sequence[str], references: Sequence[Sequence[str]], texts: Sequence[str]
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Values, and notes on metrics whose program failed: a run of hours must not end without its report for that."""
    values: dict[str, float] = {}
    failures = []
    for name in names:
        try:
            values[name] = TEXT_METRICS[name](references, texts)
        except DataError as error:
            failures.append(f"{name}: not computed: {error}")
    return values, tuple(failures)


def known_fields(given: Mapping[str, object], allowed: Sequence[str], where: str) -> Record:
    """The fields of a JSON line that a person gave, none of which is unknown.

    Raises:
        DataError: One is; names the allowed ones.
    """
    strangers = [name for name in given if name not in allowed]
    if strangers:
        raise DataError(f"{where}: unknown: {', '.join(strangers)}; the fields of this task are {', '.join(allowed)}")
    return Record(where, given)

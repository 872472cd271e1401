"""The numbers that a recipe is to reproduce: the recipe's `paper` section, and a `paper` of each method beside it."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from lorakit.section import Section


class PaperRow(Section):
    """One row's number, on the paper's scale (87.5, not 0.875); the section `paper` says of what it is."""

    value: float
    """The number that a reproduction is judged by, on the paper's scale (87.5, not 0.875)."""
    std: NonNegativeFloat | None = None
    """Its spread over seeds, as printed."""
    tolerance: NonNegativeFloat | None = None
    """How far from `value`, on the paper's scale, a reproduction may end; null: it is shown and not judged."""
    label: str | None = None
    """What the row is called where it is printed, such as `AdptD`; null: the method's name."""
    params: str | None = None
    """The number of trained parameters as it is printed there, such as `0.35M`."""
    others: dict[str, float] = {}
    """The row's numbers by other metrics of the task; shown, not judged."""
    known: str | None = None
    """What is known about reproducing it; said with the verdict."""
    unavailable: str | None = None
    """Why this base cannot have the row, where it cannot: the row is shown without a run."""


class Paper(PaperRow):
    """The number that the recipe reproduces: reports show it, and `lorakit reproduce` judges by it."""

    source: str
    """Where it is printed, e.g. `Table 2`; or where else it comes from."""
    metric: str
    """The task's metric that it is compared with."""
    note: str | None = None
    """What a reader of the comparison must know."""
    statistic: Literal["median", "mean"] = "mean"
    """What is taken over the seeds."""
    seeds: PositiveInt = 1
    """Over how many."""
    split: Annotated[str | None, Field(min_length=1)] = None
    """What it was measured on; null: the task's first validation split, on which the best step is chosen."""

    def of(self, row: PaperRow) -> "Paper":
        """Another row of the same table."""
        shared: dict[str, Any] = self.model_dump(include=_SHARED)
        return Paper(**shared, **row.model_dump())


_SHARED = set(Paper.model_fields) - set(PaperRow.model_fields)

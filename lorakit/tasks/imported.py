"""The task of an adapter that was imported without one: what the model's head is, and no rows."""

from collections.abc import Mapping
from typing import ClassVar, Literal, NoReturn

from pydantic import ConfigDict, Field, model_validator

from lorakit.data.rows import Row
from lorakit.errors import DataError
from lorakit.tasks.base import Kind, Reading, Task
from lorakit.tasks.made_up import completion_rows, text_rows

NO_TASK = (
    "this adapter was imported without a task, so that there are no rows: import it again with --recipe FILE, "
    "whose task section names them"
)


class Imported(Task):
    """What `lorakit import` writes where no recipe names the task: the run can be merged, exported and combined."""

    model_config = ConfigDict(serialize_by_alias=True)
    places: ClassVar[tuple[str, ...]] = ()
    has_rows: ClassVar[bool] = False

    name: Literal["imported"] = "imported"
    data_kind: Kind = Field(alias="kind")
    """What the model's head is for: classification, regression or generation."""
    label_names: list[str] = Field(default_factory=list, alias="labels")
    """The classes by index; one name for regression, none for generation."""

    @model_validator(mode="after")
    def _labels_fit(self) -> "Imported":
        count = len(self.label_names)
        wrong = {"generation": count > 0, "regression": count != 1, "classification": count < 2}
        if wrong[self.data_kind]:
            raise ValueError("labels: two or more for classification, one for regression, none for generation")
        return self

    @property
    def kind(self) -> Kind:
        """That of the head."""
        return self.data_kind

    @property
    def labels(self) -> tuple[str, ...]:
        """As written."""
        return tuple(self.label_names)

    @property
    def metrics(self) -> tuple[str, ...]:
        """None: there is nothing to score."""
        return ()

    @property
    def splits(self) -> tuple[str, ...]:
        """None."""
        return ()

    def missing(self) -> str | None:
        """The task."""
        return NO_TASK

    def read(self, split: str) -> Reading:
        """Refuse: there are no rows.

        Raises:
            DataError: Always; says how to give the run a task.
        """
        _refuse()

    def require_split(self, split: str) -> None:
        """Refuse: there are no rows.

        Raises:
            DataError: Always; says how to give the run a task.
        """
        _refuse()

    def sample(self, count: int, seed: int) -> list[Row]:
        """Made-up rows of the head's kind."""
        if self.data_kind == "generation":
            return completion_rows(count, seed)
        labels = [0.0, 1.0] if self.data_kind == "regression" else list(range(len(self.label_names)))
        return text_rows(count, seed, labels, pair=False)

    def from_input(self, given: Mapping[str, object] | str, where: str) -> Row:
        """Refuse: nobody knows how a row becomes a text.

        Raises:
            DataError: Always; says how to give the run a task.
        """
        _refuse()


def _refuse() -> NoReturn:
    raise DataError(NO_TASK)

"""What `lorakit score` is given: files of predictions and references, and nothing of a model."""

from dataclasses import dataclass
from pathlib import Path

from lorakit.errors import RecipeError


@dataclass(frozen=True)
class Files:
    """The files of one scoring.

    Args:
        predictions: What a model said.
        references: What it is compared with.
        subset: Of tasks that have several.
        tables: WikiSQL's tables file; null: beside the references.
        db: WikiSQL's database, for execution accuracy.
    """

    predictions: Path
    references: Path
    subset: str | None = None
    tables: Path | None = None
    db: Path | None = None

    def refuse(self, task: str, *options: str) -> None:
        """Refuse options that a task has no use for.

        Args:
            task: Its name.
            options: Of `subset`, `tables` and `db`.

        Raises:
            RecipeError: One of them is given.
        """
        given = [f"--{option}" for option in options if getattr(self, option) is not None]
        if given:
            raise RecipeError(f"{', '.join(given)}: {task} has no use for it")

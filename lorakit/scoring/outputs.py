"""Generated texts as `lorakit score` is given them."""

from pathlib import Path

from lorakit.data.readers import read_jsonl, read_lines
from lorakit.errors import DataError


def read_texts(path: Path) -> list[str]:
    """One text per line, or `prediction` of each line of a .jsonl file, as `lorakit eval` and `predict` write it.

    An empty line is an empty text, which is scored as such; the end of the last line begins no other one.

    Raises:
        DataError: The file cannot be read, or a line of the .jsonl file is no object with this field.
    """
    if path.suffix == ".jsonl":
        return [record.text("prediction") for record in read_jsonl(path)]
    return [line for _, line in read_lines(path)]


def require_as_many(predictions: Path, said: int, references: Path, asked: int, what: str) -> None:
    """Refuse more or fewer predictions than there are references.

    Args:
        predictions: The file of predictions.
        said: How many they are.
        references: The file of references.
        asked: How many predictions it takes.
        what: What it takes one prediction for each of, in the plural.

    Raises:
        DataError: The numbers differ, or there is nothing to be scored.
    """
    if said != asked:
        line = min(said, asked) + 1
        raise DataError(
            f"{predictions}: {said:,} predictions, but {references} has {asked:,} {what}, and each takes one; "
            f"number {line:,} is the first without its counterpart"
        )
    if not said:
        raise DataError(f"{predictions}: there are no predictions in this file")

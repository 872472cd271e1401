"""`lorakit score glue --subset S`: a file in the format of submissions against an official file with labels."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lorakit.data.readers import read_tsv, shown
from lorakit.errors import DataError, RecipeError
from lorakit.scoring.base import Files
from lorakit.scoring.outputs import require_as_many
from lorakit.tasks.base import Scores
from lorakit.tasks.glue import DISAGREED, Glue
from lorakit.tasks.glue_corpora import CORPORA


def score(files: Files) -> Scores:
    """The subset's metrics.

    Args:
        files: Predictions: `index` and `prediction`, as gluebenchmark.com takes them, one per row of the references.
            References: the subset's official dev or train file. Rows of MNLI on which the annotators did not agree
            take a prediction, which is not scored; QQP's broken rows are no rows.

    Raises:
        RecipeError: The subset is missing or unknown, or an option of another task is given.
        DataError: A file is missing or malformed, an index is not the next one, a label is none of the subset's, or
            there are more or fewer predictions than rows.
    """
    files.refuse("glue", "tables", "db")
    if files.subset not in CORPORA:
        given = "is missing" if files.subset is None else f"{files.subset}: there is no such subset"
        raise RecipeError(f"--subset {given}; choose from {', '.join(CORPORA)}")
    task = Glue.model_validate({"subset": files.subset})
    said = list(_predictions(task, files.predictions))
    read = list(task.read_labelled(files.references))
    rows = [row for row in read if not isinstance(row, str) or row == DISAGREED]
    require_as_many(files.predictions, len(said), files.references, len(rows), "rows")
    kept = [(row, value) for row, value in zip(rows, said, strict=True) if not isinstance(row, str)]
    if not kept:
        raise DataError(f"{files.references}: there is no row with a label in this file")
    scores = task.score([row for row, _ in kept], [value for _, value in kept])
    disagreed, broken = len(rows) - len(kept), len(read) - len(rows)
    notes = [f"rows that are not scored: {disagreed:,} ({DISAGREED})"] if disagreed else []
    notes += [f"malformed rows of the references, which take no prediction: {broken:,}"] if broken else []
    return replace(scores, notes=(*scores.notes, *notes))


def _predictions(task: Glue, path: Path) -> Iterator[int | float]:
    for number, record in enumerate(read_tsv(path)):
        if record["index"] != str(number):
            raise DataError(
                f"{record.where}: `index` must be {number}, the number of the row counted from 0, "
                f"but is {shown(record['index'])}"
            )
        yield task.label_of(record, "prediction")

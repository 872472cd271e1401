"""`lorakit score e2e`: the metrics of tuetschek/e2e-metrics, from the files that `measure_scores.py` takes."""

from collections.abc import Iterator
from pathlib import Path

from lorakit.data.readers import Record, read_csv, read_lines, shown
from lorakit.data.rows import CompletionRow, Row
from lorakit.errors import DataError
from lorakit.scoring.base import Files
from lorakit.scoring.outputs import read_texts, require_as_many
from lorakit.tasks.base import Scores
from lorakit.tasks.e2e import E2E

_TABLES = (".csv", ".tsv")
Said = tuple[str, str | None, str]
"""Where a prediction stands, its meaning representation where the file has it, and its text."""
Group = tuple[str | None, list[str]]
"""A meaning representation, where the file has it, and its references."""


def score(files: Files) -> Scores:
    """BLEU, NIST in both forms, METEOR, ROUGE-L and CIDEr.

    Args:
        files: Predictions: one line per meaning representation, in the order in which the references first have it; or
            a .tsv or .csv file with the columns MR and output in that order. References: a .csv or .tsv file with the
            columns mr and ref, of which equal meaning representations are one group wherever they stand; or lines,
            with a blank line between the groups (without any blank line: one reference each).

    Raises:
        RecipeError: An option of another task is given.
        DataError: A file is missing or malformed, there are more or fewer predictions than groups, or one is of
            another meaning representation than its references.
    """
    files.refuse("e2e", "subset", "tables", "db")
    said = list(_predictions(files.predictions))
    groups = _references(files.references, len(said))
    _require_same_meanings(said, groups, files)
    require_as_many(files.predictions, len(said), files.references, len(groups), "meaning representations")
    rows: list[Row] = [CompletionRow(str(n), text) for n, (_, texts) in enumerate(groups) for text in texts]
    return E2E().score(rows, [text for _, _, text in said])


def _predictions(path: Path) -> Iterator[Said]:
    if path.suffix not in _TABLES:
        yield from ((str(path), None, text) for text in read_texts(path))
        return
    for record in _table(path):
        yield record.where, record.text(_column(record, "mr")), record.text(_column(record, "output"))


def _references(path: Path, predictions: int) -> list[Group]:
    if path.suffix not in _TABLES:
        return _blocks(path, predictions)
    grouped: dict[str, list[str]] = {}
    for record in _table(path):
        grouped.setdefault(record.text(_column(record, "mr")), []).append(record.text(_column(record, "ref")))
    return list(grouped.items())


def _blocks(path: Path, predictions: int) -> list[Group]:
    """Groups of lines; as in the official script, a file without a blank line has one reference per prediction."""
    groups: list[list[str]] = [[]]
    for _, line in read_lines(path):
        if line.strip():
            groups[-1].append(line)
        elif groups[-1]:
            groups.append([])
    filled = [group for group in groups if group]
    if len(filled) == 1 and predictions != 1:
        filled = [[text] for text in filled[0]]
    return [(None, group) for group in filled]


def _table(path: Path) -> Iterator[Record]:
    """Rows of a table; what divides the cells is a tab where the header has one, as the official script sees it."""
    header = next(read_lines(path), (1, ""))[1]
    return read_csv(path, "\t" if "\t" in header else ",")


def _column(record: Record, name: str) -> str:
    """The column of that name, in capitals or not: testset.csv writes MR, the others mr."""
    return next((column for column in record.cells if column.lower() == name), name)


def _require_same_meanings(said: list[Said], groups: list[Group], files: Files) -> None:
    for (where, meaning, _), (expected, _) in zip(said, groups, strict=False):
        if meaning is not None and expected is not None and meaning != expected:
            raise DataError(
                f"{where}: this prediction is for {shown(meaning)}, but the next meaning representation of "
                f"{files.references} is {shown(expected)}; both must come in the same order"
            )

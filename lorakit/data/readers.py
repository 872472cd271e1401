"""Read data files row by row: JSON lines or arrays, CSV, TSV and Parquet, each row with the place that it came from."""

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from lorakit.errors import DataError


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a file.

    Args:
        where: The file and the line (Parquet, JSON array: the row), as messages show it.
        cells: Its cells by column name.
    """

    where: str
    cells: Mapping[str, object]

    def __getitem__(self, column: str) -> object:
        """The cell of a column.

        Raises:
            DataError: There is no such column; lists those that there are.
        """
        if column in self.cells:
            return self.cells[column]
        near = get_close_matches(column, self.cells, n=1)
        hint = f"; did you mean `{near[0]}`?" if near else "."
        columns = ", ".join(self.cells) or "none"
        raise DataError(f"{self.where}: there is no column `{column}`{hint} Columns here: {columns}.")

    def text(self, column: str) -> str:
        """A cell that must be text.

        Raises:
            DataError: It is missing, null, or something else than text.
        """
        cell = self[column]
        if not isinstance(cell, str):
            raise DataError(f"{self.where}: `{column}` must be text, but is {shown(cell)}")
        return cell

    def number(self, column: str) -> float:
        """A cell that must be a finite number, or text that spells one.

        Raises:
            DataError: It is missing, null, or no finite number.
        """
        cell = self[column]
        try:
            number = math.nan if isinstance(cell, bool) else float(cell)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise DataError(f"{self.where}: `{column}` must be a number, but is {shown(cell)}")
        return number


def shown(value: object) -> str:
    """A cell as a message shows it: as JSON where it has such a form, shortened."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_records(path: Path) -> Iterator[Record]:
    """The rows of a data file, in their order; its name's ending says how to read it.

    Raises:
        DataError: The file is missing, unreadable, malformed or empty; names the line.
    """
    if path.suffix not in READERS:
        raise DataError(f"{path}: the name of a data file ends in one of {', '.join(READERS)}")
    empty = True
    for record in READERS[path.suffix](path):
        empty = False
        yield record
    if empty:
        raise DataError(f"{path}: there are no rows in this file")


def read_jsonl(path: Path) -> Iterator[Record]:
    """One JSON object per line; blank lines are skipped.

    Raises:
        DataError: The file cannot be read, or a line is no JSON object.
    """
    for number, line in read_lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            cells = json.loads(line)
        except (ValueError, RecursionError) as error:
            hint = "; write one object per line, not an array" if number == 1 and line.lstrip().startswith("[") else ""
            raise DataError(f"{where}: not JSON ({error}){hint}") from error
        if not isinstance(cells, dict):
            raise DataError(f"{where}: a line must hold a JSON object such as {{...}}, but this is {shown(cells)}")
        yield Record(where, cells)


def read_json(path: Path) -> Iterator[Record]:
    """One JSON array of objects; `where` counts them from 1.

    Raises:
        DataError: The file cannot be read, or is no array of objects.
    """
    try:
        rows = json.loads("".join(line for _, line in _decoded(path)))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}); a file with one object per line ends in .jsonl") from error
    if not isinstance(rows, list):
        raise DataError(f"{path}: must hold an array of objects, [{{...}}, ...], but this is {shown(rows)}")
    for number, cells in enumerate(rows, start=1):
        if not isinstance(cells, dict):
            raise DataError(f"{path}, row {number}: must be a JSON object such as {{...}}, but is {shown(cells)}")
        yield Record(f"{path}, row {number}", cells)


def read_csv(path: Path, delimiter: str = ",") -> Iterator[Record]:
    """Comma-separated values with a header; quoted cells may hold commas, doubled quotes and line breaks.

    Args:
        path: The file.
        delimiter: Another character in the place of the comma.

    Raises:
        DataError: The file cannot be read, its quoting is broken, or a row has more or fewer cells than the header.
    """
    reader = csv.reader((line for _, line in _decoded(path)), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    start = 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{path}:{start}: not well-formed CSV: {error}") from error
        if cells is None:
            return
        if header is None and cells:
            header = _header(cells, f"{path}:{start}")
        elif header is not None and cells:
            yield _row(header, cells, f"{path}:{start}")
        start = reader.line_num + 1


def read_tsv(path: Path) -> Iterator[Record]:
    """Tab-separated values with a header; as in GLUE's files, quotes mean nothing and a cell has no tab or line break.

    Raises:
        DataError: The file cannot be read, or a row has more or fewer cells than the header.
    """
    header: list[str] | None = None
    for number, line in read_lines(path):
        cells = line.split("\t")
        if header is None:
            header = _header(cells, f"{path}:{number}")
        elif line:
            yield _row(header, cells, f"{path}:{number}")


def read_parquet(path: Path) -> Iterator[Record]:
    """A Parquet file; `where` counts its rows from 1.

    Raises:
        DataError: The file cannot be read.
    """
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches():
                for cells in batch.to_pylist():
                    number += 1
                    yield Record(f"{path}, row {number}", cells)
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as Parquet: {error}") from error


READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
}


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file with their numbers from 1, without line ends and without a byte order mark.

    A line ends at LF or CR LF only: sentences may hold Unicode's other line separators.

    Raises:
        DataError: The file cannot be read or is not UTF-8.
    """
    for number, line in _decoded(path):
        yield number, line.removesuffix("\n").removesuffix("\r")


def _decoded(path: Path) -> Iterator[tuple[int, str]]:
    """As `read_lines`, with the line ends."""
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):  # noqa: B007 (the message needs the number)
                text = line.decode("utf-8")
                yield number, text.removeprefix("\ufeff") if number == 1 else text
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:{number}: not UTF-8 (byte {error.start + 1} of the line); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _header(cells: Sequence[str], where: str) -> list[str]:
    twice = sorted({name for name in cells if cells.count(name) > 1})
    if twice:
        raise DataError(f"{where}: the header names a column twice: {', '.join(twice)}")
    return list(cells)


def _row(header: Sequence[str], cells: Sequence[str], where: str) -> Record:
    if len(cells) != len(header):
        raise DataError(f"{where}: {len(cells)} cells, but the header has {len(header)}: {', '.join(header)}")
    return Record(where, dict(zip(header, cells, strict=True)))

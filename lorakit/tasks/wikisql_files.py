"""WikiSQL's official files: questions (dev.jsonl), their tables (dev.tables.jsonl), and predictions."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeGuard

from lorakit.data.readers import Record, read_jsonl, read_lines, shown
from lorakit.errors import DataError
from lorakit.metrics.wikisql import AGGREGATES, OPERATORS, Condition, Predicted, Query, Question
from lorakit.tasks.wikisql_text import NoQuery, parse, render


def read_questions(questions: Path, tables: Path) -> Iterator[tuple[Question, str]]:
    """The questions of a split with their words; that each one's query survives as SQL text is made sure of here.

    Args:
        questions: Such as dev.jsonl.
        tables: Such as dev.tables.jsonl.

    Raises:
        DataError: A file is missing, empty or malformed, a table is not there, or a query does not fit its table.
    """
    headers = read_headers(tables)
    empty = True
    for record in read_jsonl(questions):
        empty = False
        table = record.text("table_id")
        if table not in headers:
            raise DataError(f"{record.where}: {tables} has no table {shown(table)}")
        header = headers[table]
        question = Question(record.where, table, header, _right_query(record, header))
        _require_round_trip(question)
        yield question, record.text("question")
    if empty:
        raise DataError(f"{questions}: there are no questions in this file")


def read_headers(tables: Path) -> dict[str, tuple[str, ...]]:
    """Table id → its columns.

    Raises:
        DataError: The file cannot be read, or a table in it is malformed or has two headers.
    """
    headers: dict[str, tuple[str, ...]] = {}
    for record in read_jsonl(tables):
        table, header = record.text("id"), header_of(record)
        if headers.setdefault(table, header) != header:
            raise DataError(f"{record.where}: the table {shown(table)} is there twice, with another header")
    return headers


def header_of(record: Record) -> tuple[str, ...]:
    """The column names in the cell `header`.

    Raises:
        DataError: It is no list of names, or an empty one.
    """
    header = record["header"]
    if not isinstance(header, list) or not header or not all(isinstance(name, str) for name in header):
        raise DataError(f"{record.where}: `header` must be a list of column names, but is {shown(header)}")
    return tuple(header)


def read_predictions(file: Path, questions: Sequence[Question]) -> list[Predicted]:
    """One prediction per question, in one of two forms.

    JSON lines, if the first line that is not blank starts with `{`: the official objects with a `query` or an `error`,
    or lorakit's own with SQL text as their `prediction`. Else every line is SQL text, an empty one included: a model
    that said nothing.

    Raises:
        DataError: The file cannot be read, is no JSON, or has more or fewer predictions than there are questions.
    """
    lines = list(read_lines(file))
    said = next((line for _, line in lines if line.strip()), "")
    if said.lstrip().startswith("{"):
        records = list(read_jsonl(file))
        _require_as_many(file, [record.where for record in records], questions)
        return [_predicted(record, question.header) for record, question in zip(records, questions, strict=True)]
    _require_as_many(file, [f"{file}:{number}" for number, _ in lines], questions)
    return [parsed(line, question.header) for (_, line), question in zip(lines, questions, strict=True)]


def parsed(text: str, header: Sequence[str]) -> Predicted:
    """The query that a model wrote, or why it is none."""
    try:
        return parse(text, header)
    except NoQuery as error:
        return f"{shown(text)}: {error}"


def _predicted(record: Record, header: Sequence[str]) -> Predicted:
    """A line of predictions: a `query`, an `error`, with which the official script counts it as wrong, or SQL text.

    Raises:
        DataError: It is none of them, but a line of something else.
    """
    if record.cells.get("error"):
        return f"{record.where}: error: {shown(record['error'])}"
    if "prediction" in record.cells and "query" not in record.cells:
        return parsed(record.text("prediction"), header)
    try:
        return _query(record["query"])
    except ValueError as error:
        return f"{record.where}: {error}"


def _right_query(record: Record, header: Sequence[str]) -> Query:
    """The cell `sql`, within the table's columns."""
    try:
        query = _query(record["sql"])
    except ValueError as error:
        raise DataError(f"{record.where}: `sql`: {error}") from error
    columns = (query.sel, *(column for column, _, _ in query.conds))
    fits = query.agg in range(len(AGGREGATES)) and all(column in range(len(header)) for column in columns)
    if not fits or not all(operator in range(len(OPERATORS)) for _, operator, _ in query.conds):
        raise DataError(
            f"{record.where}: `sql`: a column, aggregate or operator is out of range for a table of {len(header)} "
            f"columns: {shown(record['sql'])}"
        )
    return query


def _query(given: object) -> Query:
    """A query from its JSON: `{"sel": 3, "agg": 0, "conds": [[5, 0, "value"]]}`.

    Raises:
        ValueError: It is malformed.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"must be {{sel, agg, conds}}, but is {shown(given)}")
    sel, agg, conds = (given.get(key) for key in ("sel", "agg", "conds"))
    if not _whole(sel) or not _whole(agg):
        raise ValueError(f"sel and agg must be whole numbers, but are {shown(sel)} and {shown(agg)}")
    if not isinstance(conds, list):
        raise ValueError(f"conds must be a list, but is {shown(conds)}")
    return Query(sel, agg, tuple(map(_condition, conds)))


def _condition(given: object) -> Condition:
    if not isinstance(given, list) or len(given) != 3 or not all(map(_whole, given[:2])):
        raise ValueError(f"a condition must be [column, operator, value], but is {shown(given)}")
    column, operator, value = given
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"a condition's value must be text or a number, but is {shown(value)}")
    return column, operator, value


def _whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _require_round_trip(question: Question) -> None:
    query = question.query
    text = render(query, question.header)
    back = parsed(text, question.header)
    if not isinstance(back, Query) or not back.same(query) or _spelled(back) != _spelled(query):
        raise DataError(f"{question.where}: this query does not survive as SQL text: {text}")


def _spelled(query: Query) -> list[str]:
    return [str(value) for _, _, value in query.conds]


def _require_as_many(file: Path, places: Sequence[str], questions: Sequence[Question]) -> None:
    if len(places) == len(questions):
        return
    alone = places[len(questions)] if len(places) > len(questions) else questions[len(places)].where
    raise DataError(
        f"{file}: {len(places):,} predictions for {len(questions):,} questions; the first without partner is {alone}"
    )

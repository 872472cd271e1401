"""WikiSQL's official metrics: logical form and execution accuracy (salesforce/WikiSQL, `evaluate.py` and `lib/`)."""

import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from lorakit.errors import DataError

AGGREGATES = ("", "MAX", "MIN", "COUNT", "SUM", "AVG")
"""By the numbers that the official files use."""
OPERATORS = ("=", ">", "<", "OP")
"""Likewise; OP is a placeholder that no question's query has, and no database runs."""

Value = str | int | float
Condition = tuple[int, int, Value]
"""(column, operator, value)."""
_NUMBER = re.compile(r"[-+]?\d*\.\d+|\d+")  # as the official engine has it: it misses the sign of a whole number


@dataclass(frozen=True, slots=True)
class Query:
    """A query as the official files write it.

    Args:
        sel: Index of the column that is selected.
        agg: Index of its aggregate.
        conds: All of them must hold.
    """

    sel: int
    agg: int
    conds: tuple[Condition, ...] = ()

    def same(self, other: "Query", *, ordered: bool = False) -> bool:
        """Official equality: column, aggregate and the set of conditions, whose values are compared as lower-case text.

        Args:
            other: The other query.
            ordered: Compare the conditions in their order, duplicates included.
        """
        mine, others = self._spelled(), other._spelled()
        alike = mine == others if ordered else set(mine) == set(others)
        return (self.sel, self.agg) == (other.sel, other.agg) and alike

    def _spelled(self) -> list[tuple[int, int, str]]:
        return [(column, operator, str(value).lower()) for column, operator, value in self.conds]


@dataclass(frozen=True, slots=True)
class Question:
    """What a question is scored by.

    Args:
        where: Its file and line, for messages.
        table: The id of its table.
        header: The table's columns.
        query: The right one.
    """

    where: str
    table: str
    header: tuple[str, ...]
    query: Query


Predicted = Query | str
"""A query, or why there is none."""


def logical_form(questions: Sequence[Question], predicted: Sequence[Predicted], *, ordered: bool = False) -> float:
    """The share of questions whose predicted query is the right one, 0 to 1.

    Args:
        questions: One or more.
        predicted: One per question.
        ordered: As the official `--ordered`: the conditions in the same order too.
    """
    hits = [
        isinstance(query, Query) and query.same(question.query, ordered=ordered)
        for question, query in zip(questions, predicted, strict=True)
    ]
    return sum(hits) / len(hits)


@dataclass(frozen=True)
class Execution:
    """What running the queries gave.

    Args:
        accuracy: The share of questions whose predicted query gives what the right one gives, 0 to 1.
        refused: Why predicted queries could not be run, of those that could not.
    """

    accuracy: float
    refused: tuple[str, ...] = ()


def execution(questions: Sequence[Question], predicted: Sequence[Predicted], file: Path) -> Execution:
    """Execution accuracy: results are compared as lists, in their order and with their duplicates.

    Args:
        questions: One or more.
        predicted: One per question; a query that cannot be run is wrong.
        file: The split's official database.

    Raises:
        DataError: The database is missing or is none, or a question's own query cannot be run; names its line.
    """
    hits, refused = 0, []
    with closing(Database(file)) as database:
        for question, query in zip(questions, predicted, strict=True):
            try:
                right = database.results(question.table, question.query)
            except Refusal as error:
                raise DataError(f"{question.where}: {file} cannot run this question's own query: {error}") from error
            if isinstance(query, Query):
                try:
                    hits += database.results(question.table, query) == right
                except Refusal as error:
                    refused.append(str(error))
    return Execution(hits / len(questions), tuple(refused))


class Refusal(Exception):
    """A query cannot be run."""


class Database:
    """One of the official SQLite files, opened read-only; a table is called `table_` + its id, columns col0, col1, ...

    No text of a prediction becomes SQL: columns are numbers that the table must have, operators and aggregates are our
    own words, and values are bound.

    Args:
        file: Such as dev.db.

    Raises:
        DataError: There is no such file, or it is no SQLite database.
    """

    def __init__(self, file: Path) -> None:
        if not file.is_file():
            raise DataError(f"{file}: there is no such database; it is part of WikiSQL's download")
        self._types: dict[str, dict[str, str]] = {}
        self._connection = sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)
        try:
            self._connection.execute("SELECT count(*) FROM sqlite_master")
        except sqlite3.Error as error:
            self._connection.close()
            raise DataError(f"{file}: not readable as an SQLite database: {error}") from error

    def close(self) -> None:
        """Release the file."""
        self._connection.close()

    def results(self, table: str, query: Query) -> list[object]:
        """What a query selects, by the rules of the official engine.

        Values are compared in lower case, as the databases hold them; in a column of numbers, text is read as a number
        (`1,000` too), else the first number in it is taken. Several conditions on one column all get the value of the
        last of them, since the official engine binds values by column.

        Args:
            table: Its id, such as 1-10015132-11.
            query: Of that table's columns.

        Raises:
            Refusal: There is no such table, column, aggregate or operator, or a column of numbers is compared with text
                that holds none.
        """
        name = table if table.startswith("table") else f"table_{table.replace('-', '_')}"
        try:
            types = self._columns(name)
            bound = {f"col{column}": _bindable(value, types[f"col{column}"]) for column, _, value in query.conds}
            selected = f"col{query.sel}"
            if selected not in types:
                raise KeyError(selected)
            where = " AND ".join(f"col{column} {OPERATORS[op]} :col{column}" for column, op, _ in query.conds)
            aggregated = f"{AGGREGATES[query.agg]}({selected})"
            quoted = name.replace('"', '""')
            text = f'SELECT {aggregated} FROM "{quoted}"' + (f" WHERE {where}" if where else "")
            return [row[0] for row in self._connection.execute(text, bound)]
        except KeyError as error:
            raise Refusal(f"the table {name} has no column {error.args[0]}") from error
        except IndexError as error:
            raise Refusal("there is no such aggregate or operator") from error
        except (sqlite3.Error, ValueError, OverflowError) as error:
            raise Refusal(str(error)) from error

    def _columns(self, name: str) -> dict[str, str]:
        """Column → its declared type in lower case, of a table that is in the database under exactly this name."""
        if name not in self._types:
            if not self._connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", [name]).fetchone():
                raise Refusal(f"there is no table {name}")
            # lower, since newer versions of SQLite answer REAL for a column that was declared real
            rows = self._connection.execute("SELECT name, lower(type) FROM pragma_table_info(?)", [name])
            self._types[name] = dict(rows.fetchall())
        return self._types[name]


def _bindable(value: Value, kind: str) -> Value:
    """A condition's value as the official engine compares it with a column of the type `kind`."""
    if not isinstance(value, str):
        return value
    return _number(value.lower()) if kind == "real" else value.lower()


def _number(text: str) -> float:
    """Text in a column of numbers.

    The official engine lets babel take the locale of the machine; here it is en_US, so that all machines agree.

    Raises:
        ValueError: There is no number in it.
    """
    from babel.numbers import NumberFormatError, parse_decimal

    try:
        return float(parse_decimal(text, locale="en_US"))
    except NumberFormatError:
        found = _NUMBER.search(text)
        if found is None:
            raise ValueError(f"a column of numbers is compared with {text!r}") from None
        return float(found[0])

"""Prompts from a template and a row's columns: `Question: {question}`."""

import re

from lorakit.data.readers import Record, shown
from lorakit.errors import DataError

_PIECE = re.compile(r"\{\{|\}\}|\{(?P<column>[^{}]*)\}|[{}]")


def parse_template(template: str) -> list[tuple[str, str | None]]:
    """A template's parts: (text before, column), the column None at the end or after a doubled brace.

    Only plain column names stand in braces: no attributes, indices, conversions or formats as in `str.format`, through
    which a template could reach into Python's objects.

    Raises:
        ValueError: A brace is unbalanced, or what is in braces is no plain name.
    """
    parts: list[tuple[str, str | None]] = []
    start = 0
    for match in _PIECE.finditer(template):
        before, start = template[start : match.start()], match.end()
        column = match["column"]
        if match[0] in ("{{", "}}"):
            parts.append((before + match[0][0], None))
        elif column is None:
            raise ValueError(
                f"unbalanced {match[0]!r} at character {match.start() + 1}; a brace itself is {match[0] * 2}"
            )
        elif not column or column != column.strip() or re.search(r"[.\[\]!:]", column):
            raise ValueError(f"{match[0]}: only the name of a column stands in braces")
        else:
            parts.append((before, column))
    return [*parts, (template[start:], None)]


def columns_of(template: str) -> list[str]:
    """The columns that a template names, in its order, each once.

    Raises:
        ValueError: As `parse_template`.
    """
    return list(dict.fromkeys(column for _, column in parse_template(template) if column is not None))


def render(template: str, record: Record) -> str:
    """Fill a template with a row's cells; what a cell holds is never looked at for braces.

    Raises:
        DataError: There is no such column, or its cell is neither text nor a number.
    """
    return "".join(
        text + ("" if column is None else _cell(record, column)) for text, column in parse_template(template)
    )


def _cell(record: Record, column: str) -> str:
    cell = record[column]
    if isinstance(cell, bool) or not isinstance(cell, str | int | float):
        raise DataError(f"{record.where}: `{column}` must be text or a number, but is {shown(cell)}")
    return str(cell)

"""WikiSQL's queries as SQL text, and back: SELECT COUNT("Player") FROM table WHERE "No." = '3' AND "Name" = 'O''Neal'.

Names stand in double quotes and values in single ones, always, with a quote inside doubled as in standard SQL. So
nothing that a header or a value holds (quotes, commas, ` AND `, line breaks) can be taken for a part of the query.
"""

import re
from collections.abc import Sequence

from lorakit.data.readers import shown
from lorakit.metrics.wikisql import AGGREGATES, OPERATORS, Condition, Query

_NAME = r'"([^"]*(?:""[^"]*)*)"'
_VALUE = r"'([^']*(?:''[^']*)*)'"
_FLAGS = re.IGNORECASE | re.ASCII
_AGGREGATED = rf"({'|'.join(filter(None, AGGREGATES))})\s*\(\s*{_NAME}\s*\)"
_SELECT = re.compile(rf"\s*SELECT\s*(?:{_AGGREGATED}|{_NAME})\s*FROM\s+table\b", _FLAGS)
_CONDITION = re.compile(rf"\s*{_NAME}\s*({'|'.join(OPERATORS)})\s*{_VALUE}", _FLAGS)
_JOINED = re.compile(r"\s*AND\b", _FLAGS)
_WHERE = re.compile(r"\s*WHERE\b", _FLAGS)
_END = re.compile(r"\s*;?\s*", _FLAGS)


class NoQuery(Exception):
    """A text is no query of its table; says why."""


def column_names(header: Sequence[str]) -> list[str]:
    """What the columns are called in prompts and queries: white space collapsed, and no two alike.

    Two names are alike where they differ in case or white space only; the second of them gets ` (2)`, or the first
    number that makes it unlike all others.
    """
    plain = [" ".join(name.split()) for name in header]
    taken = {_key(name) for name in plain}
    seen: set[str] = set()
    names = []
    for name in plain:
        unlike, number = name, 2
        while _key(unlike) in (seen if unlike == name else taken):
            unlike, number = f"{name} ({number})".lstrip(), number + 1
        seen.add(_key(unlike))
        taken.add(_key(unlike))
        names.append(unlike)
    return names


def render(query: Query, header: Sequence[str]) -> str:
    """A query as SQL text.

    Args:
        query: All of its indices are in range.
        header: Of its table.
    """
    names = ['"' + name.replace('"', '""') + '"' for name in column_names(header)]
    aggregate, selected = AGGREGATES[query.agg], names[query.sel]
    conditions = [
        f"{names[column]} {OPERATORS[operator]} '" + str(value).replace("'", "''") + "'"
        for column, operator, value in query.conds
    ]
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    return f"SELECT {f'{aggregate}({selected})' if aggregate else selected} FROM table{where}"


def parse(text: str, header: Sequence[str]) -> Query:
    """The query that a text spells, with its values as text.

    The case of keywords and of column names means nothing, nor does white space outside of values, nor a semicolon at
    the end.

    Args:
        text: What a model said.
        header: Of the table.

    Raises:
        NoQuery: The text is not as `render` writes it, or names a column that the table has not.
    """
    indices = {_key(name): index for index, name in enumerate(column_names(header))}

    def column(quoted: str) -> int:
        name = quoted.replace('""', '"')
        if _key(name) not in indices:
            raise NoQuery(f"there is no column {shown(name)}")
        return indices[_key(name)]

    selected = _SELECT.match(text)
    if selected is None:
        raise NoQuery('it does not start as SELECT "column" FROM table')
    aggregate, inside, alone = selected.groups()
    sel = column(alone if inside is None else inside)
    conditions: list[Condition] = []
    place, joint = selected.end(), _WHERE
    while joined := joint.match(text, place):
        found = _CONDITION.match(text, joined.end())
        if found is None:
            raise NoQuery(f"""no condition such as "column" = 'value' at character {joined.end() + 1}""")
        name, operator, value = found.groups()
        conditions.append((column(name), OPERATORS.index(operator.upper()), value.replace("''", "'")))
        place, joint = found.end(), _JOINED
    if not _END.fullmatch(text, place):
        raise NoQuery(f"more than a query, from character {place + 1} on")
    return Query(sel, AGGREGATES.index((aggregate or "").upper()), tuple(conditions))


def _key(name: str) -> str:
    """Equal for names that are alike."""
    return " ".join(name.split()).lower()

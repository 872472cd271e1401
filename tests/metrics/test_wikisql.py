import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lorakit.errors import DataError
from lorakit.metrics.wikisql import Database, Query, Question, Refusal, execution, logical_form

GOLDEN = Path(__file__).parents[2] / "../shared/golden/wikisql"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="../shared/golden/wikisql is absent")
BOATS = [("Ida", 12.0, "oak", "3"), ("Nell", 7.5, "elm", "12"), ("Ida", 12.0, "elm", "2"), ("Zoe", 1200.0, None, "3.0")]


def write_boats(file: Path) -> Path:
    """Four boats: name, length (a number), wood, masts; in lower case, as the official databases are."""
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("CREATE TABLE table_2_77_1 (col0 text, col1 real, col2 text, col3 text)")
        rows = [tuple(cell.lower() if isinstance(cell, str) else cell for cell in row) for row in BOATS]
        database.executemany("INSERT INTO table_2_77_1 VALUES (?, ?, ?, ?)", rows)
    return file


@pytest.fixture
def boats(tmp_path: Path) -> Iterator[Database]:
    with closing(Database(write_boats(tmp_path / "boats.db"))) as database:
        yield database


def query(sel: int, agg: int = 0, *conds: tuple[int, int, Any]) -> Query:
    return Query(sel, agg, conds)


def asked(gold: Query) -> Question:
    return Question("dev.jsonl:7", "2-77-1", ("Name", "Length", "Wood", "Masts"), gold)


# --- logical form

ONE, OTHER = (0, 0, "Ida"), (1, 1, 5)


@pytest.mark.parametrize(
    ("gold", "said", "same", "ordered"),
    [
        (query(0), query(0), True, True),
        (query(0), query(1), False, False),
        (query(0, 3), query(0, 4), False, False),
        (query(1, 0, ONE), query(1), False, False),
        (query(1, 0, (0, 0, "Ida")), query(1, 0, (0, 0, "iDA")), True, True),
        (query(1, 0, (0, 0, "Ida")), query(1, 0, (0, 0, "Ida ")), False, False),
        (query(1, 0, (0, 0, "Ida")), query(1, 0, (0, 1, "Ida")), False, False),
        (query(0, 0, (1, 1, 856.0)), query(0, 0, (1, 1, "856.0")), True, True),
        (query(0, 0, (1, 1, 856.0)), query(0, 0, (1, 1, "856")), False, False),
        (query(2, 0, ONE, OTHER), query(2, 0, OTHER, ONE), True, False),
        (query(2, 0, ONE, OTHER), query(2, 0, ONE, ONE, OTHER), True, False),
        (query(2, 0, ONE, OTHER), query(2, 0, ONE, OTHER), True, True),
    ],
)
def test_official_equality(gold: Query, said: Query, same: bool, ordered: bool) -> None:
    assert (gold.same(said), said.same(gold)) == (same, same)
    assert gold.same(said, ordered=True) is ordered


def test_logical_form_is_a_share_and_no_query_is_wrong() -> None:
    golds = [asked(query(0)), asked(query(1, 0, ONE, OTHER)), asked(query(2)), asked(query(3))]
    said = [query(0), query(1, 0, OTHER, ONE), "no query", query(0)]
    assert logical_form(golds, said) == 0.5
    assert logical_form(golds, said, ordered=True) == 0.25


# --- the database


@pytest.mark.parametrize(
    ("sent", "results"),
    [
        (query(2, 0, (0, 0, "Ida")), ["oak", "elm"]),
        (query(0), ["ida", "nell", "ida", "zoe"]),
        (query(0, 3, (0, 0, "IDA")), [2]),
        (query(1, 1), [1200.0]),
        (query(1, 2), [7.5]),
        (query(1, 4, (0, 0, "Ida")), [24.0]),
        (query(1, 5, (0, 2, "j")), [12.0]),
        (query(1, 1, (0, 0, "nobody")), [None]),
        (query(1, 0, (0, 0, "nobody")), []),
        # a column of numbers: text is read as a number of en_US, else its first number is taken
        (query(0, 0, (1, 0, 12)), ["ida", "ida"]),
        (query(0, 0, (1, 0, "12.0")), ["ida", "ida"]),
        (query(0, 0, (1, 0, "1,200")), ["zoe"]),
        (query(0, 0, (1, 0, "7.5 m or so")), ["nell"]),
        (query(0, 0, (1, 2, "below -9 m")), ["nell"]),  # the official expression misses the sign of a whole number
        (query(0, 3, (1, 1, "above -9.5 m")), [4]),
        (query(0, 0, (1, 0, "nan")), []),
        # a column of text: a number is compared as SQLite writes it
        (query(0, 0, (3, 0, 3)), ["ida"]),
        (query(0, 0, (3, 0, 3.0)), ["zoe"]),
        (query(0, 0, (3, 1, "2")), ["ida", "zoe"]),  # "12" comes before "2"
        # the last value is that of all conditions on the column
        (query(0, 0, (1, 1, 10), (1, 2, 1000)), []),
        (query(0, 0, (1, 2, 1000), (1, 1, 10)), []),
        (query(0, 0, (1, 1, 5000), (1, 1, 10)), ["ida", "ida", "zoe"]),
        # what looks like SQL is a value
        (query(0, 0, (0, 0, "x' OR 1 --")), []),
    ],
)
def test_results_follow_the_official_engine(boats: Database, sent: Query, results: list[object]) -> None:
    assert boats.results("2-77-1", sent) == results
    assert boats.results("table_2_77_1", sent) == results


@pytest.mark.parametrize(
    ("table", "sent", "message"),
    [
        ("2-77-2", query(0), "there is no table table_2_77_2"),
        ("2-77-1 ", query(0), "there is no table table_2_77_1 "),
        ("2-77-1", query(4), "has no column col4"),
        ("2-77-1", query(-1), "has no column col-1"),
        ("2-77-1", query(0, 0, (9, 0, "x")), "has no column col9"),
        ("2-77-1", query(0, 6), "no such aggregate or operator"),
        ("2-77-1", query(0, 0, (0, 7, "x")), "no such aggregate or operator"),
        ("2-77-1", query(0, 0, (0, 3, "x")), "syntax error"),
        ("2-77-1", query(0, 0, (1, 0, "long")), "a column of numbers is compared with 'long'"),
        ("2-77-1", query(0, 0, (1, 0, "long"), (1, 0, "7")), "a column of numbers is compared with 'long'"),
        ("2-77-1", query(0, 0, (1, 0, 10**30)), "too large"),
        ("2-77-1", query(0, 0, (0, 0, "\ud800")), "surrogates"),
    ],
)
def test_what_cannot_be_run(boats: Database, table: str, sent: Query, message: str) -> None:
    with pytest.raises(Refusal, match=message):
        boats.results(table, sent)


def test_the_database_is_only_read(boats: Database, tmp_path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        boats._connection.execute("DELETE FROM table_2_77_1")
    (tmp_path / "odd ?#%20 name").mkdir()
    with closing(Database(write_boats(tmp_path / "odd ?#%20 name/a?mode=rwc.db"))) as database:
        assert database.results("2-77-1", query(0, 3)) == [4]


def test_a_database_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.db: there is no such database"):
        Database(tmp_path / "none.db")
    with pytest.raises(DataError, match="there is no such database"):
        Database(tmp_path)
    (tmp_path / "text.db").write_text("no database, but text that is longer than a header of SQLite is. " * 9)
    with pytest.raises(DataError, match=r"text\.db: not readable as an SQLite database"):
        Database(tmp_path / "text.db")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["text.db"]


# --- execution accuracy


def test_execution_compares_lists(tmp_path: Path) -> None:
    file = write_boats(tmp_path / "boats.db")
    golds = [
        asked(gold)
        for gold in (
            query(2, 0, (0, 0, "Ida")),  # oak, elm
            query(2, 0, (0, 0, "Ida")),
            query(1, 1, (0, 0, "nobody")),  # None
            query(0, 0, (1, 0, 12)),  # ida, ida
            query(0),
            query(0),
        )
    ]
    said = [
        query(2, 0, (1, 0, "12")),  # another query with the same result
        query(2, 0, (2, 1, "a"), (0, 0, "Ida"), (1, 1, 12)),  # none
        query(3, 2, (0, 0, "nobody")),  # None
        query(0, 1, (1, 0, 12)),  # ida once
        query(9),  # cannot be run
        "no query",
    ]
    found = execution(golds, said, file)
    assert found.accuracy == pytest.approx(2 / 6)
    assert found.refused == ("the table table_2_77_1 has no column col9",)


def test_a_right_query_that_cannot_be_run_is_bad_data(tmp_path: Path) -> None:
    file = write_boats(tmp_path / "boats.db")
    with pytest.raises(DataError, match=r"^dev\.jsonl:7: .*boats\.db cannot run this question's own query: .*'tall'"):
        execution([asked(query(0, 0, (1, 0, "tall")))], [query(0, 0, (1, 0, "tall"))], file)


@needs_golden
def test_golden_results() -> None:
    expected = json.loads((GOLDEN / "expected.json").read_text())["mini"]
    with closing(Database(GOLDEN / "mini/dev.db")) as database:
        for name, key, results in (
            ("dev", "sql", expected["gold_results"]),
            ("pred", "query", expected["pred_results"]),
        ):
            lines = [json.loads(line) for line in (GOLDEN / f"mini/{name}.jsonl").read_text().splitlines()]
            tables = [json.loads(line)["table_id"] for line in (GOLDEN / "mini/dev.jsonl").read_text().splitlines()]
            sent = [query(q["sel"], q["agg"], *map(tuple, q["conds"])) for q in (line[key] for line in lines)]
            assert [database.results(table, q) for table, q in zip(tables, sent, strict=True)] == results
            assert len(results) == expected["rows"]

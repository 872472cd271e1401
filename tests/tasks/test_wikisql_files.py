import json
from pathlib import Path
from typing import Any

import pytest

from lorakit.errors import DataError
from lorakit.metrics.wikisql import Query, Question
from lorakit.tasks import wikisql_files
from lorakit.tasks.wikisql_files import read_headers, read_predictions, read_questions

DATA = Path(__file__).parents[2] / "../shared/data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is absent")
TABLES = [{"id": "2-77-1", "header": ["Name", "Length"], "rows": []}, {"id": "2-77-2", "header": ["Name"]}]
RIGHT = {"sel": 0, "agg": 0, "conds": [[1, 1, 9.5]]}


def lines(file: Path, *objects: object) -> Path:
    file.write_text("".join(f"{json.dumps(each)}\n" for each in objects), encoding="utf-8")
    return file


def question(sql: Any = RIGHT, table: object = "2-77-1", **more: object) -> dict[str, object]:
    return {"phase": 1, "question": "Which boat is long?", "table_id": table, "sql": sql, **more}


def read(folder: Path, *questions: object) -> list[tuple[Question, str]]:
    tables = lines(folder / "dev.tables.jsonl", *TABLES)
    return list(read_questions(lines(folder / "dev.jsonl", *questions), tables))


# --- questions and tables


def test_questions(tmp_path: Path) -> None:
    found = read(tmp_path, question(), question({"sel": 0, "agg": 3, "conds": []}, "2-77-2", question="How many?"))
    where = str(tmp_path / "dev.jsonl")
    assert found == [
        (
            Question(f"{where}:1", "2-77-1", ("Name", "Length"), Query(0, 0, ((1, 1, 9.5),))),
            "Which boat is long?",
        ),
        (Question(f"{where}:2", "2-77-2", ("Name",), Query(0, 3)), "How many?"),
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (question(table="2-77-3"), r'dev\.tables\.jsonl has no table "2-77-3"'),
        (question(table=None), "`table_id` must be text, but is null"),
        (question(question=3), "`question` must be text, but is 3"),
        ({"question": "?", "table_id": "2-77-1"}, "there is no column `sql`"),
        (question("SELECT"), '`sql`: must be {sel, agg, conds}, but is "SELECT"'),
        (question({"sel": 0, "agg": 0}), "`sql`: conds must be a list, but is null"),
        (question({"sel": "0", "agg": 0, "conds": []}), '`sql`: sel and agg must be whole numbers, but are "0" and 0'),
        (question({"sel": 0, "agg": True, "conds": []}), "must be whole numbers, but are 0 and true"),
        (question({"sel": 0, "agg": 0, "conds": [[0, 0]]}), r"must be \[column, operator, value\], but is \[0, 0\]"),
        (question({"sel": 0, "agg": 0, "conds": [[0, "=", "x"]]}), r"must be \[column, operator, value\]"),
        (question({"sel": 0, "agg": 0, "conds": [[0, 0, None]]}), "value must be text or a number, but is null"),
        (question({"sel": 0, "agg": 0, "conds": [[0, 0, True]]}), "value must be text or a number, but is true"),
        (question({"sel": 2, "agg": 0, "conds": []}), "out of range for a table of 2 columns"),
        (question({"sel": -1, "agg": 0, "conds": []}), "out of range"),
        (question({"sel": 0, "agg": 6, "conds": []}), "out of range"),
        (question({"sel": 0, "agg": 0, "conds": [[2, 0, "x"]]}), "out of range"),
        (question({"sel": 0, "agg": 0, "conds": [[0, 4, "x"]]}), "out of range"),
    ],
)
def test_malformed_questions(tmp_path: Path, given: object, message: str) -> None:
    with pytest.raises(DataError, match=rf"dev\.jsonl:2: .*{message}"):
        read(tmp_path, question(), given)


def test_a_query_that_does_not_survive_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        wikisql_files, "render", lambda query, header: """SELECT "Name" FROM table WHERE "Length" > '9'"""
    )
    with pytest.raises(DataError, match=r"dev\.jsonl:1: this query does not survive as SQL text: SELECT"):
        read(tmp_path, question())
    # equal to the official script, but another value
    read(tmp_path, question({"sel": 0, "agg": 0, "conds": [[1, 1, "9"]]}))
    monkeypatch.setattr(
        wikisql_files, "render", lambda query, header: """SELECT "Name" FROM table WHERE "Name" = 'ida'"""
    )
    with pytest.raises(DataError, match="does not survive"):
        read(tmp_path, question({"sel": 0, "agg": 0, "conds": [[0, 0, "Ida"]]}))
    monkeypatch.setattr(wikisql_files, "render", lambda query, header: "no query")
    with pytest.raises(DataError, match="does not survive"):
        read(tmp_path, question())


def test_no_questions(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dev\.jsonl: there are no questions in this file"):
        read(tmp_path)
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be read"):
        list(read_questions(tmp_path / "none.jsonl", tmp_path / "dev.tables.jsonl"))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"id": "2-77-3"}, "there is no column `header`"),
        ({"id": 3, "header": ["a"]}, "`id` must be text"),
        ({"id": "2-77-3", "header": []}, r"`header` must be a list of column names, but is \[\]"),
        ({"id": "2-77-3", "header": ["a", 3]}, "`header` must be a list of column names"),
        ({"id": "2-77-3", "header": "a"}, "`header` must be a list of column names"),
        ({"id": "2-77-2", "header": ["Other"]}, 'the table "2-77-2" is there twice, with another header'),
    ],
)
def test_malformed_tables(tmp_path: Path, table: object, message: str) -> None:
    with pytest.raises(DataError, match=rf"dev\.tables\.jsonl:3: {message}"):
        read_headers(lines(tmp_path / "dev.tables.jsonl", *TABLES, table))


def test_a_table_may_stand_there_twice(tmp_path: Path) -> None:
    assert read_headers(lines(tmp_path / "t.jsonl", *TABLES, TABLES[1])) == {
        "2-77-1": ("Name", "Length"),
        "2-77-2": ("Name",),
    }


# --- predictions


def test_official_predictions(tmp_path: Path) -> None:
    questions = [found for found, _ in read(tmp_path, *[question()] * 10)]
    file = lines(
        tmp_path / "pred.jsonl",
        {"query": RIGHT, "seq": {}, "error": ""},
        {"query": RIGHT},
        {"query": {"sel": 9, "agg": -1, "conds": [[7, 8, "x"]]}},  # a query, if one that cannot be right
        {"query": RIGHT, "error": "timeout"},
        {"error": "cannot parse"},
        {"query": None},
        {"query": {"sel": 0, "agg": 0}},
        {"query": {"sel": 0.0, "agg": 0, "conds": []}},
        {"query": {"sel": 0, "agg": 0, "conds": [[0, 0]]}},
        {"query": {"sel": 0, "agg": 0, "conds": [[0, 0, ["x"]]]}},
    )
    found = read_predictions(file, questions)
    assert found[:3] == [Query(0, 0, ((1, 1, 9.5),))] * 2 + [Query(9, -1, ((7, 8, "x"),))]
    reasons = found[3:]
    assert reasons[:3] == [
        f'{file}:4: error: "timeout"',
        f'{file}:5: error: "cannot parse"',
        f"{file}:6: must be {{sel, agg, conds}}, but is null",
    ]
    assert all(isinstance(reason, str) for reason in reasons)


def test_predictions_as_text(tmp_path: Path) -> None:
    questions = [found for found, _ in read(tmp_path, *[question()] * 4)]
    file = tmp_path / "pred.sql"
    file.write_text("""\nSELECT "name" FROM table WHERE "Length" > '9.5'\n{"query": 3}\n  \n""", encoding="utf-8")
    empty, query, odd, blank = read_predictions(file, questions)
    assert query == Query(0, 0, ((1, 1, "9.5"),))
    assert str(empty).startswith('"": it does not start as') and isinstance(odd, str) and isinstance(blank, str)


def test_predictions_as_lorakit_writes_them(tmp_path: Path) -> None:
    questions = [found for found, _ in read(tmp_path, question(), question())]
    said = ["""SELECT "Name" FROM table WHERE "Length" > '9'""", ""]
    file = lines(tmp_path / "pred.jsonl", *[{"prompt": "p", "prediction": text, "references": ["r"]} for text in said])
    query, none = read_predictions(file, questions)
    assert query == Query(0, 0, ((1, 1, "9"),)) and str(none).startswith('"": it does not start as')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SELECT\n", r"pred: 1 predictions for 2 questions; the first without partner is .*dev\.jsonl:2$"),
        ("", r"pred: 0 predictions for 2 questions; the first without partner is .*dev\.jsonl:1$"),
        ("\n\n\n\n", r"pred: 4 predictions for 2 questions; the first without partner is .*pred:3$"),
        ('\n{"error": "a"}\n\n{"error": "b"}\n{"error": "c"}\n', r"pred: 3 predictions for 2 .* is .*pred:5$"),
        ('{"error": "a"}\nSELECT\n', "pred:2: not JSON"),
        ('{"error": "a"}\n["b"]\n', "pred:2: a line must hold a JSON object"),
        ('{"error": "a"}\n{"answer": "b"}\n', "pred:2: there is no column `query`.*answer"),
        ('{"error": "a"}\n{"prediction": 3}\n', "pred:2: `prediction` must be text, but is 3"),
    ],
)
def test_malformed_predictions(tmp_path: Path, text: str, message: str) -> None:
    questions = [found for found, _ in read(tmp_path, question(), question())]
    (tmp_path / "pred").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_predictions(tmp_path / "pred", questions)


# --- the real files


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize(("split", "count"), [("train", 989), ("dev", 95), ("test", 99)])
def test_real_queries_survive_as_text(split: str, count: int) -> None:
    folder = DATA / "wikisql_1k"
    found = list(read_questions(folder / f"{split}.jsonl", folder / f"{split}.tables.jsonl"))
    assert len(found) == count
    assert {len(asked.query.conds) for asked, _ in found} >= {1, 2}


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize(("split", "count"), [("dev", 8421), ("test", 15878)])
def test_all_real_queries_survive_under_hard_headers(tmp_path: Path, split: str, count: int) -> None:
    """The tables are not here: columns of our own stand in, as many as the queries ask for, of the worst kind."""
    hard = ["", '"', "Power", "power ", " AND ", "a | b", "WHERE", "x = 'y'", "a\nb", "(2)", "COUNT(", "日本", "\u2009"]
    questions = DATA / f"wikisql/{split}.jsonl"
    given = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines()]
    header = [hard[number % len(hard)] for number in range(60)]
    tables = [{"id": table, "header": header} for table in sorted({each["table_id"] for each in given})]
    found = list(read_questions(questions, lines(tmp_path / "tables.jsonl", *tables)))
    assert len(found) == count

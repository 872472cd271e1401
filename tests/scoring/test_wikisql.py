import json
import shutil
from pathlib import Path

import pytest

from lorakit.errors import DataError, RecipeError
from lorakit.metrics.wikisql import Query
from lorakit.scoring import SCORERS
from lorakit.scoring.base import Files
from lorakit.scoring.wikisql import score
from lorakit.tasks.wikisql_files import read_headers
from lorakit.tasks.wikisql_text import render

MINI = Path(__file__).parents[2] / "../shared/golden/wikisql/mini"
needs_golden = pytest.mark.skipif(not MINI.is_dir(), reason="../shared/golden/wikisql is absent")
QUESTION = {"question": "?", "table_id": "2-77-1", "sql": {"sel": 0, "agg": 0, "conds": [[1, 1, 9], [0, 0, "Ida"]]}}
RIGHT = """SELECT "a" FROM table WHERE "b" > '9' AND "a" = 'IDA'"""
TURNED = """SELECT "a" FROM table WHERE "a" = 'ida' AND "b" > '9'"""


def write(folder: Path, predictions: str, questions: int = 2) -> Files:
    (folder / "dev.jsonl").write_text(f"{json.dumps(QUESTION)}\n" * questions)
    (folder / "dev.tables.jsonl").write_text(json.dumps({"id": "2-77-1", "header": ["a", "b"]}))
    (folder / "said").write_text(predictions, encoding="utf-8")
    return Files(folder / "said", folder / "dev.jsonl")


def test_the_table_of_scorers() -> None:
    assert SCORERS["wikisql"] is score


def test_sql_text(tmp_path: Path) -> None:
    scores = score(write(tmp_path, f"{RIGHT}\n{TURNED}\n\nno\n", questions=4))
    assert scores.values == {"logical_form": 0.5, "logical_form_ordered": 0.25}
    assert scores.notes == (
        "execution: not computed: it needs the split's database (--db)",
        '2 of 4 predictions are no query (the first: "": it does not start as SELECT "column" FROM table)',
    )


def test_official_predictions(tmp_path: Path) -> None:
    lines = [json.dumps({"query": QUESTION["sql"]}), json.dumps({"query": {"sel": 9, "agg": 0, "conds": []}})]
    scores = score(write(tmp_path, "\n".join(lines)))
    assert scores.values == {"logical_form": 0.5, "logical_form_ordered": 0.5}
    assert scores.notes == ("execution: not computed: it needs the split's database (--db)",)


def test_tables_elsewhere(tmp_path: Path) -> None:
    files = write(tmp_path, f"{RIGHT}\n{RIGHT}\n")
    (tmp_path / "dev.tables.jsonl").rename(tmp_path / "other")
    with pytest.raises(DataError, match=r"dev\.tables\.jsonl: there is no such file; name .* with --tables"):
        score(files)
    moved = Files(files.predictions, files.references, tables=tmp_path / "other")
    assert score(moved).values["logical_form"] == 1.0
    with pytest.raises(DataError, match=r"none: cannot be read"):
        score(Files(files.predictions, files.references, tables=tmp_path / "none"))


def test_refused(tmp_path: Path) -> None:
    files = write(tmp_path, f"{RIGHT}\n")
    with pytest.raises(RecipeError, match="--subset: wikisql has no use for it"):
        score(Files(files.predictions, files.references, subset="x"))
    with pytest.raises(DataError, match=r"said: 1 predictions for 2 questions; the first .* is .*dev\.jsonl:2"):
        score(files)
    with pytest.raises(DataError, match=r"none\.db: there is no such database"):
        score(Files(write(tmp_path, f"{RIGHT}\n", 1).predictions, files.references, db=tmp_path / "none.db"))


@needs_golden
def test_golden(tmp_path: Path) -> None:
    expected = json.loads((MINI.parent / "expected.json").read_text())["mini"]
    right = {
        "logical_form": expected["lf_accuracy"],
        "execution": expected["ex_accuracy"],
        "logical_form_ordered": expected["ordered_lf"],
    }
    official = score(Files(MINI / "pred.jsonl", MINI / "dev.jsonl", db=MINI / "dev.db"))
    assert (official.values, official.notes, official.rows) == (right, (), expected["rows"])
    assert list(official.values) == list(right)
    # the same queries as SQL text
    headers = read_headers(MINI / "dev.tables.jsonl")
    said = []
    for asked, line in zip(
        *[(MINI / f"{name}.jsonl").read_text().splitlines() for name in ("dev", "pred")], strict=True
    ):
        given = json.loads(line)["query"]
        query = Query(given["sel"], given["agg"], tuple((c, op, value) for c, op, value in given["conds"]))
        said.append(render(query, headers[json.loads(asked)["table_id"]]))
    (tmp_path / "said.sql").write_text("\n".join(said) + "\n", encoding="utf-8")
    shutil.copy(MINI / "dev.db", tmp_path / "elsewhere.db")
    assert score(Files(tmp_path / "said.sql", MINI / "dev.jsonl", db=tmp_path / "elsewhere.db")).values == right

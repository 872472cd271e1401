import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from small_runs import report, run

from lorakit.data.rows import CompletionRow
from lorakit.errors import DataError, RecipeError
from lorakit.metrics.wikisql import Query
from lorakit.progress import Silent
from lorakit.recipe import Recipe, load
from lorakit.session import open_session
from lorakit.smoke import smoke
from lorakit.tasks.wikisql import Gold, WikiSQL
from lorakit.tasks.wikisql_text import render

SHARED = Path(__file__).parents[2] / "../shared"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is absent")
Tiny = Callable[[str], Path]
HEADER = ["Name", "Length", "name"]
SAID = """SELECT "Name" FROM table WHERE "Length" > '9'"""


def lines(file: Path, objects: list[Any]) -> None:
    file.write_text("".join(f"{json.dumps(each)}\n" for each in objects), encoding="utf-8")


def write(folder: Path, stem: str, count: int = 4, database: bool = True, **sql: object) -> WikiSQL:
    """Questions about two tables with the same columns; Ida is in the first alone."""
    folder.mkdir(parents=True, exist_ok=True)
    right = {"sel": 0, "agg": 0, "conds": [[1, 1, 9]], **sql}
    asked = [
        {"phase": 1, "question": f" Longer than 9, {n // 2}? ", "table_id": f"2-77-{n % 2 + 1}", "sql": right}
        for n in range(count)
    ]
    lines(folder / f"{stem}.jsonl", asked)
    lines(folder / f"{stem}.tables.jsonl", [{"id": f"2-77-{n}", "header": HEADER} for n in (1, 2)])
    if database:
        with closing(sqlite3.connect(folder / f"{stem}.db")) as file, file:
            for number, rows in ((1, [("ida", 12.0, "a"), ("nell", 7.5, "b")]), (2, [("zoe", 10.0, "c")])):
                file.execute(f"CREATE TABLE table_2_77_{number} (col0 text, col1 real, col2 text)")
                file.executemany(f"INSERT INTO table_2_77_{number} VALUES (?, ?, ?)", rows)
    return WikiSQL(path=str(folder))


def recipe_of(folder: Path, base: Path, data: Path, **train: object) -> Recipe:
    settings = {"steps": 2, "batch_size": 2, "lr": 0.01, "eval_every": 2, "save_every": 2, **train}
    (folder / "r.yaml").write_text(
        f"model: {{base: {json.dumps(str(base))}}}\nmethod: {{name: lora, rank: 2}}\n"
        f"task: {{name: wikisql, path: {json.dumps(str(data))}}}\ntrain: {json.dumps(settings)}\n"
        "generate: {max_new_tokens: 4}\n"
    )
    return load(folder / "r.yaml")


# --- rows


def test_rows(tmp_path: Path) -> None:
    task = write(tmp_path, "dev", 1)
    (row,) = task.load("validation").rows
    assert row == CompletionRow(
        "columns: Name | Length | name (2)\nquestion: Longer than 9, 0?\nSQL:", f" {SAID}", None
    )
    assert isinstance(row, CompletionRow) and isinstance(row.gold, Gold)
    assert row.gold.question.where == f"{tmp_path / 'dev.jsonl'}:1"
    assert row.gold.database == tmp_path / "dev.db"


def test_the_template(tmp_path: Path) -> None:
    write(tmp_path, "train", 1, database=False)
    task = WikiSQL(path=str(tmp_path), template="{{{table}}} {question} [{columns}]")
    assert task.load("train").rows[0].prompt == "{2-77-1} Longer than 9, 0? [Name | Length | name (2)]"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{columns} {question} {types}", "names types; there are only columns, question, table"),
        ("{columns}", r"without \{question\} the model could not know"),
        ("{question}", r"without \{columns\} the model could not know"),
        ("{columns} {question", "unbalanced '{'"),
    ],
)
def test_templates_that_are_refused(tmp_path: Path, tiny: Tiny, template: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        WikiSQL(template=template)
    recipe_of(tmp_path, tiny("gpt2"), tmp_path)
    with pytest.raises(RecipeError, match=rf"task\.template: .*{message}"):
        load(tmp_path / "r.yaml", [f"task.template={json.dumps(template)}"])


def test_limit_and_splits(tmp_path: Path) -> None:
    for stem in ("train", "dev", "test"):
        write(tmp_path, stem, 4)
    task = WikiSQL(path=str(tmp_path), limit={"train": 3})
    assert [len(task.load(split).rows) for split in task.splits] == [3, 4, 4]
    assert task.official_rows == {"train": 56355, "validation": 8421, "test": 15878}
    with pytest.raises(DataError, match="no split `dev`; choose from train, validation, test"):
        task.load("dev")


def test_missing_files_name_the_download(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^task\.path: WikiSQL is not on the hub .*github\.com/salesforce/WikiSQL"):
        WikiSQL().load("train")
    with pytest.raises(DataError, match=r"none is no folder; download https://github\.com/salesforce/WikiSQL"):
        WikiSQL(path=str(tmp_path / "none")).load("train")
    with pytest.raises(DataError, match=r"has no dev\.jsonl and no dev\.tables\.jsonl; they are at https"):
        WikiSQL(path=str(tmp_path)).load("validation")
    task = write(tmp_path, "dev")
    (tmp_path / "dev.tables.jsonl").unlink()
    with pytest.raises(DataError, match=r"has no dev\.tables\.jsonl; they are at"):
        task.load("validation")


# --- what predict is given


def test_input() -> None:
    row = WikiSQL().from_input({"question": " How long? ", "header": HEADER}, "f:1")
    assert row == CompletionRow("columns: Name | Length | name (2)\nquestion: How long?\nSQL:", None)
    named = WikiSQL(template="{table}: {columns} {question}")
    given = {"question": "How long?", "header": ["a"], "table_id": "1-2-3"}
    assert named.from_input(given, "f:1").prompt == "1-2-3: a How long?"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("How long?", r"a question needs the columns of its table: write JSON lines such as \{\"question\""),
        ({"question": "How long?"}, "there is no column `header`"),
        ({"header": ["a"]}, "there is no column `question`"),
        ({"question": "?", "header": "a"}, "`header` must be a list of column names"),
        ({"question": "?", "header": ["a"], "table_id": "1-2-3"}, "unknown: table_id; .* question, header"),
    ],
)
def test_malformed_input(given: Any, message: str) -> None:
    with pytest.raises(DataError, match=rf"^f:3: {message}"):
        WikiSQL().from_input(given, "f:3")


def test_sample() -> None:
    rows = WikiSQL().sample(9, seed=1)
    assert len(rows) == 9 and rows == WikiSQL().sample(9, seed=1) != WikiSQL().sample(9, seed=2)
    texts = [row.target.strip() for row in rows if isinstance(row, CompletionRow) and row.target]
    prompts = list(dict.fromkeys(row.prompt for row in rows if isinstance(row, CompletionRow)))
    assert len(texts) == 9 and len(prompts) > 5
    answers = {row.prompt: row.target or "" for row in rows if isinstance(row, CompletionRow)}
    scores = WikiSQL().score(rows, [answers[prompt] for prompt in prompts])
    assert scores.values == {"logical_form": 1.0, "logical_form_ordered": 1.0}
    assert scores.notes == ("execution: not computed: these rows are made up",)


def test_the_guide_s_example() -> None:
    header = ["Boat", "Builder", "Length (m)"]
    row = WikiSQL().from_input({"question": "How many boats by O'Hara are longer than 12 m?", "header": header}, "")
    query = render(Query(0, 3, ((1, 0, "O'Hara"), (2, 1, 12))), header)
    assert f"```\n{row.prompt} {query}\n```" in (Path(__file__).parents[2] / "docs/wikisql.md").read_text(
        encoding="utf-8"
    )


# --- scores


def test_questions_with_one_prompt_share_its_prediction(tmp_path: Path) -> None:
    task = write(tmp_path, "dev", 4)
    rows = task.load("validation").rows
    scores = task.score(rows, [f" {SAID}", "nothing"])
    assert scores.values == {"logical_form": 0.5, "execution": 0.5, "logical_form_ordered": 0.5}
    assert list(scores.values) == list(task.metrics)
    assert scores.notes == (
        '2 of 4 predictions are no query (the first: "nothing": it does not start as SELECT "column" FROM table)',
    )
    # by its own table: the shortest of the first is not Ida, that of the second is Zoe
    shortest = task.score(rows, [SAID, """SELECT "Name" FROM table WHERE "Length" > '2'"""])
    assert shortest.values == {"logical_form": 0.5, "execution": 0.75, "logical_form_ordered": 0.5}


def test_queries_that_cannot_be_run_are_counted(tmp_path: Path) -> None:
    task = write(tmp_path, "dev", 2)
    scores = task.score(task.load("validation").rows, ["""SELECT "Name" FROM table WHERE "Length" > 'tall'"""])
    assert scores.values == {"logical_form": 0.0, "execution": 0.0, "logical_form_ordered": 0.0}
    assert scores.notes == (
        "2 of 2 predicted queries cannot be run (the first: a column of numbers is compared with 'tall')",
    )


def test_without_a_database(tmp_path: Path) -> None:
    task = write(tmp_path, "dev", 2, database=False)
    write(tmp_path, "test", 2)
    why = f"there is no {tmp_path / 'dev.db'}"
    assert task.not_computed() == {"execution": why}
    scores = task.score(task.load("validation").rows, [SAID])
    assert scores.values == {"logical_form": 1.0, "logical_form_ordered": 1.0}
    assert scores.notes == (f"execution: not computed: {why}",)
    assert task.score(task.load("test").rows, [SAID]).values["execution"] == 1.0
    write(tmp_path, "dev", 2)
    assert task.not_computed() == WikiSQL().not_computed() == {}


def test_rows_without_a_query_cannot_be_scored() -> None:
    row = WikiSQL().from_input({"question": "?", "header": ["a"]}, "f:1")
    with pytest.raises(DataError, match="no query to be scored against"):
        WikiSQL().score([row], ["x"])


def test_a_question_that_the_database_refuses(tmp_path: Path) -> None:
    for stem in ("train", "dev"):
        task = write(tmp_path, stem, 2, conds=[[1, 0, "tall"]])
    with pytest.raises(DataError, match=r"dev\.jsonl:1: .*dev\.db cannot run this question's own query"):
        task.load("validation")
    rows = task.load("train").rows  # which training does not score
    with pytest.raises(DataError, match=r"train\.jsonl:1: .*train\.db cannot run this question's own query"):
        task.score(rows, [SAID])
    (tmp_path / "dev.db").write_bytes(b"")
    with pytest.raises(DataError, match=r"there is no table table_2_77_1"):
        task.load("validation")


# --- whole runs


def test_a_run_reports_all_metrics(tmp_path: Path, tiny: Tiny) -> None:
    for stem in ("train", "dev"):
        write(tmp_path / "data", stem, 8)
    write(tmp_path / "data", "test", 2, database=False)
    run(recipe_of(tmp_path, tiny("gpt2"), tmp_path / "data", select="execution"), tmp_path / "run")
    found = report(tmp_path / "run")
    assert list(found["metrics"]["validation"]) == ["loss", "logical_form", "execution", "logical_form_ordered"]
    assert found["select"] == "execution"
    assert found["notes"]["validation"][0].startswith("8 of 8 predictions are no query")
    session = open_session(tmp_path / "run")
    again = session.evaluate(session.read("test", Silent()), Silent())
    assert list(again.metrics) == ["loss", "logical_form", "logical_form_ordered"]
    assert again.notes[0] == f"execution: not computed: there is no {tmp_path / 'data/test.db'}"


def test_selecting_by_execution_needs_a_database(tmp_path: Path, tiny: Tiny) -> None:
    for stem in ("train", "dev"):
        write(tmp_path / "data", stem, 2, database=False)
    recipe = recipe_of(tmp_path, tiny("gpt2"), tmp_path / "data", select="execution")
    with pytest.raises(RecipeError, match=r"train\.select: execution cannot be computed: there is no .*dev\.db"):
        run(recipe, tmp_path / "run")


@pytest.mark.parametrize("there", [True, False])
def test_a_smoke_run_needs_neither_data_nor_database(tmp_path: Path, tiny: Tiny, there: bool) -> None:
    if there:
        write(tmp_path / "data", "dev", 2)
    recipe = recipe_of(tmp_path, tiny("llama"), tmp_path / "data", select="execution", warmup={"tokens": 100})
    found = smoke(recipe, tmp_path / "scratch", tmp_path / "run", Silent())
    assert (found["status"], found["rows"], found["dropped"]) == (
        "complete",
        {"train": 16, "validation": 16},
        {"train": {}, "validation": {}},
    )
    assert "execution: not computed: these rows are made up" in found["notes"]["validation"]


# --- the real files


@needs_data
@pytest.mark.slow
def test_golden_rows_through_the_task(tmp_path: Path) -> None:
    expected = json.loads((SHARED / "golden/wikisql/expected.json").read_text())["mini"]
    task = WikiSQL(path=str(SHARED / "golden/wikisql/mini"))
    rows = task.load("validation").rows
    targets = [row.target for row in rows if isinstance(row, CompletionRow) and row.target]
    perfect = task.score(rows, targets)
    assert len(rows) == expected["rows"] and perfect.notes == ()
    assert perfect.values == {"logical_form": 1.0, "execution": 1.0, "logical_form_ordered": 1.0}


@needs_data
@pytest.mark.slow
def test_real_rows() -> None:
    task = WikiSQL(path=str(SHARED / "data/wikisql_1k"))
    counts = {split: len(task.load(split).rows) for split in task.splits}
    assert counts == {"train": 989, "validation": 95, "test": 99}
    assert task.not_computed()

r"""WikiSQL (Zhong et al. 2017): questions about tables, answered with SQL.

    task: {name: wikisql, path: data/wikisql}   # holds train.jsonl, train.tables.jsonl, train.db; likewise dev and test

The model sees the column names and the question, never the table's rows, and writes SQL text as
`lorakit/tasks/wikisql_text.py` defines it; that is parsed back and scored as the official script does.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import field_validator

from lorakit.data.readers import Record
from lorakit.data.rows import CompletionRow, Row, per_row
from lorakit.errors import DataError
from lorakit.metrics.wikisql import Predicted, Query, Question, execution, logical_form
from lorakit.tasks.base import Prediction, Reading, Scores, TextTask, known_fields
from lorakit.tasks.template import columns_of, render
from lorakit.tasks.wikisql_files import header_of, parsed, read_questions
from lorakit.tasks.wikisql_text import column_names
from lorakit.tasks.wikisql_text import render as sql

DOWNLOAD = "https://github.com/salesforce/WikiSQL (data.tar.bz2)"
COLUMNS = ("columns", "question", "table")
"""What a template can name: the table's column names, the question, and the table's id."""
_STEMS = {"train": "train", "validation": "dev", "test": "test"}


@dataclass(frozen=True, slots=True)
class Gold:
    """What a row is scored by.

    Args:
        question: With its query.
        database: Where the split's database would be; None for made-up rows.
    """

    question: Question
    database: Path | None = None


class WikiSQL(TextTask):
    """WikiSQL: a question and the columns of one table become an SQL query."""

    name: Literal["wikisql"] = "wikisql"
    path: str | None = None
    """The folder that holds train.jsonl, train.tables.jsonl and, for execution accuracy, train.db; likewise dev and
    test. There is no copy on the hub in the official format, so it is needed."""
    template: str = "columns: {columns}\nquestion: {question}\nSQL:"
    """The prompt, with `{columns}` (their names, ` | ` between them), `{question}` and, if wanted, `{table}` (the
    table's id). The query follows after a space, so it should not end with one; `{{` and `}}` are braces."""

    @field_validator("template")
    @classmethod
    def _names_its_columns(cls, template: str) -> str:
        named = columns_of(template)
        strangers, lacking = sorted(set(named) - set(COLUMNS)), [name for name in COLUMNS[:2] if name not in named]
        if strangers:
            raise ValueError(f"the template names {', '.join(strangers)}; there are only {', '.join(COLUMNS)}")
        if lacking:
            raise ValueError(f"without {{{lacking[0]}}} the model could not know the answer: put it into the template")
        return template

    @property
    def metrics(self) -> tuple[str, ...]:
        """Logical form, which the paper reports; execution; logical form with the conditions in their order."""
        return "logical_form", "execution", "logical_form_ordered"

    def not_computed(self) -> dict[str, str]:
        """Execution, where the validation split has no database; other splits are asked as they are scored."""
        if self.path is None:
            return {}
        why = _lacking(_file(Path(self.path), "validation", "db"))
        return {"execution": why} if why else {}

    @property
    def splits(self) -> tuple[str, ...]:
        """Train, validation (the official dev), test; all with their queries."""
        return tuple(_STEMS)

    @property
    def official_rows(self) -> dict[str, int]:
        """Questions of version 1.1."""
        return {"train": 56355, "validation": 8421, "test": 15878}

    def read(self, split: str) -> Reading:
        """Begin to read one split; every query is made sure to survive as SQL text.

        Where validation and test have their database, it is made sure to run their queries too: now, and not when the
        first epoch has been trained.

        Raises:
            DataError: A file is missing, empty or malformed; names the file and the line.
        """
        self.require_split(split)
        if self.path is None:
            raise DataError(f"task.path: WikiSQL is not on the hub in its official format; download {DOWNLOAD}")
        read = self.gather(split, self._rows(Path(self.path), split))
        database = _file(Path(self.path), split, "db")
        if split == "train" or not database.is_file():
            return read
        rows = list(read.rows)
        questions = [gold.question for gold in _golds(rows)]
        execution(questions, ["not predicted yet"] * len(questions), database)
        return Reading(iter(rows), read.dropped)

    def sample(self, count: int, seed: int) -> list[Row]:
        """Made-up tables, with questions that their columns answer."""
        rng = random.Random(seed)
        rows: list[Row] = []
        for number in range(count):
            header = ("Boat", rng.choice(("Built", "Masts", "Sails")), rng.choice(("Yard", "Port")))
            column, value = rng.randrange(1, 3), str(rng.randrange(10, 99))
            text = f"Which boat has {header[column].lower()} {value}?"
            question = Question(f"made-up row {number + 1}", "0-0-0", header, Query(0, 0, ((column, 0, value),)))
            rows.append(self._row(question, text, None))
        return rows

    def from_input(self, given: Mapping[str, object] | str, where: str) -> CompletionRow:
        """`question` and `header`, a list of the table's column names; `table_id` where the template names `{table}`.

        Raises:
            DataError: A field is missing, malformed or unknown, or the line is plain: a question needs its table.
        """
        if isinstance(given, str):
            shape = '{"question": "...", "header": ["...", "..."]}'
            raise DataError(f"{where}: a question needs the columns of its table: write JSON lines such as {shape}")
        named = "table" in columns_of(self.template)
        fields = ["question", "header", *(["table_id"] if named else [])]
        record = known_fields(given, fields, where)
        table = record.text("table_id") if named else ""
        return CompletionRow(self._prompt(record.text("question"), header_of(record), table, where), None)

    def score(self, rows: Sequence[Row], predictions: Sequence[Prediction], *, quick: bool = False) -> Scores:
        """The official metrics, per question: questions with the same prompt share its prediction.

        Raises:
            DataError: A row has no query, or the database cannot run a question's own query.
        """
        golds = _golds(rows)
        if len(golds) < len(rows):
            raise DataError("a prompt has no query to be scored against; `predict` needs none")
        questions = [gold.question for gold in golds]
        texts = per_row(rows, predictions)
        queries = [parsed(str(text), asked.header) for text, asked in zip(texts, questions, strict=True)]
        database = golds[0].database
        return judge(questions, queries, (_lacking(database) or database) if database else "these rows are made up")

    def _rows(self, folder: Path, split: str) -> Iterator[Row]:
        if not folder.is_dir():
            raise DataError(f"task.path: {folder} is no folder; download {DOWNLOAD}")
        questions, tables = _file(folder, split, "jsonl"), _file(folder, split, "tables.jsonl")
        absent = [file.name for file in (questions, tables) if not file.exists()]
        if absent:
            raise DataError(f"task.path: {folder} has no {' and no '.join(absent)}; they are at {DOWNLOAD}")
        database = _file(folder, split, "db")
        for question, text in read_questions(questions, tables):
            yield self._row(question, text, database)

    def _row(self, question: Question, text: str, database: Path | None) -> CompletionRow:
        prompt = self._prompt(text, question.header, question.table, question.where)
        return CompletionRow(prompt, f" {sql(question.query, question.header)}", gold=Gold(question, database))

    def _prompt(self, question: str, header: Sequence[str], table: str, where: str) -> str:
        cells = {"columns": " | ".join(column_names(header)), "question": question.strip(), "table": table}
        return render(self.template, Record(where, cells))


def judge(questions: Sequence[Question], predicted: Sequence[Predicted], database: Path | str) -> Scores:
    """WikiSQL's official metrics of predicted queries.

    Args:
        questions: One or more, of one split.
        predicted: One per question; what is no query is wrong, and counted in a note.
        database: The split's, or why there is none, and so no execution accuracy.

    Raises:
        DataError: The database is missing or is none, or cannot run a question's own query.
    """
    values, notes = {"logical_form": logical_form(questions, predicted)}, []
    if isinstance(database, str):
        notes.append(f"execution: not computed: {database}")
        refused: Sequence[str] = ()
    else:
        ran = execution(questions, predicted, database)
        values["execution"], refused = ran.accuracy, ran.refused
    values["logical_form_ordered"] = logical_form(questions, predicted, ordered=True)
    strays = [query for query in predicted if isinstance(query, str)]
    for what, found in (("predictions are no query", strays), ("predicted queries cannot be run", refused)):
        if found:
            notes.append(f"{len(found):,} of {len(predicted):,} {what} (the first: {found[0]})")
    return Scores(values, tuple(notes), len(questions))


def _golds(rows: Sequence[Row]) -> list[Gold]:
    """What rows are scored by, of those that carry it."""
    return [row.gold for row in rows if isinstance(row, CompletionRow) and isinstance(row.gold, Gold)]


def _file(folder: Path, split: str, ending: str) -> Path:
    return folder / f"{_STEMS[split]}.{ending}"


def _lacking(database: Path) -> str | None:
    return None if database.is_file() else f"there is no {database}"

r"""SAMSum (Gliwa et al. 2019): messenger conversations and their summaries.

    task: {name: samsum, path: data/samsum}   # holds train.json, val.json and test.json

Line ends are written `\n` (the files mix them with `\r\n`), and white space around a dialogue or a summary is left out.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import field_validator

from lorakit.data.hub import HubSource, load_split
from lorakit.data.readers import Record, read_json
from lorakit.data.rows import CompletionRow, Row
from lorakit.errors import DataError
from lorakit.metrics.rouge import KINDS
from lorakit.tasks.base import Dropped, Prediction, Reading, Scores, TextTask, known_fields
from lorakit.tasks.template import columns_of, render

DOWNLOAD = "https://arxiv.org/src/1911.12237v2/anc/corpus.7z"
REPOSITORY = "knkarthick/samsum"
"""A copy as CSV files: the authors' own repository, Samsung/samsum, was a script, and is gone."""
_FILES = {"train": "train.json", "validation": "val.json", "test": "test.json"}
_EMPTY = "empty dialogue"


class SAMSum(TextTask):
    """SAMSum: a conversation is to be summed up."""

    name: Literal["samsum"] = "samsum"
    path: str | None = None
    """The folder that holds train.json, val.json and test.json; null: from the hub."""
    template: str = "{dialogue}\n\n"
    """The prompt; {dialogue} stands for the conversation."""

    @field_validator("template")
    @classmethod
    def _names_the_dialogue(cls, template: str) -> str:
        names = columns_of(template)
        if strangers := [name for name in names if name != "dialogue"]:
            raise ValueError(f"{{{strangers[0]}}}: there is only {{dialogue}} to be named")
        if not names:
            raise ValueError("all prompts would be equal: put {dialogue} where the conversation stands")
        return template

    @property
    def metrics(self) -> tuple[str, ...]:
        """The paper's ROUGE-1, -2 and -L, and the L that takes lines as sentences."""
        return KINDS

    @property
    def splits(self) -> tuple[str, ...]:
        """All three have summaries."""
        return tuple(_FILES)

    @property
    def official_rows(self) -> dict[str, int]:
        """Dialogues, as the files have them; one of train is empty."""
        return {"train": 14732, "validation": 818, "test": 819}

    def read(self, split: str) -> Reading:
        """Begin to read one split.

        Empty dialogues are dropped from train; validation and test keep every row, since the metrics are over all.

        Raises:
            DataError: A file is missing or malformed; names the file and the row.
        """
        self.require_split(split)
        if self.path is not None:
            return self.gather(split, self._rows(split, read_json(_file(Path(self.path), split))))
        source = HubSource(REPOSITORY, split)
        try:
            read = load_split(source)
        except DataError as error:
            raise DataError(f"{error}. Or download {DOWNLOAD} and set task.path to its folder") from error
        records = (  # an empty cell of a CSV file is null there
            Record(f"{source}, row {n}", cells | {"dialogue": cells.get("dialogue") or ""})
            for n, cells in enumerate(read.rows, start=1)
        )
        return self.gather(split, self._rows(split, records), read.revision)

    def sample(self, count: int, seed: int) -> list[Row]:
        """Made-up appointments of two people."""
        rng = random.Random(seed)
        rows: list[Row] = []
        for _ in range(count):
            one, other = rng.sample(("Ines", "Bo", "Tariq", "Maud", "Piet"), 2)
            what, when = rng.choice(("chess", "lunch", "the tax form")), rng.choice(("noon", "six", "nine"))
            talk = f"{one}: Are you free for {what} today?\n{other}: Sure, at {when}?\n{one}: See you then!"
            rows.append(CompletionRow(self._prompt(talk), f" {one} and {other} will meet at {when} for {what}."))
        return rows

    def from_input(self, given: Mapping[str, object] | str, where: str) -> CompletionRow:
        """The field `dialogue`, or a plain line.

        Raises:
            DataError: The dialogue is missing, or a field is unknown.
        """
        text = given if isinstance(given, str) else known_fields(given, ["dialogue"], where).text("dialogue")
        return CompletionRow(self._prompt(tidy(text)), None)

    def score(self, rows: Sequence[Row], predictions: Sequence[Prediction], *, quick: bool = False) -> Scores:
        """ROUGE over all rows; rows of one dialogue share its prediction, each with its own summary.

        Args:
            rows: The rows that were predicted.
            predictions: One per distinct dialogue.
            quick: As for every task.

        Raises:
            DataError: A row has no summary.
        """
        scores = super().score(rows, predictions, quick=quick)
        empty = sum(isinstance(row, CompletionRow) and row.prompt == self._prompt("") for row in rows)
        notes = (f"rows with an {_EMPTY}, scored like the others: {empty}",) if empty else ()
        return replace(scores, notes=(*scores.notes, *notes))

    def _prompt(self, dialogue: str) -> str:
        return render(self.template, Record("", {"dialogue": dialogue}))

    def _rows(self, split: str, records: Iterable[Record]) -> Iterator[Row | Dropped]:
        for record in records:
            dialogue, summary = tidy(record.text("dialogue")), tidy(record.text("summary"))
            if split == "train" and not dialogue:
                yield _EMPTY
            else:
                yield CompletionRow(self._prompt(dialogue), f" {summary}")


def tidy(text: str) -> str:
    r"""A dialogue or a summary with one kind of line end, `\n`, and without white space around it."""
    return text.replace("\r\n", "\n").strip()


def _file(folder: Path, split: str) -> Path:
    if not folder.is_dir():
        raise DataError(f"task.path: {folder} is no folder; download {DOWNLOAD}")
    file = folder / _FILES[split]
    if not file.exists():
        raise DataError(f"task.path: {folder} has no {file.name}; it is in {DOWNLOAD}")
    return file

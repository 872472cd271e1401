r"""GLUE (Wang et al. 2018): nine tasks in the official zip's layout or from the hub, and its submission files.

task: {name: glue, subset: mnli, path: data/glue}   # data/glue holds CoLA/, SST-2/, MNLI/, ...
task: {name: glue, subset: mnli}                    # from the hub
task: {name: glue, subset: mnli, format: prompt}    # asked of a decoder: lorakit/tasks/glue_prompts.py
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationInfo, field_validator

from lorakit.data.hub import HubSource, load_split
from lorakit.data.readers import Record, read_lines, shown
from lorakit.data.rows import Row, TextRow
from lorakit.errors import DataError
from lorakit.tasks.base import Dropped, Kind, Prediction, Reading, Task, known_fields
from lorakit.tasks.glue_corpora import CORPORA, OFFICIAL_ROWS, Corpus
from lorakit.tasks.glue_prompts import WORDINGS, Wording, check_template, check_words
from lorakit.tasks.glue_submission import HEADER, TEST_SETS, file_of
from lorakit.tasks.made_up import text_rows

REPOSITORY = "nyu-mll/glue"
DISAGREED = "label -: the annotators did not agree"
GRADES = (0.0, 5.0)
"""STS-B's scores, lowest and highest."""
_COLA_HEADER = ("source", "label", "mark", "sentence")  # CoLA's train and dev files have no header of their own
_FILES = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}
_MNLI_FILES = {
    "train": "train.tsv",
    "validation": "dev_matched.tsv",
    "validation_mismatched": "dev_mismatched.tsv",
    "test": "test_matched.tsv",
    "test_mismatched": "test_mismatched.tsv",
}
_DIAGNOSTIC_FILES = ("diagnostic/diagnostic.tsv", "AX.tsv")  # as the usual download script names it; as the site does


class Glue(Task):
    """The GLUE benchmark.

    Texts are kept as the files have them, SST-2's trailing spaces included. Dropped and counted: rows of MNLI on which
    the annotators did not agree (label `-`), and QQP's broken rows in train and validation.
    """

    name: Literal["glue"] = "glue"
    subset: Literal["mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb", "wnli"]
    """Which of the nine tasks."""
    path: str | None = None
    """The folder that holds the official folders CoLA/, SST-2/, MRPC/, STS-B/, QQP/, MNLI/, …; null: from the hub."""
    format: Literal["head", "prompt"] = "head"
    """head: a classification head on the model; prompt: a decoder is asked in words, and the likeliest of a few words
    is its answer."""
    template: str | None = None
    """With `format: prompt`, the question, which names {text} and, where rows are pairs, {pair}; null: the subset's."""
    words: list[str] | None = None
    """With `format: prompt`, the answers, one word per class in the order of the labels; null: the subset's."""

    @field_validator("format")
    @classmethod
    def _has_classes(cls, given: str, info: ValidationInfo) -> str:
        if given == "prompt" and info.data.get("subset") == "stsb":
            raise ValueError("stsb is a regression: its scores are no classes that words could name; use head")
        return given

    @field_validator("template", "words")
    @classmethod
    def _asks(cls, given: str | list[str] | None, info: ValidationInfo) -> str | list[str] | None:
        if given is None or "subset" not in info.data or "format" not in info.data:
            return given
        if info.data["format"] == "head":
            raise ValueError("a head is asked nothing: add format: prompt, or remove this")
        corpus = CORPORA[info.data["subset"]]
        if isinstance(given, str):
            check_template(given, pairs=len(corpus.columns) == 2)
        else:
            check_words(given, corpus.labels)
        return given

    def resolve(self) -> "Glue":
        """The template and the words written down."""
        if self.format == "head":
            return self
        return self.model_copy(update={"template": self.wording.template, "words": list(self.wording.words)})

    @property
    def wording(self) -> Wording:
        """How a row is asked with `format: prompt`."""
        usual = WORDINGS[self.subset]
        return Wording(self.template or usual.template, tuple(self.words or usual.words))

    @property
    def corpus(self) -> Corpus:
        """What is particular to the subset."""
        return CORPORA[self.subset]

    @property
    def kind(self) -> Kind:
        """Regression for STS-B, classification else."""
        return "regression" if self.subset == "stsb" else "classification"

    @property
    def head(self) -> Kind:
        """A language model's, where it is asked in words."""
        return "generation" if self.format == "prompt" else self.kind

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the hub's ids."""
        return self.corpus.labels

    @property
    def metrics(self) -> tuple[str, ...]:
        """The paper's metric first."""
        return self.corpus.metrics

    @property
    def splits(self) -> tuple[str, ...]:
        """MNLI has matched (`validation`, `test`) and mismatched ones, and the diagnostic set (AX), without labels."""
        return (*_MNLI_FILES, "diagnostic") if self.subset == "mnli" else tuple(_FILES)

    @property
    def official_rows(self) -> dict[str, int]:
        """As published."""
        rows = OFFICIAL_ROWS[self.subset]
        mismatched = {"validation_mismatched": 9832, "test_mismatched": 9847} if self.subset == "mnli" else {}
        return dict(zip(("train", "validation", "test"), rows, strict=True)) | mismatched

    def read(self, split: str) -> Reading:
        """Begin to read one split; rows of test splits and of the diagnostic set have no label.

        Raises:
            DataError: A file is missing, empty or malformed; names the file and the line.
        """
        self.require_split(split)
        if self.path is not None:
            return self.gather(split, self._rows(split, self._records(Path(self.path), split)))
        source = self._hub_source(split)
        read = load_split(source)
        rows = (self._hub_row(cells, f"{source}, row {n}") for n, cells in enumerate(read.rows, start=1))
        return self.gather(split, rows, read.revision)

    def read_labelled(self, file: Path) -> Iterator[Row | Dropped]:
        """The rows of an official file with labels, wherever it lies; in the place of others, why they are left out.

        Raises:
            DataError: It is missing, empty or malformed; names the line.
        """
        return self._rows("validation", self._official(file, labelled=True))

    def label_of(self, record: Record, column: str) -> int | float:
        """The class, or STS-B's score, that a cell spells as official files and submissions do.

        Raises:
            DataError: It is none; names the line and the allowed ones.
        """
        spelled = self.corpus.spelled
        if self.subset == "stsb":
            return record.number(column)
        text = record.text(column)
        if text not in spelled:
            raise DataError(f"{record.where}: `{column}` must be one of {', '.join(spelled)}, but is {shown(text)}")
        return spelled.index(text)

    def sample(self, count: int, seed: int) -> list[Row]:
        """Made-up rows with this subset's labels, pairs where it has pairs."""
        labels = [float(grade) for grade in range(6)] if self.subset == "stsb" else range(len(self.labels))
        rows = text_rows(count, seed, labels, pair=len(self.corpus.columns) == 2)
        if self.format == "head":
            return rows
        return [self._row((row.text, row.pair or ""), row.label) for row in rows if isinstance(row, TextRow)]

    def from_input(self, given: Mapping[str, object] | str, where: str) -> Row:
        """`text` (and `pair`), or the official or the hub's columns; of a plain line, a tab ends the pair's first half.

        Raises:
            DataError: A text is missing, or a field is unknown.
        """
        count = len(self.corpus.columns)
        if isinstance(given, str):
            texts = [given] if count == 1 else given.split("\t")
            if len(texts) != count:
                raise DataError(f"{where}: {self.subset} compares two texts: write a tab between them, and no other")
            return self._row(texts)
        spellings = (("text", "pair")[:count], self.corpus.columns, self.corpus.hub_columns)
        names = next((columns for columns in spellings if columns[0] in given), spellings[0])
        record = known_fields(given, names, where)
        return self._row([record.text(name) for name in names])

    def submission(self, split: str, predictions: Sequence[Prediction]) -> tuple[str, str] | None:
        """The file for gluebenchmark.com; None for splits whose labels are public.

        Raises:
            DataError: A score is not finite.
        """
        if _labelled(split):
            return None
        return self.submission_name(split), "".join(f"{line}\n" for line in self.submission_lines(predictions))

    def submission_splits(self, split: str) -> tuple[str, ...]:
        """MNLI's test is three files of a submission: matched, mismatched, and the diagnostic set."""
        several = self.subset == "mnli" and split == "test"
        return ("test", "test_mismatched", "diagnostic") if several else (split,)

    def submission_name(self, split: str) -> str:
        """What gluebenchmark.com calls the file with a test split's predictions.

        Raises:
            DataError: It is no test split.
        """
        return file_of(self.subset, split)

    def incomplete(self, split: str, rows: int) -> str | None:
        """GLUE refuses a file that lacks rows.

        Raises:
            DataError: The test set is not whole, and not because the recipe limits it.
        """
        if _labelled(split):
            return None
        name = self.submission_name(split)
        whole = TEST_SETS[name].rows
        if rows == whole:
            return None
        if split in self.limit:
            return f"{name}: task.limit leaves {rows:,} of {whole:,} rows, so this is no valid submission"
        raise DataError(
            f"glue: the split {split} of {self.subset} has {rows:,} rows, but the official file has {whole:,}, and "
            f"GLUE takes no other number; for a trial, limit it in the run's recipe: task.limit={{{split}: {rows}}}"
        )

    def submission_lines(self, predictions: Sequence[Prediction]) -> list[str]:
        """The lines of a submission file, without line ends.

        Args:
            predictions: Class indices, or STS-B's scores, in the order of the test file.

        Returns:
            The header, then index and label as GLUE spells it; scores within [0, 5], with three decimals.

        Raises:
            DataError: A score is not finite.
        """
        return [HEADER, *(f"{n}\t{self._spell(value)}" for n, value in enumerate(predictions))]

    def _spell(self, prediction: Prediction) -> str:
        if self.subset != "stsb":
            return self.corpus.spelled[int(prediction)]
        score = float(prediction)
        if not math.isfinite(score):
            raise DataError(f"glue: the model predicted {score}, which is no score from 0 to 5")
        return f"{min(max(score, GRADES[0]), GRADES[1]):.3f}"

    def _hub_source(self, split: str) -> HubSource:
        if split == "diagnostic":
            return HubSource(REPOSITORY, "test", "ax")
        matched = self.subset == "mnli" and split in ("validation", "test")
        return HubSource(REPOSITORY, f"{split}_matched" if matched else split, self.subset)

    def _records(self, path: Path, split: str) -> Iterator[Record | Dropped]:
        if split == "diagnostic":
            return _read(_diagnostic_file(path))
        folder = path / self.corpus.folder
        if not folder.is_dir():
            hint = f"; give its parent, {path.parent}" if path.name == self.corpus.folder else ""
            raise DataError(f"task.path: {path} has no folder {self.corpus.folder}{hint}")
        if self.subset == "mrpc" and not (folder / _FILES[split]).exists():
            return _original_mrpc(folder, split)
        file = folder / (_MNLI_FILES if self.subset == "mnli" else _FILES)[split]
        return self._official(file, labelled=_labelled(split))

    def _official(self, file: Path, labelled: bool) -> Iterator[Record | Dropped]:
        header = _COLA_HEADER if self.subset == "cola" and labelled else None
        return _read(file, header, drop_broken=self.subset == "qqp" and labelled)

    def _rows(self, split: str, records: Iterator[Record | Dropped]) -> Iterator[Row | Dropped]:
        for record in records:
            if isinstance(record, str):
                yield record
                continue
            texts = [record.text(column) for column in self.corpus.columns]
            if not _labelled(split):
                yield self._row(texts)
            elif self.subset == "mnli" and record[self.corpus.label] == "-":
                yield DISAGREED
            else:
                yield self._row(texts, self._label(record))

    def _row(self, texts: Sequence[str], label: int | float | None = None) -> Row:
        if self.format == "prompt":
            return self.wording.row(texts, None if label is None else int(label))
        return TextRow(texts[0], texts[1] if len(texts) == 2 else None, label)

    def _label(self, record: Record) -> int | float:
        column = self.corpus.label
        label = self.label_of(record, column)
        if self.subset == "stsb" and not GRADES[0] <= label <= GRADES[1]:
            raise DataError(f"{record.where}: `{column}` must be from 0 to 5, but is {label}")
        return label

    def _hub_row(self, cells: dict[str, Any], where: str) -> Row:
        record = Record(where, cells)
        texts = [record.text(column) for column in self.corpus.hub_columns]
        if record["label"] == -1:  # how the hub marks the hidden labels of test splits
            return self._row(texts)
        label = record.number("label")
        return self._row(texts, label if self.subset == "stsb" else int(label))


def _labelled(split: str) -> bool:
    """Whether a split's labels are public."""
    return split.startswith(("train", "validation"))


def _diagnostic_file(path: Path) -> Path:
    for name in _DIAGNOSTIC_FILES:
        if (path / name).is_file():
            return path / name
    raise DataError(
        f"{path / _DIAGNOSTIC_FILES[0]}: no such file (and no {_DIAGNOSTIC_FILES[1]} in {path}); it is the diagnostic "
        "set, which the MNLI model predicts: download it from gluebenchmark.com/tasks"
    )


def _read(path: Path, header: Sequence[str] | None = None, drop_broken: bool = False) -> Iterator[Record | Dropped]:
    """GLUE's TSV: quotes have no meaning (many are unbalanced), blank lines neither.

    Args:
        path: The file.
        header: Its columns, where it has no header line.
        drop_broken: Drop rows with more or fewer cells than columns: the official QQP files hold some, split over two
            lines, and everybody leaves them out.
    """
    columns = list(header or ())
    empty = True
    for number, line in read_lines(path):
        cells = line.split("\t")
        where = f"{path}:{number}"
        if not columns:
            columns = cells
        elif len(cells) == len(columns):
            empty = False
            yield Record(where, dict(zip(columns, cells, strict=True)))
        elif line and drop_broken:
            yield "malformed row"
        elif line:
            raise DataError(f"{where}: {len(cells)} cells, but there are {len(columns)} columns: {', '.join(columns)}")
    if empty:
        raise DataError(f"{path}: there are no rows in this file")


def _original_mrpc(folder: Path, split: str) -> Iterator[Record | Dropped]:
    """MRPC from Microsoft's own two files, divided as GLUE does: `dev_ids.tsv` lists the pairs held out of train.

    Raises:
        DataError: Neither GLUE's files nor these are there.
    """
    original = folder / f"msr_paraphrase_{'test' if split == 'test' else 'train'}.txt"
    if not original.exists():
        raise DataError(f"{folder / _FILES[split]}: no such file (and no {original.name} beside it)")
    if split == "test":
        yield from _read(original)
        return
    held_out = {tuple(line.split("\t")) for _, line in read_lines(folder / "dev_ids.tsv")}
    for record in _read(original):
        assert isinstance(record, Record)
        if ((record["#1 ID"], record["#2 ID"]) in held_out) == (split == "validation"):
            yield record

r"""GLUE (Wang et al. 2018): nine tasks in the official zip's layout or from the hub, and its submission files.

task: {name: glue, subset: mnli, path: data/glue}   # data/glue holds CoLA/, SST-2/, MNLI/, ...
task: {name: glue, subset: mnli}                    # from the hub
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lorakit.data.hub import HubSource, load_split
from lorakit.data.readers import Record, read_lines, shown
from lorakit.data.rows import Row, TextRow
from lorakit.errors import DataError
from lorakit.tasks.base import Dropped, Kind, Prediction, Split, Task, known_fields
from lorakit.tasks.glue_submission import HEADER, TEST_SETS, file_of
from lorakit.tasks.made_up import text_rows

REPOSITORY = "nyu-mll/glue"
GRADES = (0.0, 5.0)
"""STS-B's scores, lowest and highest."""
_COLA_HEADER = ("source", "label", "mark", "sentence")  # CoLA's train and dev files have no header of their own


@dataclass(frozen=True)
class Corpus:
    """One GLUE task.

    Args:
        folder: In the official zip.
        columns: Of the text and, where there is one, its pair, in the official files.
        label: Column of the label there.
        labels: Names of the classes, in the order of the hub's ids.
        spelled: The same as the official files and submissions spell them.
        metrics: The paper's first.
        hub_columns: As `columns`, on the hub.
    """

    folder: str
    columns: tuple[str, ...]
    label: str
    labels: tuple[str, ...]
    spelled: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    hub_columns: tuple[str, ...] = ("sentence1", "sentence2")


_NLI = ("entailment", "not_entailment")
CORPORA = {
    "mnli": Corpus(
        "MNLI",
        ("sentence1", "sentence2"),
        "gold_label",
        ("entailment", "neutral", "contradiction"),
        ("entailment", "neutral", "contradiction"),
        hub_columns=("premise", "hypothesis"),
    ),
    "sst2": Corpus("SST-2", ("sentence",), "label", ("negative", "positive"), ("0", "1"), hub_columns=("sentence",)),
    "mrpc": Corpus(
        "MRPC",
        ("#1 String", "#2 String"),
        "Quality",
        ("not_equivalent", "equivalent"),
        ("0", "1"),
        ("accuracy", "f1"),
    ),
    "cola": Corpus(
        "CoLA",
        ("sentence",),
        "label",
        ("unacceptable", "acceptable"),
        ("0", "1"),
        ("matthews",),
        hub_columns=("sentence",),
    ),
    "qnli": Corpus("QNLI", ("question", "sentence"), "label", _NLI, _NLI, hub_columns=("question", "sentence")),
    "qqp": Corpus(
        "QQP",
        ("question1", "question2"),
        "is_duplicate",
        ("not_duplicate", "duplicate"),
        ("0", "1"),
        ("accuracy", "f1"),
        hub_columns=("question1", "question2"),
    ),
    "rte": Corpus("RTE", ("sentence1", "sentence2"), "label", _NLI, _NLI),
    "stsb": Corpus("STS-B", ("sentence1", "sentence2"), "score", ("score",), (), ("pearson", "spearman")),
    "wnli": Corpus("WNLI", ("sentence1", "sentence2"), "label", ("not_entailment", "entailment"), ("0", "1")),
}
_FILES = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}
_MNLI_FILES = {
    "train": "train.tsv",
    "validation": "dev_matched.tsv",
    "validation_mismatched": "dev_mismatched.tsv",
    "test": "test_matched.tsv",
    "test_mismatched": "test_mismatched.tsv",
}
OFFICIAL_ROWS = {
    "cola": (8551, 1043, 1063),
    "sst2": (67349, 872, 1821),
    "mrpc": (3668, 408, 1725),
    "stsb": (5749, 1500, 1379),
    "qqp": (363846, 40430, 390965),
    "mnli": (392702, 9815, 9796),
    "qnli": (104743, 5463, 5463),
    "rte": (2490, 277, 3000),
    "wnli": (635, 71, 146),
}
"""Of train, validation (MNLI: matched) and test."""
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

    @property
    def corpus(self) -> Corpus:
        """What is particular to the subset."""
        return CORPORA[self.subset]

    @property
    def kind(self) -> Kind:
        """Regression for STS-B, classification else."""
        return "regression" if self.subset == "stsb" else "classification"

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

    def load(self, split: str) -> Split:
        """Read one split; rows of test splits and of the diagnostic set have no label.

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

    def sample(self, count: int, seed: int) -> list[Row]:
        """Made-up rows with this subset's labels, pairs where it has pairs."""
        labels = [float(grade) for grade in range(6)] if self.subset == "stsb" else range(len(self.labels))
        return text_rows(count, seed, labels, pair=len(self.corpus.columns) == 2)

    def from_input(self, given: Mapping[str, object] | str, where: str) -> TextRow:
        """`text` (and `pair`), or the official or the hub's columns; of a plain line, a tab ends the pair's first half.

        Raises:
            DataError: A text is missing, or a field is unknown.
        """
        count = len(self.corpus.columns)
        if isinstance(given, str):
            texts = [given] if count == 1 else given.split("\t")
            if len(texts) != count:
                raise DataError(f"{where}: {self.subset} compares two texts: write a tab between them, and no other")
            return _text_row(texts)
        spellings = (("text", "pair")[:count], self.corpus.columns, self.corpus.hub_columns)
        names = next((columns for columns in spellings if columns[0] in given), spellings[0])
        record = known_fields(given, names, where)
        return _text_row([record.text(name) for name in names])

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
        header = _COLA_HEADER if self.subset == "cola" and split != "test" else None
        return _read(file, header, drop_broken=self.subset == "qqp" and split != "test")

    def _rows(self, split: str, records: Iterator[Record | Dropped]) -> Iterator[Row | Dropped]:
        for record in records:
            if isinstance(record, str):
                yield record
                continue
            texts = [record.text(column) for column in self.corpus.columns]
            if not _labelled(split):
                yield _text_row(texts)
            elif self.subset == "mnli" and record[self.corpus.label] == "-":
                yield "label -: the annotators did not agree"
            else:
                yield _text_row(texts, self._label(record))

    def _label(self, record: Record) -> int | float:
        column, spelled = self.corpus.label, self.corpus.spelled
        if self.subset == "stsb":
            score = record.number(column)
            if not GRADES[0] <= score <= GRADES[1]:
                raise DataError(f"{record.where}: `{column}` must be from 0 to 5, but is {score}")
            return score
        text = record.text(column)
        if text not in spelled:
            raise DataError(f"{record.where}: `{column}` must be one of {', '.join(spelled)}, but is {shown(text)}")
        return spelled.index(text)

    def _hub_row(self, cells: dict[str, Any], where: str) -> TextRow:
        record = Record(where, cells)
        texts = [record.text(column) for column in self.corpus.hub_columns]
        if record["label"] == -1:  # how the hub marks the hidden labels of test splits
            return _text_row(texts)
        label = record.number("label")
        return _text_row(texts, label if self.subset == "stsb" else int(label))


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


def _text_row(texts: Sequence[str], label: int | float | None = None) -> TextRow:
    return TextRow(texts[0], texts[1] if len(texts) == 2 else None, label)


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

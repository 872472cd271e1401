"""UIT-VSFC (Van Nguyen et al. 2018): Vietnamese students' feedback, its sentiment or its topic.

task: {name: vsfc, subset: sentiment, path: data/uit_vsfc}   # holds train/, dev/ and test/, each with sents.txt, ...
task: {name: vsfc, subset: topic, segment: pyvi}             # from the hub, cut into words for PhoBERT
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from lorakit.data.hub import HubSource, load_split
from lorakit.data.readers import Record, read_lines, shown
from lorakit.data.rows import Row, TextRow
from lorakit.errors import DataError
from lorakit.tasks.base import Kind, Reading, Task, known_fields
from lorakit.tasks.made_up import text_rows

REPOSITORY = "uitnlp/vietnamese_students_feedback"
REVISION = "refs/convert/parquet"  # its main branch holds a loading script, which `datasets` does not run
LABELS = {
    "sentiment": ("negative", "neutral", "positive"),
    "topic": ("lecturer", "training_program", "facility", "others"),
}
"""Class names in the order of the files' numbers."""
FOLDERS = {"train": "train", "validation": "dev", "test": "test"}
TEXTS = "sents.txt"

Segmenter = Literal["pyvi", "underthesea"]


class Vsfc(Task):
    """The Vietnamese Students' Feedback Corpus, in its official layout of three files per split.

    Syllables are divided by spaces there, as Vietnamese is written. PhoBERT was trained on text whose words are joined,
    `sinh_viên` for `sinh viên`, so it needs `segment`. That text was made with VnCoreNLP's segmenter, which needs Java
    and downloads its model; the two libraries here join words likewise, though not always the same ones.
    """

    name: Literal["vsfc"] = "vsfc"
    subset: Literal["sentiment", "topic"]
    """Which label is to be predicted: three sentiments, or four topics."""
    path: str | None = None
    """The folder that holds train/, dev/ and test/, each with sents.txt, sentiments.txt and topics.txt; null: from the
    hub."""
    segment: Segmenter | None = None
    """The library that joins the syllables of a word with `_` (for PhoBERT); null: the text as it is. What `predict`
    is given is segmented likewise."""

    @property
    def kind(self) -> Kind:
        """Classification."""
        return "classification"

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the files' numbers."""
        return LABELS[self.subset]

    @property
    def metrics(self) -> tuple[str, ...]:
        """Accuracy, and F1 as the mean over the classes, unweighted and weighted by their rows."""
        return "accuracy", "f1_macro", "f1_weighted"

    @property
    def splits(self) -> tuple[str, ...]:
        """All three have labels."""
        return tuple(FOLDERS)

    def missing(self) -> str | None:
        """The segmenter's package, where it is not installed."""
        if self.segment is None or importlib.util.find_spec(self.segment) is not None:
            return None
        return (
            f"task.segment: the package {self.segment} is not installed: pip install {self.segment} "
            "(or set task.segment=null where the text is segmented already)"
        )

    @property
    def official_rows(self) -> dict[str, int]:
        """Lines of the official files."""
        return {"train": 11426, "validation": 1583, "test": 3166}

    def read(self, split: str) -> Reading:
        """Begin to read one split.

        Raises:
            DataError: A file is missing or malformed, the files of a split differ in length, or the segmenter is not
                installed; names the file and the line.
        """
        self.require_split(split)
        segment = self._segmenter()
        if self.path is not None:
            return self.gather(split, self._rows(Path(self.path), split, segment))
        source = HubSource(REPOSITORY, split, None, REVISION)
        read = load_split(source)
        rows = (self._hub_row(cells, f"{source}, row {n}", segment) for n, cells in enumerate(read.rows, start=1))
        return self.gather(split, rows, read.revision)

    def sample(self, count: int, seed: int) -> list[Row]:
        """Made-up rows with this subset's labels."""
        return text_rows(count, seed, range(len(self.labels)), pair=False)

    def from_input(self, given: Mapping[str, object] | str, where: str) -> TextRow:
        """`text` (the hub's `sentence` too), or a plain line.

        Raises:
            DataError: The text is missing, or a field is unknown; or the segmenter is not installed.
        """
        if not isinstance(given, str):
            column = "sentence" if "sentence" in given else "text"
            given = known_fields(given, [column], where).text(column)
        return TextRow(self._segmenter()(given))

    def _segmenter(self) -> Callable[[str], str]:
        if lacking := self.missing():
            raise DataError(lacking)
        return segmenter(self.segment)

    def _rows(self, path: Path, split: str, segment: Callable[[str], str]) -> Iterator[Row]:
        folder = path / FOLDERS[split]
        if not folder.is_dir():
            hint = f"; give its parent, {path.parent}" if path.name in FOLDERS.values() else ""
            raise DataError(f"task.path: {path} has no folder {FOLDERS[split]}{hint}")
        texts, labels = folder / TEXTS, folder / f"{self.subset}s.txt"
        for text, label in zip_longest(read_lines(texts), read_lines(labels)):
            if text is None or label is None:
                short, long = (texts, labels) if text is None else (labels, texts)
                number = (label or text)[0]
                raise DataError(f"{long}:{number}: {short.name} has no such line; the two must go line by line")
            yield TextRow(segment(text[1]), label=self._label(label[1].strip(), f"{labels}:{label[0]}"))

    def _label(self, text: str, where: str) -> int:
        known = [str(number) for number in range(len(self.labels))]
        if text not in known:
            raise DataError(f"{where}: must be one of {', '.join(known)}, but is {shown(text)}")
        return int(text)

    def _hub_row(self, cells: dict[str, Any], where: str, segment: Callable[[str], str]) -> TextRow:
        record = Record(where, cells)
        return TextRow(segment(record.text("sentence")), label=self._label(str(record[self.subset]), where))


def segmenter(library: Segmenter | None) -> Callable[[str], str]:
    """A function that joins the syllables of each word with `_`; without a library, one that changes nothing."""
    if library is None:
        return lambda text: text
    if library == "pyvi":
        from pyvi import ViTokenizer

        return lambda text: str(ViTokenizer.tokenize(text))
    from underthesea import word_tokenize

    return lambda text: str(word_tokenize(text, format="text"))

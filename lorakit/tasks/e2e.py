r"""The E2E NLG challenge (Novikova et al. 2017): restaurant descriptions from meaning representations.

    task: {name: e2e, path: data/e2e}   # holds trainset.csv, devset.csv, testset_w_refs.csv

Prompts are written as the LoRA authors did (`name : Blue Spice | Type : coffee shop | area : city centre`), references
are left as people wrote them.
"""

import random
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from lorakit.data.hub import HubSource, load_split
from lorakit.data.readers import Record, read_csv, shown
from lorakit.data.rows import CompletionRow, Row
from lorakit.errors import DataError
from lorakit.tasks.base import Reading, TextTask, known_fields

DOWNLOAD = "https://github.com/tuetschek/e2e-dataset"
HUB = ("tuetschek/e2e_nlg", "refs/convert/parquet")
"""The original challenge data. Its main branch is a script, which `datasets` refuses; this branch has Parquet files.
(GEM/e2e_nlg is another data set: the cleaned one.)"""
ATTRIBUTES = {
    "name": "name",
    "eatType": "Type",
    "food": "food",
    "priceRange": "price",
    "customer rating": "customer rating",
    "area": "area",
    "familyFriendly": "family friendly",
    "near": "near",
}
"""Attributes of a meaning representation → what the prompt calls them."""
_FILES = {
    "train": ("trainset.csv",),
    "validation": ("devset.csv",),
    "test": ("testset_w_refs.csv", "testset.csv"),
}
_ATTRIBUTE = re.compile(r"([^\[\],]+)\[([^\[\]]*)\]")
_MEANING = re.compile(rf"{_ATTRIBUTE.pattern}(, {_ATTRIBUTE.pattern})*")
_PART = rf"({'|'.join(ATTRIBUTES.values())}) : [^|]+"
_RENDERED = re.compile(rf"{_PART}( \| {_PART})*")
_SPACED = re.compile(r"£|(?<=\w)-(?=\w)")


class E2E(TextTask):
    """E2E NLG: one row per reference, rows of one meaning representation are references of one another."""

    name: Literal["e2e"] = "e2e"
    path: str | None = None
    """The folder that holds trainset.csv, devset.csv and testset_w_refs.csv (or testset.csv); null: from the hub."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those of the official script in its order, then NIST as the script gives it by default, with Perl."""
        return "bleu", "nist", "meteor", "rouge_l", "cider", "nist_perl"

    @property
    def splits(self) -> tuple[str, ...]:
        """Train, validation, test."""
        return tuple(_FILES)

    @property
    def official_rows(self) -> dict[str, int]:
        """References, as the files have them."""
        return {"train": 42061, "validation": 4672, "test": 4693}

    def read(self, split: str) -> Reading:
        """Begin to read one split; rows of a test set without references have no target.

        Raises:
            DataError: A file is missing or malformed, or a meaning representation is; names the file and the line.
        """
        self.require_split(split)
        if self.path is not None:
            return self.gather(split, _csv_rows(_file(Path(self.path), split)))
        source = HubSource(HUB[0], split, revision=HUB[1])
        try:
            read = load_split(source)
        except DataError as error:
            raise DataError(f"{error}. Or download {DOWNLOAD} and set task.path to its folder") from error
        records = (Record(f"{source}, row {n}", cells) for n, cells in enumerate(read.rows, start=1))
        rows = (_row(record, "meaning_representation", "human_reference") for record in records)
        return self.gather(split, rows, read.revision)

    def sample(self, count: int, seed: int) -> list[Row]:
        """Made-up restaurants; two references each."""
        rng = random.Random(seed)
        rows: list[Row] = []
        while len(rows) < count:
            name = (
                f"The {rng.choice(('Amber', 'Crooked', 'Silent', 'Painted'))} {rng.choice(('Fern', 'Oar', 'Thimble'))}"
            )
            food, area = rng.choice(("Basque", "Nepalese", "Welsh")), rng.choice(("old docks", "upper town"))
            text = prompt(f"name[{name}], food[{food}], area[{area}]", "sample")
            rows.append(CompletionRow(text, f" {name} serves {food} food in the {area}.", "eos"))
            rows.append(CompletionRow(text, f" In the {area}, {name} cooks {food} dishes.", "eos"))
        return rows[:count]

    def from_input(self, given: Mapping[str, object] | str, where: str) -> CompletionRow:
        """The field `mr`, or a plain line: a meaning representation, or a prompt as training renders it.

        Raises:
            DataError: It is neither.
        """
        text = given if isinstance(given, str) else known_fields(given, ["mr"], where).text("mr")
        rendered = text if _RENDERED.fullmatch(text) else prompt(text.strip(), where)
        return CompletionRow(rendered, None, "eos")


def prompt(meaning: str, where: str) -> str:
    """A meaning representation as the LoRA authors' prompt.

    Their values were tokenised by spaCy; of its rules, the ones for the pound sign and for hyphens are all that the
    values of this data set need.

    Args:
        meaning: Such as `name[Blue Spice], eatType[coffee shop]`.
        where: File and line, for messages.

    Raises:
        DataError: It is malformed, or has an attribute that E2E has not.
    """
    if not _MEANING.fullmatch(meaning):
        raise DataError(
            f"{where}: a meaning representation is `key[value], key[value], …`, but this is {shown(meaning)}"
        )
    parts = []
    for match in _ATTRIBUTE.finditer(meaning):
        key, value = match[1].strip(), match[2]
        if key not in ATTRIBUTES:
            raise DataError(f"{where}: unknown attribute {shown(key)}; E2E has {', '.join(ATTRIBUTES)}")
        tokens = _SPACED.sub(r" \g<0> ", value).split()
        parts.append(f"{ATTRIBUTES[key]} : {' '.join(tokens)}")
    return " | ".join(parts)


def _file(folder: Path, split: str) -> Path:
    if not folder.is_dir():
        raise DataError(f"task.path: {folder} is no folder; download {DOWNLOAD}")
    for name in _FILES[split]:
        if (folder / name).exists():
            return folder / name
    raise DataError(f"task.path: {folder} has no {' or '.join(_FILES[split])}; they are at {DOWNLOAD}")


def _csv_rows(path: Path) -> Iterator[Row]:
    for record in read_csv(path):
        columns = {name.lower(): name for name in record.cells}  # testset.csv writes MR, the others mr
        yield _row(record, columns.get("mr", "mr"), None if path.name == "testset.csv" else columns.get("ref", "ref"))


def _row(record: Record, meaning: str, reference: str | None) -> CompletionRow:
    text = prompt(record.text(meaning), record.where)
    if reference is None:
        return CompletionRow(text, None, "eos")
    return CompletionRow(text, " " + " ".join(record.text(reference).split()), "eos")

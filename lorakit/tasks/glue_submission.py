"""What gluebenchmark.com takes: a zip of eleven files, one per test set.

lorakit predict runs/cola runs/mnli ... --split test --out submission --fill-wnli
"""

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

from lorakit.errors import DataError
from lorakit.runtime import write_atomic

HEADER = "index\tprediction"
ARCHIVE = "submission.zip"


@dataclass(frozen=True)
class TestSet:
    """What one of the eleven files holds.

    Args:
        subset: Of the task glue, whose model predicts it.
        split: Of that subset.
        rows: In the official file.
    """

    subset: str
    split: str
    rows: int


TEST_SETS = {
    "AX.tsv": TestSet("mnli", "diagnostic", 1104),
    "CoLA.tsv": TestSet("cola", "test", 1063),
    "MNLI-m.tsv": TestSet("mnli", "test", 9796),
    "MNLI-mm.tsv": TestSet("mnli", "test_mismatched", 9847),
    "MRPC.tsv": TestSet("mrpc", "test", 1725),
    "QNLI.tsv": TestSet("qnli", "test", 5463),
    "QQP.tsv": TestSet("qqp", "test", 390_965),
    "RTE.tsv": TestSet("rte", "test", 3000),
    "SST-2.tsv": TestSet("sst2", "test", 1821),
    "STS-B.tsv": TestSet("stsb", "test", 1379),
    "WNLI.tsv": TestSet("wnli", "test", 146),
}
"""Name of the file → what it holds; a submission without one of them is refused there."""


def file_of(subset: str, split: str) -> str:
    """The name of the file for a test split.

    Raises:
        DataError: GLUE takes no predictions for this split.
    """
    for name, there in TEST_SETS.items():
        if (there.subset, there.split) == (subset, split):
            return name
    raise DataError(f"glue: GLUE takes predictions for test splits only, not for `{split}`")


def problems_of(folder: Path) -> dict[str, str]:
    """Name of each of the eleven files → what is wrong with it in a folder; empty text where it is complete."""
    return {name: _problem(folder / name, there) for name, there in TEST_SETS.items()}


def fill_wnli(folder: Path) -> Path | None:
    """Write WNLI.tsv with the majority class in every row, unless a file is there.

    The paper has no WNLI, and its development rows contradict its training rows: what models learn there scores below
    the majority.

    Returns:
        The file written, if any.
    """
    file = folder / "WNLI.tsv"
    if file.exists():
        return None
    lines = [HEADER, *(f"{n}\t0" for n in range(TEST_SETS[file.name].rows))]
    write_atomic(file, "".join(f"{line}\n" for line in lines))
    return file


def write_archive(folder: Path) -> Path:
    """Zip the eleven files, without folders; the same files give the same bytes."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in TEST_SETS:
            archive.writestr(zipfile.ZipInfo(name), (folder / name).read_bytes(), zipfile.ZIP_DEFLATED)
    write_atomic(folder / ARCHIVE, held.getvalue())
    return folder / ARCHIVE


def _problem(file: Path, there: TestSet) -> str:
    if not file.is_file():
        other = ", or add --fill-wnli" if there.subset == "wnli" else ""
        return f"missing: predict a run with task.subset {there.subset}{other}"
    header, *lines = file.read_text(encoding="utf-8").splitlines() or [""]
    if header != HEADER:
        return f"no submission file: its first line is not {HEADER!r}"
    if len(lines) != there.rows:
        return f"incomplete: {len(lines):,} of {there.rows:,} rows"
    return ""

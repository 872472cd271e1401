"""The eleven files of a submission: which are there, which are whole, and the zip."""

import zipfile
from pathlib import Path

import pytest

from lorakit.errors import DataError
from lorakit.tasks.glue_submission import TEST_SETS, file_of, fill_wnli, problems_of, write_archive


def whole(folder: Path) -> Path:
    """A folder with eleven complete files."""
    folder.mkdir(exist_ok=True)
    for name, there in TEST_SETS.items():
        (folder / name).write_text("index\tprediction\n" + "".join(f"{n}\t0\n" for n in range(there.rows)))
    return folder


def test_the_eleven_files_and_their_lines(tmp_path: Path) -> None:
    """Lines as `wc -l` counts them in submissions that gluebenchmark.com has taken."""
    whole(tmp_path)
    assert {file.name: file.read_bytes().count(b"\n") for file in tmp_path.iterdir()} == {
        "AX.tsv": 1105,
        "CoLA.tsv": 1064,
        "MNLI-m.tsv": 9797,
        "MNLI-mm.tsv": 9848,
        "MRPC.tsv": 1726,
        "QNLI.tsv": 5464,
        "QQP.tsv": 390966,
        "RTE.tsv": 3001,
        "SST-2.tsv": 1822,
        "STS-B.tsv": 1380,
        "WNLI.tsv": 147,
    }


def test_problems(tmp_path: Path) -> None:
    whole(tmp_path)
    assert set(problems_of(tmp_path).values()) == {""}
    (tmp_path / "QQP.tsv").unlink()
    (tmp_path / "WNLI.tsv").unlink()
    (tmp_path / "AX.tsv").write_text("index\tprediction\n0\tneutral\n")
    (tmp_path / "RTE.tsv").write_text("")
    assert {name: problem for name, problem in problems_of(tmp_path).items() if problem} == {
        "AX.tsv": "incomplete: 1 of 1,104 rows",
        "QQP.tsv": "missing: predict a run with task.subset qqp",
        "RTE.tsv": "no submission file: its first line is not 'index\\tprediction'",
        "WNLI.tsv": "missing: predict a run with task.subset wnli, or add --fill-wnli",
    }


def test_fill_wnli_is_the_majority_class_and_replaces_nothing(tmp_path: Path) -> None:
    assert fill_wnli(tmp_path) == tmp_path / "WNLI.tsv"
    lines = (tmp_path / "WNLI.tsv").read_text().splitlines()
    assert lines == ["index\tprediction", *(f"{n}\t0" for n in range(146))]
    (tmp_path / "WNLI.tsv").write_text("a run's\n")
    assert fill_wnli(tmp_path) is None
    assert (tmp_path / "WNLI.tsv").read_text() == "a run's\n"


def test_archive_is_flat_and_the_same_each_time(tmp_path: Path) -> None:
    archive = write_archive(whole(tmp_path / "one"))
    (tmp_path / "one" / "notes.txt").write_text("not of the submission")
    with zipfile.ZipFile(archive) as opened:
        assert opened.namelist() == list(TEST_SETS)
        assert opened.read("WNLI.tsv") == (tmp_path / "one/WNLI.tsv").read_bytes()
        assert opened.testzip() is None
    assert write_archive(whole(tmp_path / "two")).read_bytes() == archive.read_bytes()


def test_file_of_a_split() -> None:
    assert [file_of("mnli", split) for split in ("test", "test_mismatched", "diagnostic")] == [
        "MNLI-m.tsv",
        "MNLI-mm.tsv",
        "AX.tsv",
    ]
    with pytest.raises(DataError, match="test splits only, not for `diagnostic`"):
        file_of("rte", "diagnostic")

from pathlib import Path

import pytest

from lorakit.errors import DataError
from lorakit.scoring.outputs import read_texts, require_as_many


def test_one_text_a_line(tmp_path: Path) -> None:
    file = tmp_path / "out.txt"
    file.write_bytes("\ufeffone\r\n\ntwo \u2028 three\n".encode())
    assert read_texts(file) == ["one", "", "two \u2028 three"]
    file.write_text("one\ntwo")
    assert read_texts(file) == ["one", "two"]
    file.write_text("one\n\n")
    assert read_texts(file) == ["one", ""]


def test_what_lorakit_writes(tmp_path: Path) -> None:
    file = tmp_path / "test.jsonl"
    file.write_text('{"prompt": "p", "prediction": "two\\nlines"}\n{"prediction": ""}\n')
    assert read_texts(file) == ["two\nlines", ""]
    file.write_text('{"prediction": "a"}\n{"text": "b"}\n')
    with pytest.raises(DataError, match=r"test\.jsonl:2: there is no column `prediction`"):
        read_texts(file)
    file.write_text('{"prediction": "a"}\n{"prediction": \n')
    with pytest.raises(DataError, match=r"test\.jsonl:2: not JSON"):
        read_texts(file)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "out.txt").write_bytes(b"one\n\xff\n")
    with pytest.raises(DataError, match=r"out\.txt:2: not UTF-8"):
        read_texts(tmp_path / "out.txt")
    with pytest.raises(DataError, match=r"none\.txt: cannot be read"):
        read_texts(tmp_path / "none.txt")


def test_numbers_must_agree() -> None:
    require_as_many(Path("a"), 3, Path("b"), 3, "rows")
    for said, asked, first in ((1200, 1300, "1,201"), (1300, 1200, "1,201")):
        with pytest.raises(
            DataError, match=rf"^a: {said:,} predictions, but b has {asked:,} rows.* number {first} is the first"
        ):
            require_as_many(Path("a"), said, Path("b"), asked, "rows")
    with pytest.raises(DataError, match="^a: there are no predictions"):
        require_as_many(Path("a"), 0, Path("b"), 0, "rows")

from pathlib import Path

import pytest

from lorakit.data.readers import (
    Record,
    read_csv,
    read_json,
    read_jsonl,
    read_lines,
    read_parquet,
    read_records,
    read_tsv,
    shown,
)
from lorakit.errors import DataError


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def cells(records) -> list[dict[str, object]]:
    return [dict(record.cells) for record in records]


def failure(records) -> str:
    with pytest.raises(DataError) as caught:
        list(records)
    return str(caught.value)


# --- lines


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", "one\u2028still one\x85and\x0bhere\r\ntwo\n\nfour")
    assert list(read_lines(file)) == [(1, "one\u2028still one\x85and\x0bhere"), (2, "two"), (3, ""), (4, "four")]


def test_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", b"\xef\xbb\xbffirst\n\xef\xbb\xbfsecond\n")
    assert list(read_lines(file)) == [(1, "first"), (2, "\ufeffsecond")]


def test_not_utf8_names_line_and_byte(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", b"good\nbad \xe9\n")
    assert failure(read_lines(file)) == f"{file}:2: not UTF-8 (byte 5 of the line); save it as UTF-8"


def test_missing_file(tmp_path: Path) -> None:
    assert (
        failure(read_lines(tmp_path / "none.txt")) == f"{tmp_path}/none.txt: cannot be read: No such file or directory"
    )


# --- JSON lines


def test_jsonl(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", '{"t": "x", "n": [1, null]}\n\n{"t": "\u00e9"}\r\n')
    records = list(read_jsonl(file))
    assert cells(records) == [{"t": "x", "n": [1, None]}, {"t": "\u00e9"}]
    assert [record.where for record in records] == [f"{file}:1", f"{file}:3"]


def test_json_array(tmp_path: Path) -> None:
    records = list(read_json(write(tmp_path / "a.json", '\ufeff[{"t": "x"},\n {"t": null}]\n')))
    assert cells(records) == [{"t": "x"}, {"t": None}]
    assert [record.where for record in records] == [f"{tmp_path}/a.json, row 1", f"{tmp_path}/a.json, row 2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"t": 1}', ': must hold an array of objects, [{...}, ...], but this is {"t": 1}'),
        ('[{"t": 1}, 2]', ", row 2: must be a JSON object such as {...}, but is 2"),
        (
            "[{]",
            ": not JSON (Expecting property name enclosed in double quotes: line 1 column 3 (char 2)); a file",
        ),
        ("[]", ": there are no rows in this file"),
    ],
)
def test_json_that_is_no_array_of_objects(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path / "a.json", text)
    assert failure(read_records(file)).startswith(f"{file}{message}")


def test_jsonl_names_the_broken_line(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", '{"t": 1}\n{"t": \n')
    assert failure(read_jsonl(file)).startswith(f"{file}:2: not JSON (")


def test_jsonl_refuses_what_is_no_object(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", "[1, 2]\n")
    assert failure(read_jsonl(file)) == f"{file}:1: a line must hold a JSON object such as {{...}}, but this is [1, 2]"


def test_jsonl_hints_at_an_array_over_many_lines(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", '[\n{"t": 1}\n]\n')
    assert failure(read_jsonl(file)).endswith("; write one object per line, not an array")


def test_jsonl_survives_deep_nesting(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", "[" * 100_000 + "\n")
    assert failure(read_jsonl(file)).startswith(f"{file}:1: not JSON")


# --- CSV


def test_csv_counts_lines_within_quotes(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", 'a,b\n"one\ntwo, ""quoted""",1\n\nx,2\n')
    records = list(read_csv(file))
    assert cells(records) == [{"a": 'one\ntwo, "quoted"', "b": "1"}, {"a": "x", "b": "2"}]
    assert [record.where for record in records] == [f"{file}:2", f"{file}:5"]


def test_csv_with_byte_order_mark_and_quoted_header(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", b'\xef\xbb\xbf"mr","ref"\r\n1,2\r\n')
    assert cells(read_csv(file)) == [{"mr": "1", "ref": "2"}]


def test_csv_row_of_another_length(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "a,b\n1,2\n1,2,3\n")
    assert failure(read_csv(file)) == f"{file}:3: 3 cells, but the header has 2: a, b"


def test_csv_open_quote_names_the_line_where_it_opens(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", 'a,b\n1,2\n1,"open\nmore\n')
    assert failure(read_csv(file)).startswith(f"{file}:3: not well-formed CSV: ")


def test_csv_column_named_twice(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "a,b,a\n1,2,3\n")
    assert failure(read_csv(file)) == f"{file}:1: the header names a column twice: a"


# --- TSV


def test_tsv_quotes_mean_nothing(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tsv", 'a\tb\n"open\tx "y\n""\t\n')
    assert cells(read_tsv(file)) == [{"a": '"open', "b": 'x "y'}, {"a": '""', "b": ""}]


def test_tsv_row_of_another_length(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tsv", "a\tb\n1\n")
    assert failure(read_tsv(file)) == f"{file}:2: 1 cells, but the header has 2: a, b"


# --- Parquet


def test_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"t": "x", "m": [{"role": "user"}]}, {"t": None, "m": []}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    records = list(read_parquet(tmp_path / "a.parquet"))
    assert cells(records) == rows
    assert [record.where for record in records] == [f"{tmp_path}/a.parquet, row 1", f"{tmp_path}/a.parquet, row 2"]


@pytest.mark.parametrize("content", [b"no parquet at all", b"", None])
def test_unreadable_parquet(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        write(tmp_path / "a.parquet", content)
    assert failure(read_parquet(tmp_path / "a.parquet")).startswith(f"{tmp_path}/a.parquet: not readable as Parquet: ")


# --- any file


@pytest.mark.parametrize(("name", "text"), [("a.jsonl", "\n"), ("a.csv", "a,b\n"), ("a.tsv", "a\tb\n"), ("b.csv", "")])
def test_empty_file(tmp_path: Path, name: str, text: str) -> None:
    file = write(tmp_path / name, text)
    assert failure(read_records(file)) == f"{file}: there are no rows in this file"


def test_ending_chooses_the_reader(tmp_path: Path) -> None:
    assert cells(read_records(write(tmp_path / "a.tsv", "a\n1,2\n"))) == [{"a": "1,2"}]
    assert cells(read_records(write(tmp_path / "a.csv", "a,b\n1,2\n"))) == [{"a": "1", "b": "2"}]
    assert "ends in one of .jsonl, .json, .csv, .tsv, .parquet" in failure(read_records(tmp_path / "a.txt"))


def test_reading_is_lazy(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", '{"t": 1}\nbroken\n')
    assert next(read_records(file)).cells == {"t": 1}


# --- records


def test_missing_column_lists_those_found_and_suggests_one() -> None:
    with pytest.raises(DataError) as caught:
        Record("f:3", {"sentence": "x", "label": 1})["sentense"]
    message = "f:3: there is no column `sentense`; did you mean `sentence`? Columns here: sentence, label."
    assert str(caught.value) == message


def test_missing_column_unlike_any_other_suggests_nothing() -> None:
    with pytest.raises(DataError, match="no column `zzz`. Columns here: a.$"):
        Record("f:3", {"a": 1})["zzz"]


@pytest.mark.parametrize("cell", [None, 1, ["a"]])
def test_text_must_be_text(cell: object) -> None:
    with pytest.raises(DataError, match="^f:1: `t` must be text, but is "):
        Record("f:1", {"t": cell}).text("t")


@pytest.mark.parametrize(("cell", "number"), [(1, 1.0), ("2.5", 2.5), (-0.5, -0.5)])
def test_number(cell: object, number: float) -> None:
    assert Record("f:1", {"n": cell}).number("n") == number


@pytest.mark.parametrize("cell", [None, "abc", "", True, float("nan"), "inf", [1], 10**400])
def test_number_must_be_a_finite_number(cell: object) -> None:
    with pytest.raises(DataError, match="^f:1: `n` must be a number, but is "):
        Record("f:1", {"n": cell}).number("n")


def test_long_cells_are_shortened() -> None:
    assert shown("x" * 100) == '"' + "x" * 56 + "..."
    assert shown(None) == "null"

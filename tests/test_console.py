import sys

import pytest

from lorakit.console import print_errors, print_table


def test_a_table_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["metric", "dev"], [("bleu", 65.93), ("a longer name", "–")])
    assert capsys.readouterr().out == "metric         dev\nbleu           65.93\na longer name  –\n"


def test_a_table_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_table(["metric", "dev"], [("bleu", 1)])
    out = capsys.readouterr().out
    assert "metric" in out and "bleu" in out and "─" in out


def test_cells_are_no_markup(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_table(["note [a]", ""], [("1 is no query", "SELECT [/INST] [b] :smile:")])
    out = capsys.readouterr().out
    assert "SELECT [/INST] [b] :smile:" in out and "note [a]" in out


def test_errors_are_lines_of_their_own(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    print_errors(("one", "two"), "error: ")
    assert capsys.readouterr().err == "error: one\nerror: two\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    print_errors(("one",), "error: ")
    assert capsys.readouterr().err == "\033[31merror: one\033[0m\n"

import json
from pathlib import Path

import pytest

from lorakit.errors import LorakitError
from lorakit.journal import FILE, read_history
from lorakit.training.history import History


def filled(run: Path) -> History:
    history = History(run)
    for step in (1, 2, 3, 4):
        history.write("log", step, loss=step / 10)
        if step % 2 == 0:
            history.write("eval", step, metrics={"loss": 1.0})
            history.write("save", step)
    history.write("final", 4, metrics={})
    return history


def kinds(run: Path) -> list[tuple[str, int]]:
    return [(line["kind"], line["step"]) for line in read_history(run)]


def test_lines_are_json_with_kind_and_step(tmp_path: Path) -> None:
    History(tmp_path).write("log", 7, loss=0.5, lr=1e-4)
    assert (tmp_path / FILE).read_text() == '{"kind": "log", "step": 7, "loss": 0.5, "lr": 0.0001}\n'


def test_rewind_keeps_what_the_checkpoint_has(tmp_path: Path) -> None:
    filled(tmp_path).rewind(2, evaluated=True)
    assert kinds(tmp_path) == [("log", 1), ("log", 2), ("eval", 2), ("save", 2)]


def test_rewind_to_before_an_evaluation_forgets_it_and_its_save(tmp_path: Path) -> None:
    filled(tmp_path).rewind(2, evaluated=False)
    assert kinds(tmp_path) == [("log", 1), ("log", 2)]


def test_rewind_keeps_what_the_step_itself_has_logged(tmp_path: Path) -> None:
    history = filled(tmp_path)
    history.write("log", 5)
    history.write("skip", 5, rows=[1])
    history.write("plan", 5)
    history.write("eval", 5)
    history.rewind(5, evaluated=False)
    assert kinds(tmp_path)[-3:] == [("log", 5), ("skip", 5), ("plan", 5)]


def test_rewind_to_the_last_step_forgets_the_final_evaluation(tmp_path: Path) -> None:
    filled(tmp_path).rewind(4, evaluated=True)
    assert ("final", 4) not in kinds(tmp_path)
    assert kinds(tmp_path)[-1] == ("save", 4)


def test_rewind_to_the_start_empties(tmp_path: Path) -> None:
    history = filled(tmp_path)
    history.write("plan", 0)
    history.rewind(-1, evaluated=True)
    assert (tmp_path / FILE).read_text() == ""


def test_torn_last_line_is_passed_over_and_gone_after_a_rewind(tmp_path: Path) -> None:
    history = filled(tmp_path)
    with (tmp_path / FILE).open("a") as file:
        file.write('{"kind": "log", "st')
    assert kinds(tmp_path)[-1] == ("final", 4)
    history.rewind(4, evaluated=True)
    history.write("log", 5)
    assert [json.loads(line)["step"] for line in (tmp_path / FILE).read_text().splitlines()][-1] == 5


@pytest.mark.parametrize("line", ["[1]", "{}", '{"kind": "log"}', '{"step": "1", "kind": "log"}', "null"])
def test_lines_of_another_form_are_passed_over(tmp_path: Path, line: str) -> None:
    history = filled(tmp_path)
    before = kinds(tmp_path)
    with (tmp_path / FILE).open("a") as file:
        file.write(line + "\n")
    assert kinds(tmp_path) == before
    history.rewind(4, evaluated=True)


def test_numbers_survive_a_rewind_exactly(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.write("log", 1, loss=0.1 + 0.2, lr=1e-17)
    before = (tmp_path / FILE).read_bytes()
    history.rewind(1, evaluated=True)
    assert (tmp_path / FILE).read_bytes() == before


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    history = History(tmp_path, enabled=False)
    history.write("log", 1)
    history.rewind(0, evaluated=True)
    assert list(tmp_path.iterdir()) == []


def test_disk_that_refuses_is_one_line(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(LorakitError, match="cannot write"):
        History(tmp_path).write("log", 1)


def test_missing_log_reads_as_empty(tmp_path: Path) -> None:
    assert read_history(tmp_path) == []

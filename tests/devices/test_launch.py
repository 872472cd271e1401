"""Starting processes and ending them: on workers that load nothing, but for the last tests."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lorakit.launch import WorkerFailed, launch, processors

PRELUDE = """
import os, signal, sys, time
from pathlib import Path
from lorakit.errors import DataError, LorakitError
from lorakit.launch import be_worker, report
be_worker()
rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
(folder / f"pid-{rank}").write_text(str(os.getpid()))
def fail(error, code, prefix="error: "):
    report([str(error)], error, prefix, "Traceback of " + str(error))
    sys.exit(code)
"""


def command(folder: Path, code: str) -> list[str]:
    return [sys.executable, "-c", PRELUDE + code, str(folder)]


def failure(folder: Path, code: str, count: int = 2) -> WorkerFailed:
    with pytest.raises(WorkerFailed) as raised:
        launch(command(folder, code), count)
    return raised.value


def gone(folder: Path, rank: int) -> bool:
    return not Path(f"/proc/{(folder / f'pid-{rank}').read_text()}").exists()


def test_workers_get_torchrun_s_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import json
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "OMP_NUM_THREADS")
(folder / f"env-{rank}").write_text(json.dumps([os.environ[name] for name in names]))
"""
    monkeypatch.delenv("OMP_NUM_THREADS")
    launch(command(tmp_path, code), 2)
    threads = str(max(1, processors() // 2))
    for rank in range(2):
        found = json.loads((tmp_path / f"env-{rank}").read_text())
        assert found == [str(rank), str(rank), "2", "2", "127.0.0.1", threads]
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    launch(command(tmp_path, code), 2)
    assert json.loads((tmp_path / "env-0").read_text())[-1] == "7"


def test_only_the_first_is_heard(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    launch(command(tmp_path, "print('I am', rank); print('I am', rank, file=sys.stderr)"), 3)
    assert capfd.readouterr() == ("I am 0\n", "I am 0\n")


def test_an_error_of_all_is_told_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    error = failure(tmp_path, "fail(DataError('no such file'), 1)", 3)
    assert (error.problems, error.exit_code, error.prefix) == (("no such file",), 1, "error: ")
    assert capfd.readouterr() == ("", "")
    assert error.__notes__ == ["Traceback of no such file"], "for --debug"


def test_a_worker_that_fails_ends_the_others(tmp_path: Path) -> None:
    began = time.monotonic()
    error = failure(tmp_path, "fail(DataError('row 3'), 2) if rank == 1 else time.sleep(60)")
    assert (error.problems, error.exit_code) == (("row 3",), 2)
    assert time.monotonic() - began < 30
    assert gone(tmp_path, 0)


def test_the_cause_is_told_and_not_what_followed(tmp_path: Path) -> None:
    code = """
if rank == 1:
    time.sleep(0.5)
    {cause}
time.sleep(0.2)
fail(RuntimeError("Connection closed by peer"), 1)
"""
    error = failure(tmp_path, code.format(cause="fail(DataError('row 3'), 1)"))
    assert error.problems == ("row 3",)
    error = failure(tmp_path, code.format(cause="os.kill(os.getpid(), signal.SIGKILL)"))
    assert error.problems == ("process 2 of 2 was killed by SIGKILL (perhaps memory ran out); --resume continues",)
    assert error.exit_code == 137
    assert failure(tmp_path, code.format(cause="sys.exit(0)")).problems == ("Connection closed by peer",)


def test_a_worker_that_dies_without_a_word(tmp_path: Path) -> None:
    error = failure(tmp_path, "sys.exit('libfoo: not found') if rank == 1 else time.sleep(60)")
    assert error.problems == ("process 2 of 2 ended with exit code 1: libfoo: not found",)
    assert error.exit_code == 1


PARENT = """
import sys
from lorakit.cli import main
from lorakit.cli.shared import app
from lorakit.launch import launch
@app.command("go")
def go() -> None:
    launch([sys.executable, "-c", sys.argv[1], sys.argv[2]], 2)
main(["go"])
"""
SAVES_AND_STOPS = """
def stop(number, frame):
    (folder / f"told-{rank}").write_text((folder / f"told-{rank}").read_text() + "x" if told() else "x")
    fail(LorakitError("stopped after step 5"), 128 + number, "")
def told():
    return (folder / f"told-{rank}").exists()
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
(folder / f"ready-{rank}").touch()
time.sleep(60)
"""


def parent(folder: Path, code: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, PRELUDE + code, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not all((folder / f"ready-{rank}").exists() for rank in range(2)):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_reaches_every_worker_once(tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = parent(tmp_path, SAVES_AND_STOPS)
    os.killpg(process.pid, number)  # as a terminal does
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (code, "", "stopped after step 5\n")
    assert [(tmp_path / f"told-{rank}").read_text() for rank in range(2)] == ["x", "x"]


def test_a_second_signal_ends_them_at_once(tmp_path: Path) -> None:
    process = parent(tmp_path, SAVES_AND_STOPS.replace("    fail(", "    time.sleep(60); fail("))
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "stopped without saving\n")
    assert gone(tmp_path, 0)
    assert gone(tmp_path, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="the death signal is Linux'")
def test_workers_do_not_outlive_the_parent(tmp_path: Path) -> None:
    process = parent(tmp_path, SAVES_AND_STOPS)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while not (gone(tmp_path, 0) and gone(tmp_path, 1)):
        assert time.monotonic() < deadline
        time.sleep(0.05)

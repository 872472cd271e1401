import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lorakit.errors import LorakitError, RecipeError
from lorakit.lock import LOCK, DirectoryLock

HOLDER = """
import sys
from pathlib import Path
from lorakit.lock import DirectoryLock
with DirectoryLock(Path(sys.argv[1]), print):
    print("held", flush=True)
    sys.stdin.read()
"""


def lock(directory: Path, **options: Any) -> DirectoryLock:
    return DirectoryLock(directory, pytest.fail, **options)


@contextmanager
def holder(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLDER, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_is_told_who_is_there(tmp_path: Path) -> None:
    with holder(tmp_path / "run") as other:
        who = f"process {other.pid} on {socket.gethostname()} trains in this directory now"
        with pytest.raises(RecipeError, match=who), lock(tmp_path / "run"):
            pass
    with lock(tmp_path / "run"):
        pass


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_dead_hold_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with holder(tmp_path / "run") as other:
        other.send_signal(number)
        other.wait()
        assert (tmp_path / "run" / LOCK).exists()
        with lock(tmp_path / "run"):
            assert json.loads((tmp_path / "run" / LOCK).read_text())["pid"] == os.getpid()
        assert not (tmp_path / "run" / LOCK).exists()


def test_nothing_stays_where_nothing_was_written(tmp_path: Path) -> None:
    with pytest.raises(LorakitError, match="wrong"), lock(tmp_path / "a/run"):
        raise LorakitError("wrong")
    assert not (tmp_path / "a/run").exists()
    (tmp_path / "mine").mkdir()
    with lock(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").is_dir(), "made by somebody else"
    with lock(tmp_path / "run"):
        (tmp_path / "run/recipe.yaml").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["recipe.yaml"]


def test_workers_leave_it_to_the_first_process(tmp_path: Path) -> None:
    with lock(tmp_path / "run"), lock(tmp_path / "run", enabled=False) as worker:
        worker.check()
    with lock(tmp_path / "other", enabled=False):
        assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("how", ["deleted", "moved", "replaced"])
def test_a_directory_that_is_no_longer_ours(tmp_path: Path, how: str) -> None:
    out = tmp_path / "run"
    with lock(out) as held:
        held.check()
        if how == "moved":
            out.rename(tmp_path / "elsewhere")
        else:
            shutil.rmtree(out)
        if how == "replaced":
            with lock(out):
                with pytest.raises(LorakitError, match="deleted, moved or replaced"):
                    held.check()
                (out / "theirs").touch()
            return
        with pytest.raises(
            LorakitError, match=f"{out}: the run directory, or its .lock, was deleted, moved or replaced"
        ):
            held.check()
    assert not out.exists()


def test_file_systems_without_locks_are_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    said: list[str] = []
    monkeypatch.setattr(fcntl, "flock", refuse)
    with DirectoryLock(tmp_path / "run", said.append) as held:
        held.check()
    assert said == [
        f"warning: {tmp_path / 'run'}: this file system has no locks; see to it that no other process trains in this "
        "directory"
    ]


def test_a_lock_file_that_its_holder_has_just_removed_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, removed = fcntl.flock, [False]

    def late(handle: int, how: int) -> None:
        if not removed[0]:
            removed[0] = True
            (tmp_path / LOCK).unlink()
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with lock(tmp_path) as held:
        held.check()
        assert (tmp_path / LOCK).exists()


def test_a_holder_that_cannot_be_read_is_another_process(tmp_path: Path) -> None:
    with lock(tmp_path):
        (tmp_path / LOCK).write_text("[")
        with pytest.raises(RecipeError, match="another process trains"), lock(tmp_path):
            pass


def test_a_disk_that_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LorakitError, match="cannot write: "), lock(tmp_path / "file/run"):
        pass

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(LorakitError, match="No space left"), lock(tmp_path / "run"):
            pass
    with lock(tmp_path / "run"):
        pass

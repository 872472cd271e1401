"""Starting several processes of one command on this machine, and ending all of them when one fails.

`lorakit train RECIPE --processes N` starts N times `python -m lorakit train RECIPE`, with the environment that torchrun
sets too, so that a worker cannot tell who has started it. What torchrun lacks: errors of workers are shown once, as one
line, and Ctrl-C reaches every worker once.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeAlias

from lorakit.errors import LorakitError

_REPORTS = "LORAKIT_WORKER_REPORTS"
"""The folder in which workers leave word of what ended them."""
_PARENT = "LORAKIT_WORKER_PARENT"
_SECONDS_BETWEEN_LOOKS = 0.05
_GRACE_SECONDS = 3.0
"""Between the first failure and the end of the others: time for them to say what they know."""
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux' prctl


_Process: TypeAlias = "subprocess.Popen[bytes]"


class WorkerFailed(LorakitError):
    """A worker ended the run.

    Args:
        problems: The worker's.
        prefix: Put before each.
        exit_code: The worker's; 128 + signal for one that was killed.
    """

    def __init__(self, problems: Sequence[str], prefix: str, exit_code: int) -> None:
        super().__init__(*problems)
        self.prefix, self.exit_code = prefix, exit_code


def processors() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def launched() -> bool:
    """Whether a launcher has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def end_at_once(code: object) -> NoReturn:
    """End one of several processes, all of its work done, without taking the interpreter apart.

    torch's threads for exchanges may live a moment longer than it; then C++ ends the process with SIGABRT ("terminate
    called without an active exception", pytorch#190489), and its launcher tells that a finished run has failed.

    Args:
        code: Of a `SystemExit`.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def be_worker() -> None:
    """In a worker of ours: end with the parent, even where that is killed (on Linux)."""
    parent = os.environ.get(_PARENT)
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != int(parent):  # it had ended before
        sys.exit(1)


def report(problems: Sequence[str], error: BaseException, prefix: str, trace: str) -> bool:
    """In a worker of ours: leave word of what ends it, and say nothing.

    Args:
        problems: One line each.
        error: What was raised.
        prefix: Put before each.
        trace: The traceback.

    Returns:
        False in any other process, which must speak for itself.
    """
    folder = os.environ.get(_REPORTS)
    if folder is None:
        return False
    known = isinstance(error, LorakitError)
    text = json.dumps({"problems": list(problems), "prefix": prefix, "known": known, "trace": trace})
    Path(folder, f"{os.environ['RANK']}.json").write_text(text)
    return True


def lorakit_command(arguments: Sequence[str]) -> list[str]:
    """The command line of `lorakit` with some arguments, in this Python."""
    return [sys.executable, "-m", "lorakit", *arguments]


def killed_by(number: int) -> str:
    """What a process has died of, for people.

    Args:
        number: The signal's.
    """
    hint = " (perhaps memory ran out)" if number == signal.SIGKILL else ""
    return f"killed by {signal.Signals(number).name}{hint}"


def launch(command: Sequence[str], count: int) -> None:
    """Run a command in several processes, and wait for their end.

    The first has this process's output; the others are heard only where they fail.

    Args:
        command: What each runs.
        count: How many processes.

    Raises:
        WorkerFailed: One has failed, or all were stopped by Ctrl-C or SIGTERM.
    """
    with tempfile.TemporaryDirectory(prefix="lorakit-workers-") as folder, _Signals() as signals:
        workers = signals.workers
        try:
            environment = _environment(count, folder)
            for rank in range(count):
                workers.append(_start(command, rank, environment, Path(folder)))
            _wait(workers, signals)
            codes = [worker.returncode for worker in workers]
        finally:
            for worker in workers:
                if worker.poll() is None:
                    worker.kill()
                    worker.wait()
        if any(code != 0 for code in codes):
            raise _failure(codes, Path(folder), signals)


def _environment(count: int, folder: str) -> dict[str, str]:
    """What torchrun sets, and threads so that the workers together have as many as there are cores."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ours = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        _REPORTS: folder,
        _PARENT: str(os.getpid()),
    }
    threads = {"OMP_NUM_THREADS": str(max(1, processors() // count))}
    # A worker that ends makes the others' sockets complain, in lines that say nothing about why.
    quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR"}
    return {**threads, **quiet, **os.environ, **ours}


def _start(command: Sequence[str], rank: int, environment: dict[str, str], folder: Path) -> _Process:
    streams: dict[str, Any] = {}
    if rank:
        streams["stdout"] = subprocess.DEVNULL
        streams["stderr"] = (folder / f"{rank}.log").open("wb")
    try:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            start_new_session=True,  # Ctrl-C is passed on by us alone, once
            **streams,
        )
    finally:
        if rank:
            streams["stderr"].close()


class _Signals:
    """While entered, SIGINT and SIGTERM are passed on to the workers; a second one ends them at once."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self.workers: list[_Process] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._pass_on)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        for worker in self.workers:
            if worker.poll() is None:
                worker.send_signal(number if len(self.received) == 1 else signal.SIGKILL)


def _wait(workers: Sequence[_Process], signals: _Signals) -> None:
    """Until all have ended, or one has failed and the others had time to say what they know."""
    failed_at: float | None = None
    if signals.received:  # not all were there to be told
        return
    while any(worker.poll() is None for worker in workers):
        if failed_at is None and any(worker.poll() for worker in workers):
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() - failed_at > _GRACE_SECONDS:
            return
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _failure(codes: Sequence[int | None], folder: Path, signals: _Signals) -> WorkerFailed:
    """The failure that explains the others: an error for people, then a death, then what followed from those."""
    reports = {rank: _report_of(folder, rank) for rank, code in enumerate(codes) if code}
    for rank, found in reports.items():
        if found is not None and found["known"]:
            return _from_report(found, codes[rank])
    if signals.received:
        number = signals.received[0]
        return WorkerFailed(["stopped without saving"], "", 128 + number)
    count = len(codes)
    for rank, code in enumerate(codes):
        if code is not None and code < 0:
            text = f"process {rank + 1} of {count} was {killed_by(-code)}; --resume continues"
            return WorkerFailed([text], LorakitError.prefix, 128 - code)
    for rank, found in reports.items():
        if found is not None:
            return _from_report(found, codes[rank])
    rank, code = next((rank, code) for rank, code in enumerate(codes) if code)
    said = _last_line(folder / f"{rank}.log")
    text = f"process {rank + 1} of {count} ended with exit code {code}{said}"
    return WorkerFailed([text], LorakitError.prefix, code)


def _from_report(found: dict[str, Any], code: int | None) -> WorkerFailed:
    error = WorkerFailed(found["problems"], found["prefix"], code or 1)
    error.add_note(found["trace"])
    return error


def _report_of(folder: Path, rank: int) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((folder / f"{rank}.json").read_text())
    except (OSError, ValueError):
        return None
    return found


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.is_file() else []
    return f": {lines[-1]}" if lines else ""

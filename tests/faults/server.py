"""A fork server: torch, transformers and lorakit are imported once, and every run is a child of that process.

Run as a program it takes a `Job` a line and answers with an `Ended`. Drawing pictures and predicting memory, two thirds
of a tiny run's time, are left out in the children; the picture files are written all the same.
"""

import importlib
import json
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

LIMIT = 120.0
"""Seconds after which a child counts as hanging."""
HUNG = "hung"
PHASE_BYTES = 32


@dataclass
class Job:
    """A run of the command line, and what happens to it.

    Args:
        arguments: Of `lorakit`.
        directory: The run directory, whose files are watched.
        kill: Point, seconds and signal: it comes so long after the run has passed so many points.
        point: Index and kind of a fault (see `points`).
    """

    arguments: list[str]
    directory: str
    kill: tuple[int, float, int] | None = None
    point: tuple[int, str] | None = None


@dataclass
class Ended:
    """How it ended.

    Args:
        code: The exit code; negative: the signal that ended it.
        phase: What the run was doing when the signal came, or at the end.
        seconds: From the fork to the end.
        output: What it printed.
        points: What it did to which file.
    """

    code: int | str
    phase: str
    seconds: float
    output: str
    points: list[tuple[str, str]] = field(default_factory=list)


class ForkServer:
    """The server's client; close it.

    Attributes:
        warm: What the children have done before, and therefore do without importing anything.
    """

    def __init__(self) -> None:
        self.warm: set[str] = set()
        here = Path(__file__).resolve()
        paths = [str(here.parents[2]), str(here.parents[1])]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]),
        }
        self._process = subprocess.Popen(
            [sys.executable, str(here)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True,
            start_new_session=True,
        )  # fmt: skip

    def run(self, job: Job) -> Ended:
        """Do one job, and wait for its end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(job)) + "\n")
        self._process.stdin.flush()
        found = json.loads(self._process.stdout.readline())
        return Ended(**{**found, "points": [tuple(point) for point in found["points"]]})

    def close(self) -> None:
        """End the server."""
        self._process.communicate(timeout=LIMIT)


def _serve() -> None:
    import torch
    import transformers.models.bert.modeling_bert
    import transformers.models.gpt2.modeling_gpt2
    import transformers.models.llama.modeling_llama  # noqa: F401

    import lorakit.cli  # noqa: F401
    from lorakit.training import run  # noqa: F401

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        ended, modules = _do(Job(**json.loads(line)))
        _import(modules)
        answers.write(json.dumps(asdict(ended)) + "\n")
        answers.flush()


def _import(modules: list[str]) -> None:
    """Import what a child needed, so that the next one has it."""
    for name in modules:
        if name not in sys.modules:
            with suppress(ImportError):
                importlib.import_module(name)


def _do(job: Job) -> tuple[Ended, list[str]]:
    """The job's end, and the modules that it has imported."""
    said, traced = os.memfd_create("output"), os.memfd_create("traced")
    phase = mmap.mmap(-1, PHASE_BYTES + 8)
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os.dup2(said, 1)
        os.dup2(said, 2)
        try:
            _run(job, phase, traced)
        finally:
            os._exit(98)
    status, when, hung, reached = None, "", False, None
    while status is None:
        time.sleep(0.001)
        passed = time.monotonic() - began
        if job.kill is not None and not when:
            point, later, number = job.kill
            if reached is None and int.from_bytes(phase[PHASE_BYTES:], "little") >= point:
                reached = passed
            if reached is not None and passed >= reached + later:
                when = _read_phase(phase)
                os.kill(child, number)
        if passed > LIMIT and not hung:
            hung = True
            os.kill(child, signal.SIGKILL)
        found, ended = os.waitpid(child, os.WNOHANG)
        status = ended if found else None
    passed = time.monotonic() - began
    output, points = _contents(said), {"seen": [], "modules": []}
    with suppress(ValueError):  # nothing, or a part, of a child that was killed
        points = json.loads(_contents(traced))
    code = HUNG if hung else os.waitstatus_to_exitcode(status)
    return Ended(code, when or _read_phase(phase), passed, output, points["seen"]), points["modules"]


def _contents(handle: int) -> str:
    os.lseek(handle, 0, os.SEEK_SET)
    with os.fdopen(handle, "rb") as file:
        return file.read().decode(errors="replace")


def _read_phase(phase: mmap.mmap) -> str:
    return phase[:PHASE_BYTES].rstrip(b"\0").decode()


def _run(job: Job, phase: mmap.mmap, traced: int) -> None:
    """In the child: never returns."""
    from faults.points import Points

    from lorakit.cli import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    code: Any = 1
    at, kind = job.point or (None, "die")
    points = Points(Path(job.directory), at, kind, partial(_count, phase))
    try:
        _shorten()
        _tell_phases(phase)
        points.install()
        main(job.arguments)
        code = 0
    except SystemExit as ended:
        code = ended.code
    except KeyboardInterrupt:  # after the command's own end
        code = 128 + signal.SIGINT
    except BaseException as error:
        print(f"escaped: {error!r}")
        code = 99
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        sys.stdout.flush()
        sys.stderr.flush()
        with os.fdopen(traced, "w") as file:
            json.dump({"seen": points.seen, "modules": list(sys.modules)}, file)
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _count(phase: mmap.mmap, points: int) -> None:
    phase[PHASE_BYTES:] = points.to_bytes(8, "little")


def _shorten() -> None:
    """Leave out what takes time and writes nothing."""
    from matplotlib.figure import Figure

    from lorakit.forecast import Predictor

    def savefig(self: Figure, file: Any, **options: Any) -> None:
        file.write("<svg></svg>" if options["format"] == "svg" else b"picture")

    Figure.savefig = savefig  # type: ignore[method-assign, assignment]
    Predictor.bytes = lambda self, batches: None  # type: ignore[method-assign]


def _tell_phases(phase: mmap.mmap) -> None:
    from lorakit.training import run

    def tell(name: str) -> None:
        phase[:PHASE_BYTES] = name.encode().ljust(PHASE_BYTES, b"\0")

    def told(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*given: Any, **named: Any) -> Any:
            before = _read_phase(phase)
            tell(name)
            try:
                return real(*given, **named)
            finally:
                tell(before)

        return wrapped

    tell("start")
    phases = {
        "set_up": "set up", "begin": "begin", "_steps": "train", "_evaluate": "evaluate", "save_checkpoint": "save",
        "_finish": "publish", "write_report": "report",
    }  # fmt: skip
    for name, words in phases.items():
        setattr(run, name, told(words, getattr(run, name)))


if __name__ == "__main__":
    _serve()

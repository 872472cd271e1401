"""The parent's side: contenders in processes of their own, which take turns."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

SCRIPTS = Path(__file__).resolve().parents[1]


class WorkerFailed(Exception):
    """A process has ended before it answered."""


class Worker:
    """A process that does a job and answers in lines of JSON; see `benchmarks.worker` for what they say.

    Args:
        job: What it is to do: `kind`, and what that kind needs.
        environment: Variables beside this process's.
    """

    def __init__(self, job: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> None:
        self.job = dict(job)
        paths = [str(SCRIPTS), str(SCRIPTS.parent), os.environ.get("PYTHONPATH", "")]
        variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **(environment or {})}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", json.dumps(self.job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=variables,
            text=True,
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def answer(self) -> dict[str, Any]:
        """The next line that it sends.

        Raises:
            WorkerFailed: It has ended instead; says with which last words.
        """
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            read: dict[str, Any] = json.loads(line)
            return read
        self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        raise WorkerFailed(f"{self.job}: exit {self._process.returncode}: " + "\n".join(said[-12:]))

    def ask(self, **order: Any) -> dict[str, Any]:
        """Send an order and wait for the answer.

        Raises:
            WorkerFailed: It has ended instead.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: `answer` says why
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """End the process: it leaves when nobody will order anything any more."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()


def once(job: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The answer of a job that has only one."""
    with Worker(job, environment) as worker:
        return worker.answer()


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """Another one begins each round, so that none always stands in the same place.

    Args:
        names: Of the contenders.
        turn: The round, from 0.
    """
    first = turn % len(names)
    return [*names[first:], *names[:first]]

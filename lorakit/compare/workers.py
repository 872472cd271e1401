"""The runs of a comparison, each in a process of its own: memory is counted per process, and a crash is that run's."""

import json
import os
import re
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit.compare.settings import slug
from lorakit.journal import read_history
from lorakit.launch import killed_by, lorakit_command
from lorakit.progress import Bar, Progress
from lorakit.recipe import Recipe, dump
from lorakit.runtime import disk_errors, write_atomic
from lorakit.training.interrupt import Interrupted, StopSignals

_SECONDS_BETWEEN_LOOKS = 0.2
_LOOKS_BETWEEN_TELLINGS = 5
_OF_TOTAL = re.compile(r"\b(\d+)(?:/| of )(\d+)\b")


@dataclass(frozen=True)
class Job:
    """One run.

    Args:
        name: Of the method.
        seed: Of the run.
        recipe: Resolved.
        folder: Of the comparison.
    """

    name: str
    seed: int
    recipe: Recipe
    folder: Path

    @property
    def label(self) -> str:
        """In the names of its files."""
        return f"{slug(self.name)}-seed{self.seed}"

    @property
    def file(self) -> Path:
        """Its recipe."""
        return self.folder / "recipes" / f"{self.label}.yaml"

    @property
    def run(self) -> Path:
        """Its run directory."""
        return self.folder / "runs" / self.label

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.folder / "logs" / f"{self.label}.log"

    def report(self) -> dict[str, Any] | None:
        """report.json of a finished run."""
        try:
            found: dict[str, Any] = json.loads((self.run / "report.json").read_text())
        except (OSError, ValueError):
            return None
        return found if found.get("status") == "complete" else None

    def done(self) -> bool:
        """Whether this very recipe has been run to its end."""
        return self.same() and self.report() is not None

    def same(self) -> bool:
        """Whether the recipe that is there, if any, is this one."""
        return not self.file.is_file() or self.file.read_text() == dump(self.recipe)

    def command(self) -> list[str]:
        """What is started."""
        return lorakit_command(["train", str(self.file), "--out", str(self.run), "--resume"])

    def progress(self) -> str:
        """`120/300` steps; the total is unknown until the run has said it."""
        step = max((line["step"] for line in read_history(self.run) if line["kind"] == "log"), default=0)
        text = self.log.read_text(errors="replace") if self.log.is_file() else ""
        said = [line for line in text.splitlines() if line.startswith(("train ", "step ", "stopped ", "resuming "))]
        totals = [match[2] for line in said if (match := _OF_TOTAL.search(line))]
        return f"{step}/{totals[-1]}" if totals else str(step)

    def reason(self, code: int) -> str:
        """Why it failed: the last error that it printed, else what ended it."""
        text = self.log.read_text(errors="replace") if self.log.is_file() else ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        if code < 0:
            return killed_by(-code)
        return (errors or lines or [f"exit code {code}"])[-1]


def devices() -> Sequence[str | None]:
    """One entry per worker: the values of CUDA_VISIBLE_DEVICES; a single None without a choice of GPUs."""
    import torch

    if not torch.cuda.is_available() or torch.cuda.device_count() < 2:
        return [None]
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in given.split(",")] if given else map(str, range(torch.cuda.device_count()))
    return [*names][: torch.cuda.device_count()]


@dataclass
class _Working:
    """A process at work on a job, on one of the devices."""

    job: Job
    device: str | None
    process: "subprocess.Popen[bytes]"


def run_all(jobs: Sequence[Job], progress: Progress, free: Iterable[str | None] | None = None) -> dict[str, str]:
    """Do the jobs that have not been done, one at a time on each device.

    Args:
        jobs: With labels of their own.
        progress: For the person.
        free: See `devices`; None: what this machine has.

    Returns:
        Label → reason, of those that failed.

    Raises:
        Interrupted: SIGINT or SIGTERM came; the runs were told, and have saved.
        LorakitError: The disk refuses.
    """
    waiting = [job for job in jobs if not job.done()]
    if len(waiting) < len(jobs):
        progress.say(f"{len(jobs) - len(waiting)} of {len(jobs)} runs were finished before")
    for job in jobs:
        write_atomic(job.file, dump(job.recipe))
    if not waiting:
        return {}
    pool = list(devices() if free is None else free)
    working: list[_Working] = []
    failed: dict[str, str] = {}
    looks = 0
    with StopSignals() as signals, progress.bar("compare", len(jobs), "runs", len(jobs) - len(waiting)) as bar:
        try:
            while waiting or working:
                while waiting and pool and signals.received is None:
                    working.append(_start(waiting.pop(0), pool.pop(0)))
                    _tell(bar, working)
                if signals.received is not None:
                    _stop(working, signals.received)
                time.sleep(_SECONDS_BETWEEN_LOOKS)
                looks += 1
                for ended in [one for one in working if one.process.poll() is not None]:
                    working.remove(ended)
                    pool.append(ended.device)
                    if ended.process.returncode or ended.job.report() is None:
                        failed[ended.job.label] = ended.job.reason(ended.process.returncode)
                        progress.say(f"{ended.job.label} failed: {failed[ended.job.label]}")
                    bar.advance(1)
                if working and looks % _LOOKS_BETWEEN_TELLINGS == 0:
                    _tell(bar, working)
        finally:  # a second signal, or a mistake of ours: no process stays behind
            for left in working:
                left.process.kill()
                left.process.wait()
    return failed


def _start(job: Job, device: str | None) -> _Working:
    environment = dict(os.environ) if device is None else {**os.environ, "CUDA_VISIBLE_DEVICES": device}
    with disk_errors(job.log):
        job.log.parent.mkdir(parents=True, exist_ok=True)
        log = job.log.open("wb")
    with log:  # a session of its own: Ctrl-C is passed on by us alone, once
        process = subprocess.Popen(
            job.command(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    return _Working(job, device, process)


def _stop(working: list[_Working], number: int) -> None:
    """Pass the signal on, wait until all have saved, and leave.

    Raises:
        Interrupted: Always.
    """
    for one in working:
        one.process.send_signal(number)
    for one in working:
        one.process.wait()
    working.clear()
    raise Interrupted(number, "stopped; finished runs are kept, the others saved. The same command continues")


def _tell(bar: Bar, working: Sequence[_Working]) -> None:
    now = ", ".join(f"{one.job.label} step {one.job.progress()}" for one in working)
    bar.advance(0, now=now)

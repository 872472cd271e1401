"""The processes that do trials: one after the other in each, or each in one of its own."""

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from select import select

from lorakit.errors import RecipeError
from lorakit.launch import lorakit_command, processors
from lorakit.progress import Bar, Progress
from lorakit.recipe import dump
from lorakit.runtime import disk_errors, write_atomic
from lorakit.training.interrupt import Interrupted, StopSignals
from lorakit.trials.jobs import Job

_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_BETWEEN_TELLINGS = 1.0


def devices(at_once: int | None = None) -> list[str | None]:
    """One entry per worker: the values of CUDA_VISIBLE_DEVICES; None where there is no choice of GPUs.

    Args:
        at_once: Workers; None: one per GPU, one without GPUs.

    Raises:
        RecipeError: There are fewer GPUs: runs that share one would take each other's memory.
    """
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if there and at_once is not None and at_once > there:
        gpus = "is 1 GPU" if there == 1 else f"are {there} GPUs"
        raise RecipeError(f"--jobs: {at_once} runs at once, but there {gpus}, each for one run; give {there} or fewer")
    if there < 2:
        return [None] * (at_once or 1)
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in given.split(",")] if given else [*map(str, range(there))]
    return [*names[: at_once or there]]


def run_all(
    jobs: Sequence[Job], progress: Progress, *, label: str, alone: bool = False, at_once: int | None = None
) -> dict[str, str]:
    """Do the jobs that have not been done, one at a time on each device.

    Runs that follow one another in a process share its imports and the base. A process whose run has failed is not
    used again: what ended the run may be in its memory.

    Args:
        jobs: With labels of their own.
        progress: For the person.
        label: Of the bar.
        alone: Each in a process of its own, whose memory is then the run's.
        at_once: See `devices`.

    Returns:
        Label → reason, of those that failed.

    Raises:
        Interrupted: SIGINT or SIGTERM came; the runs were told, and have saved.
        LorakitError: The disk refuses, or `at_once` is more than there are GPUs.
    """
    places = [_Place(device) for device in devices(at_once)]
    waiting = [job for job in jobs if not job.done()]
    if len(waiting) < len(jobs):
        progress.say(f"{len(jobs) - len(waiting)} of {len(jobs)} runs were finished before")
    for job in jobs:
        write_atomic(job.file, dump(job.recipe))
    if not waiting:
        return {}
    command = lorakit_command(["worker"] if alone else ["worker", "--keep-base"])
    environment = _environment(len(places))
    failed: dict[str, str] = {}
    told = 0.0
    with StopSignals() as signals, progress.bar(label, len(jobs), "runs", len(jobs) - len(waiting)) as bar:
        try:
            while waiting or any(place.job for place in places):
                if signals.received is not None:
                    _stop(places, signals.received)
                _begin(places, waiting, command, environment)
                for place, code in _ended(places):
                    job = place.end(alone or code != 0)
                    if code or job.report() is None:
                        failed[job.label] = job.reason(code)
                        progress.say(f"{job.label} failed: {failed[job.label]}")
                    bar.advance(1)
                if time.monotonic() - told > _SECONDS_BETWEEN_TELLINGS:
                    told = time.monotonic()
                    _tell(bar, places)
            for place in places:
                place.close()
        finally:  # a second signal, or a mistake of ours: no process stays behind
            for place in places:
                place.kill()
    return failed


@dataclass
class _Place:
    """Room for one run at a time: a device, the process that does the runs there, and the one it is at."""

    device: str | None
    process: "subprocess.Popen[bytes] | None" = None
    job: Job | None = None

    def begin(self, job: Job, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Have a run done, by the process of before or by a new one."""
        with disk_errors(job.log):
            job.log.parent.mkdir(parents=True, exist_ok=True)
            log = job.log.open("wb")
        with log:
            if self.process is None:
                device = {} if self.device is None else {"CUDA_VISIBLE_DEVICES": self.device}
                self.process = subprocess.Popen(
                    list(command),
                    bufsize=0,  # `select` sees what a buffer would hold back
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env={**environment, **device},
                    start_new_session=True,  # Ctrl-C is passed on by us alone, once
                )
        assert self.process.stdin is not None
        places = {"recipe": str(job.file), "out": str(job.run), "log": str(job.log)}
        self.job = job
        with suppress(BrokenPipeError):  # it has died, and `_ended` will see it
            self.process.stdin.write(json.dumps(places).encode() + b"\n")

    def end(self, last: bool) -> Job:
        """Have nothing to do; the last run of a process ends it."""
        assert self.job is not None
        job, self.job = self.job, None
        if last:
            self.close()
        return job

    def close(self) -> None:
        """Let the process come to its end."""
        if self.process is not None:
            assert self.process.stdin is not None and self.process.stdout is not None
            self.process.stdin.close()
            self.process.wait()
            self.process.stdout.close()
            self.process = None

    def kill(self) -> None:
        """End the process, if there is one."""
        if self.process is not None:
            self.process.kill()
            self.close()


def _begin(
    places: Sequence[_Place], waiting: list[Job], command: Sequence[str], environment: Mapping[str, str]
) -> None:
    for place in places:
        if waiting and place.job is None:
            place.begin(waiting.pop(0), command, environment)


def _environment(count: int) -> dict[str, str]:
    """Threads so that the workers together have as many as there are cores; what the person has set stays."""
    threads = {"OMP_NUM_THREADS": str(max(1, processors() // count))} if count > 1 else {}
    return {**threads, **os.environ}


def _ended(places: Sequence[_Place]) -> list[tuple[_Place, int]]:
    """Wait a moment; what has come to its end, with exit codes: negative where a process was killed."""
    streams = {place.process.stdout: place for place in places if place.job and place.process and place.process.stdout}
    answered, _, _ = select([*streams], [], [], _SECONDS_BETWEEN_LOOKS)
    found = []
    for stream, place in streams.items():
        process = place.process
        assert process is not None
        line = stream.readline() if stream in answered else b""
        if line:
            found.append((place, int(json.loads(line)["code"])))
        elif stream in answered or process.poll() is not None:  # a fork of it may still hold the pipe
            process.wait()
            found.append((place, process.returncode or 1))  # without an answer it has not done what it should
            place.close()
    return found


def _stop(places: Sequence[_Place], number: int) -> None:
    """Pass the signal on, wait until all have saved, and leave.

    Raises:
        Interrupted: Always.
    """
    for place in places:
        if place.job and place.process:
            place.process.send_signal(number)
    for place in places:
        place.close()
    raise Interrupted(number, "stopped; finished runs are kept, the others saved. The same command continues")


def _tell(bar: Bar, places: Sequence[_Place]) -> None:
    now = ", ".join(f"{place.job.label} step {place.job.progress()}" for place in places if place.job)
    bar.advance(0, now=now)

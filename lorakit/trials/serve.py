"""A process that does runs one after the other: `lorakit worker`, which `run_all` starts.

A job is a line of JSON on standard input, {"recipe", "out", "log"}. The answer, {"code"} as `lorakit train` would exit
with, is a line on what was standard output when the process began; all that a run prints goes into its log. The end of
the input ends the process, also where the parent was killed.
"""

import gc
import json
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from lorakit.kept import sharing
from lorakit.runtime import forget_peak


def serve(train: Callable[[list[str]], int], keep_base: bool) -> None:
    """Do what comes, until nothing more does.

    Args:
        train: Runs a command line, prints what there is to print, and returns its exit code.
        keep_base: The next run with the same base has it from memory.
    """
    answers, given = os.dup(1), os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # a program that a run starts must not read the jobs
    os.close(nothing)
    os.dup2(2, 1)
    with os.fdopen(given, encoding="utf-8") as jobs, sharing() if keep_base else nullcontext():
        first = True
        for line in jobs:
            job = json.loads(line)
            if not first:
                _tidy_up()
            first = False
            _print_to(Path(job["log"]))
            code = train(["train", job["recipe"], "--out", job["out"], "--resume"])
            sys.stdout.flush()
            os.write(answers, json.dumps({"code": code}).encode() + b"\n")


def _print_to(log: Path) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.close(handle)


def _tidy_up() -> None:
    """Let go of the run that is over: its model is part of cycles, and the GPU's memory is cached."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    forget_peak()

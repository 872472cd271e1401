"""A worker process: what comes in, what goes out, and where a run's own words go."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import recipe_file, run, same_result

from lorakit.recipe import load

SHAM = """
import os, subprocess, sys, time
from lorakit.trials.serve import serve

def train(words):
    print("printed")
    print("complained", file=sys.stderr)
    os.write(1, b"written\\n")
    subprocess.run(["sh", "-c", "echo told; echo read: $(cat)"])
    print(*words)
    return len(words[1])

serve(train, keep_base=True)
"""


def send(process: "subprocess.Popen[str]", *jobs: tuple[Path, Path, Path]) -> tuple[str, str]:
    """All jobs at once, and the end; returns what came out."""
    lines = [json.dumps({"recipe": str(recipe), "out": str(out), "log": str(log)}) for recipe, out, log in jobs]
    return process.communicate("".join(f"{line}\n" for line in lines), timeout=300)


def start(*words: str) -> "subprocess.Popen[str]":
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *words], stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def test_what_a_run_prints_goes_into_its_log_and_nowhere_else(tmp_path: Path) -> None:
    process = start("-c", SHAM)
    first, second = tmp_path / "first.log", tmp_path / "second.log"
    first.write_text("before\n")
    out, err = send(process, (Path("r"), tmp_path, first), (Path("rec"), tmp_path / "o", second))
    assert (out, err, process.returncode) == ('{"code": 1}\n{"code": 3}\n', "", 0)
    said = {"printed", "complained", "written", "told", "read:", f"train r --out {tmp_path} --resume", "before"}
    assert set(first.read_text().splitlines()) == said
    assert set(second.read_text().splitlines()) == {line.replace("train r", "train rec") for line in said} - {
        "before", f"train rec --out {tmp_path} --resume"
    } | {f"train rec --out {tmp_path / 'o'} --resume"}  # fmt: skip


def test_the_end_of_the_input_ends_it(tmp_path: Path) -> None:
    process = start("-c", SHAM)
    assert process.communicate("", timeout=60) == ("", "")
    assert process.returncode == 0
    process = start("-c", SHAM.replace("subprocess.run", "os.kill(os.getpid(), 15) or (lambda _: None)"))
    out, _ = send(process, (Path("r"), tmp_path, tmp_path / "log"))
    assert (out, process.returncode) == ("", -signal.SIGTERM), "between runs nothing is to be saved"


@pytest.mark.slow
def test_runs_in_one_process_are_what_they_are_alone(tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    """The real command; a run that fails says so in its log, as `lorakit train` does, and the next goes on."""
    methods: dict[str, dict[str, Any]] = {
        "full": {"name": "full"},
        "wide": {"name": "lora", "rank": 1000},
        "lora": {"name": "lora", "rank": 2, "dropout": 0.1},
    }
    absent = dict.fromkeys(("rank", "alpha"), "absent")
    recipes = {
        name: recipe_file(tmp_path / name, tiny("bert"), method=absent | method) for name, method in methods.items()
    }
    process = start("-m", "lorakit", "worker", "--keep-base")
    jobs = [(file, tmp_path / name / "shared", tmp_path / f"{name}.log") for name, file in recipes.items()]
    out, err = send(process, *jobs)
    assert (out, err) == ('{"code": 0}\n{"code": 2}\n{"code": 0}\n', "")
    assert process.returncode == 0
    log = (tmp_path / "wide.log").read_text().splitlines()
    assert log[-1].startswith("error: method.rank: 1000 exceeds the 64x64 matrix")
    for name in ("lora", "full"):
        run(load(recipes[name]), tmp_path / name / "alone")
        same_result(tmp_path / name / "alone", tmp_path / name / "shared")
        assert "report: " in (tmp_path / f"{name}.log").read_text()

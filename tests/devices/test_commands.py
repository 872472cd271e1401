"""`lorakit train --processes 2` as a person uses it: stopped, killed, continued; and what is refused."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_runs import history, recipe_file, same_result
from world_runs import train_in_world

from lorakit.cli import main
from lorakit.errors import RecipeError
from lorakit.launch import lorakit_command
from lorakit.recipe import load
from lorakit.training import setup
from lorakit.training.parallel import check_parallel
from lorakit.world import World

Tiny = Callable[[str], Path]
SECONDS = 120.0


def started(recipe: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    command = lorakit_command(["train", str(recipe), "--out", str(out), "--processes", "2", *options])
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(process: subprocess.Popen[str], out: Path, step: int) -> None:
    """Until a run has a checkpoint of this step, or a later one."""
    until = time.monotonic() + SECONDS
    while not any(int(path.name[5:]) >= step for path in out.glob("checkpoints/step-*")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.005)


def end(process: subprocess.Popen[str], number: signal.Signals) -> str:
    os.kill(process.pid, number)
    said, _ = process.communicate(timeout=SECONDS)
    return said


@pytest.mark.slow
def test_stopped_killed_and_continued(tmp_path: Path, tiny: Tiny) -> None:
    train = {"micro_batch_size": 2, "epochs": 10, "save_every": 1, "eval_every": 7}
    recipe = recipe_file(tmp_path, tiny("gpt2"), "completion", method={"dropout": 0.1}, train=train)
    out = tmp_path / "run"
    process = started(recipe, out)
    wait_for(process, out, 2)
    said = end(process, signal.SIGINT)
    assert process.returncode == 130, said
    stopped = [line["step"] for line in history(out, "save")][-1]
    assert f"stopped after step {stopped}" in said
    assert "--resume" in said
    assert "Traceback" not in said
    assert "Warning" not in said
    process = started(recipe, out, "--resume")
    wait_for(process, out, stopped + 3)
    said = end(process, signal.SIGKILL)  # of the parent: the workers end with it, and the lock is free
    assert process.returncode == -signal.SIGKILL
    assert f"resuming after step {stopped} of 30" in said
    process = started(recipe, out, "--resume")
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said
    train_in_world(2, [(recipe, tmp_path / "whole")])
    same_result(tmp_path / "whole", out)


@pytest.mark.parametrize(
    ("options", "processes", "words"),
    [
        ("--smoke --processes 2", 1, "--smoke runs in one process"),
        ("--smoke", 2, "--smoke runs in one process"),
        ("--processes 2", 2, "started by a launcher already (WORLD_SIZE is set)"),
    ],
)
def test_what_does_not_go_together_is_refused(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, options: str, processes: int, words: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    command = ["train", str(recipe_file(tmp_path, tiny("bert"))), "--out", str(tmp_path / "run"), *options.split()]
    said = subprocess.run(lorakit_command(command), stdout=-1, stderr=-1, text=True, check=False)
    assert said.returncode == 2
    assert words in said.stderr
    assert not (tmp_path / "run").exists()


def test_no_scaler_in_parts(tmp_path: Path, tiny: Tiny) -> None:
    """float16's scaler would look at each part of the gradient alone."""
    recipe = load(recipe_file(tmp_path, tiny("bert"), train={"precision": "float16", "parallel": "fsdp"}))
    with pytest.raises(RecipeError, match="fsdp does not go with float16"):
        check_parallel(recipe, "float16", World(0, 2))
    check_parallel(recipe, "float16", World())
    check_parallel(recipe, "bfloat16", World(0, 2))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has more."),
            "out of memory: CUDA",
        ),
        (MemoryError("Unable to allocate 2.00 GiB"), "out of memory: Unable to allocate"),
    ],
)
def test_memory_that_runs_out_anywhere_is_told_in_one_line(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    error: Exception, words: str,
) -> None:  # fmt: skip
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(setup, "_trainee", fails)
    with pytest.raises(SystemExit) as ended:
        main(["train", str(recipe_file(tmp_path, tiny("bert"))), "--out", str(tmp_path / "run")])
    assert ended.value.code == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"error: {words}")
    assert "micro_batch_size" in said[0]

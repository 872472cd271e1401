"""`lorakit check resume`: what it runs, and that it can find a difference."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import recipe_file, run, small_recipe

from lorakit.check import Finding, compare_runs, shortened
from lorakit.checkpoint import read_adapter, save_adapter
from lorakit.cli import main
from lorakit.data.batches import steps_per_epoch

Tiny = Callable[[str], Path]


def different(found: list[Finding]) -> dict[str, str]:
    return {one.what: one.difference for one in found if one.difference is not None}


@pytest.mark.slow
@pytest.mark.parametrize(("base", "kind"), [("bert", "classification"), ("llama", "completion")])
def test_the_command_proves_it_and_keeps_the_runs(
    tmp_path: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str], base: str, kind: str
) -> None:
    file = recipe_file(tmp_path, tiny(base), kind, method={"dropout": 0.1})
    with pytest.raises(SystemExit) as done:
        main(["check", "resume", str(file), "--steps", "2", "--out", str(tmp_path / "kept")])
    out, err = capsys.readouterr()
    assert not done.value.code, err
    assert "exact: 4 steps = 3 steps, SIGKILL, and the rest from step 2" in out
    assert out.count("the same") == 4
    assert different(compare_runs(tmp_path / "kept/whole", tmp_path / "kept/broken")) == {}
    with pytest.raises(SystemExit) as done:
        main(["check", "resume", str(file), "--out", str(tmp_path / "kept")])
    assert done.value.code == 2


def test_what_is_trained(tmp_path: Path, tiny: Tiny) -> None:
    small = shortened(small_recipe(tmp_path, tiny("bert"), rows=100, train={"batch_size": 4}), 5)
    assert (small.train.steps, small.train.epochs, small.train.save_every) == (10, None, 5)
    rows = small.task.limit["train"]
    assert 6 < steps_per_epoch(rows, 4) < 10, "the epoch ends behind the kill and before the end"
    assert small.task.limit["validation"] == 32


@pytest.fixture
def pair(tmp_path: Path, tiny: Tiny) -> tuple[Path, Path]:
    """A run and its copy."""
    run(small_recipe(tmp_path, tiny("bert")), tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    return tmp_path / "one", tmp_path / "other"


def test_equal_runs_and_times(pair: tuple[Path, Path]) -> None:
    file = pair[1] / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps({**line, "seconds": 99.0}) + "\n" for line in lines))
    assert different(compare_runs(*pair)) == {}


def test_every_difference_is_found(pair: tuple[Path, Path]) -> None:
    one, other = pair
    state, provenance = read_adapter(other / "adapter.safetensors")
    name = next(name for name in state if name.endswith(".B"))
    state[name] = torch.nextafter(state[name], torch.tensor(9.0))
    save_adapter(other / "adapter.safetensors", state, provenance)
    report = json.loads((other / "report.json").read_text())
    report["metrics"]["validation"]["accuracy"] += 0.1
    (other / "report.json").write_text(json.dumps(report))
    history = (other / "metrics.jsonl").read_text().splitlines(keepends=True)
    (other / "metrics.jsonl").write_text("".join(history[:-1]))
    with (other / "predictions/validation.jsonl").open("a") as file:
        file.write("\n")
    found = different(compare_runs(one, other))
    assert found.keys() == {"adapter", "metrics", "history", "predictions"}
    assert f"1 of {len(load_file(one / 'adapter.safetensors'))} tensors differ" in found["adapter"]
    assert found["predictions"] == "predictions/validation.jsonl differs"
    assert found["history"].endswith("only one of the runs has it")


@pytest.mark.parametrize("steps", ["0", "1"])
def test_too_few_steps(tmp_path: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str], steps: str) -> None:
    with pytest.raises(SystemExit) as done:
        main(["check", "resume", str(recipe_file(tmp_path, tiny("bert"))), "--steps", steps])
    assert done.value.code == 2
    assert "--steps: got" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_fails_is_told_with_its_reason(
    tmp_path: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    file = recipe_file(tmp_path, tiny("bert"))
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(SystemExit) as done:
        main(["check", "resume", str(file)])
    assert done.value.code == 1
    assert "10 steps in one go: exit code 1: error:" in capsys.readouterr().err

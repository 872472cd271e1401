"""Runs that go on with as many processes as before, or with more or fewer."""

from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import history, recipe_file, run, same_result
from world_runs import die_in_world, recipe_of, same, train_in_world

from lorakit.recipe import load

Tiny = Callable[[str], Path]
SAVES = {"save_every": 2, "eval_every": 3}


@pytest.mark.parametrize(
    ("size", "parallel"),
    [(2, "ddp"), pytest.param(2, "fsdp", marks=pytest.mark.slow), pytest.param(4, "ddp", marks=pytest.mark.slow)],
)
def test_a_killed_worker_and_the_same_bytes_after(tmp_path: Path, tiny: Tiny, size: int, parallel: str) -> None:
    """Dropout on: the same number of processes draws the same masks."""
    train = {"micro_batch_size": 2, "parallel": parallel, **SAVES}
    file = recipe_file(tmp_path, tiny("gpt2"), "completion", method={"dropout": 0.1}, train=train)
    said = die_in_world(size, file, tmp_path / "run", 5, [1])
    assert said[1] == "exit code -9"
    assert "Connection" in said[0], said
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["step-3", "step-4"]
    train_in_world(size, [(file, tmp_path / "run")], resume=True)
    train_in_world(size, [(file, tmp_path / "whole")])
    same_result(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize(
    ("before", "after", "ways"),
    [
        (2, 1, ("ddp", "ddp")),
        (1, 2, ("ddp", "fsdp")),
        pytest.param(2, 2, ("fsdp", "ddp"), marks=pytest.mark.slow),
        pytest.param(2, 1, ("fsdp", "fsdp"), marks=pytest.mark.slow),
    ],
)
def test_another_number_of_processes_goes_on(
    tmp_path: Path, tiny: Tiny, before: int, after: int, ways: tuple[str, str]
) -> None:
    file = recipe_of(tmp_path, tiny, "completion", ways[0], train=SAVES)
    run(load(file), tmp_path / "whole")
    die_in_world(before, file, tmp_path / "run", 4, range(before))
    assert (tmp_path / "run/checkpoints/step-4").is_dir()
    file = recipe_of(tmp_path, tiny, "completion", ways[1], train=SAVES)
    train_in_world(after, [(file, tmp_path / "run")], resume=True)
    same(tmp_path / "whole", tmp_path / "run")
    real = [ways[0] if before > 1 else "ddp", ways[1] if after > 1 else "ddp"]
    plan = {
        "kind": "plan",
        "step": 4,
        "rows": 2,
        "tokens": None,
        "overhead": None,
        "processes": after,
        "parallel": real[1],
    }
    assert history(tmp_path / "run", "plan") == [plan]

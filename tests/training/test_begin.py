"""What may change between a run and its continuation, and what it says about it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import history, run, small_recipe

from lorakit.data.batches import Limit
from lorakit.errors import CheckpointError, LorakitError
from lorakit.journal import read_history
from lorakit.progress import Plain
from lorakit.recipe import dump
from lorakit.training import run as run_module
from lorakit.training.begin import check_same, with_revision
from lorakit.training.run import train

Tiny = Callable[[str], Path]


@pytest.fixture
def finished(tmp_path: Path, tiny: Tiny) -> Path:
    """A run of 6 steps over 2 epochs."""
    run(small_recipe(tmp_path, tiny("bert")), tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    "sections",
    [
        {"paper": {"source": "Table 2", "metric": "accuracy", "value": 1.0}},
        {"methods": {"full": {"lr": 1e-5}}},
        {"train": {"save_every": 1}},
    ],
)
def test_keys_that_cannot_change_the_result(
    tmp_path: Path, tiny: Tiny, finished: Path, sections: dict[str, Any]
) -> None:
    before = (finished / "adapter.safetensors").read_bytes()
    run(small_recipe(tmp_path, tiny("bert"), **sections), finished, resume=True)
    assert (finished / "adapter.safetensors").read_bytes() == before


def test_data_may_move_but_not_change(tmp_path: Path, tiny: Tiny, finished: Path) -> None:
    shutil.copy(tmp_path / "train.jsonl", tmp_path / "moved.jsonl")
    moved = small_recipe(tmp_path, tiny("bert"), task={"train": str(tmp_path / "moved.jsonl")})
    run(moved, finished, resume=True)
    lines = (tmp_path / "moved.jsonl").read_text().splitlines()
    (tmp_path / "moved.jsonl").write_text("\n".join([*lines[1:], lines[0]]) + "\n")
    with pytest.raises(CheckpointError, match="task: the rows of train, or the token ids"):
        run(moved, finished, resume=True)


@pytest.mark.parametrize("key", ["label", "text"])
def test_a_changed_row_of_the_validation_split_is_found(tmp_path: Path, tiny: Tiny, finished: Path, key: str) -> None:
    file = tmp_path / "validation.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[4][key] = {"label": {"good": "bad", "bad": "good"}.get(rows[4]["label"]), "text": "other words"}[key]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = small_recipe(tmp_path / "new", tiny("bert"), task={"train": str(tmp_path / "train.jsonl")})
    changed = recipe.model_copy(update={"task": recipe.task.model_copy(update={"validation": str(file)})})
    with pytest.raises(CheckpointError, match="rows of validation"):
        run(changed, finished, resume=True)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_longer_run_says_what_it_changes(
    tmp_path: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str], schedule: str
) -> None:
    short = small_recipe(tmp_path, tiny("bert"), train={"schedule": schedule})
    long = small_recipe(tmp_path, tiny("bert"), train={"schedule": schedule, "epochs": 4})
    run(short, tmp_path / "run")
    train(long, tmp_path / "run", Plain(), resume=True)
    said = capsys.readouterr().out
    rates = [line["lr"] for line in read_history(tmp_path / "run") if line["kind"] == "log"]
    assert len(rates) == 12
    assert rates[6] == pytest.approx(0.005), "half-way along the long schedule"
    last = rate_of(schedule, 5, 6)
    assert f"the run was 6 steps long and is 12 now: step 7 learns at 0.005, after {last:.3g} at step 6" in said
    assert "the result is not that of one" in said


def rate_of(schedule: str, step: int, total: int) -> float:
    """Without a warmup."""
    from lorakit.schedule import Train
    from lorakit.training.optim import rate

    return rate(Train.model_validate({"epochs": 1, "batch_size": 1, "lr": 0.01, "schedule": schedule}), step, 0, total)


def test_a_longer_run_at_a_constant_rate_is_that_of_the_start(
    tmp_path: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    constant = {"schedule": "constant", "select": "last"}
    run(small_recipe(tmp_path, tiny("bert"), train=constant), tmp_path / "run")
    long = small_recipe(tmp_path, tiny("bert"), train={**constant, "epochs": 3})
    train(long, tmp_path / "run", Plain(), resume=True)
    assert "no learning rate of before changes" in capsys.readouterr().out
    run(long, tmp_path / "whole")
    for name in ("adapter.safetensors", "recipe.yaml"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_shorter_run_is_refused(tmp_path: Path, tiny: Tiny, finished: Path) -> None:
    with pytest.raises(CheckpointError, match="train.epochs was 2 and is 1 now"):
        run(small_recipe(tmp_path, tiny("bert"), train={"epochs": 1}), finished, resume=True)


def test_steps_may_grow_and_not_replace_epochs(tmp_path: Path, tiny: Tiny) -> None:
    length: dict[str, Any] = {"epochs": None, "steps": 2}
    run(small_recipe(tmp_path, tiny("bert"), train=length), tmp_path / "run")
    run(small_recipe(tmp_path, tiny("bert"), train={**length, "steps": 5}), tmp_path / "run", resume=True)
    assert [line["step"] for line in read_history(tmp_path / "run") if line["kind"] == "log"] == [1, 2, 3, 4, 5]
    with pytest.raises(LorakitError, match="train.epochs was null and is 9 now"):
        run(small_recipe(tmp_path, tiny("bert"), train={"epochs": 9}), tmp_path / "run", resume=True)


def test_every_change_names_the_file_and_both_values(tmp_path: Path, tiny: Tiny, finished: Path) -> None:
    changed = small_recipe(tmp_path, tiny("bert"), train={"lr": 0.5, "epochs": 3}, method={"rank": 3})
    with pytest.raises(CheckpointError) as raised:
        run(changed, finished, resume=True)
    assert raised.value.problems == (
        f"{finished}/recipe.yaml: method.rank was 2 and is 3 now: --resume needs the run's own recipe",
        f"{finished}/recipe.yaml: train.lr was 0.01 and is 0.5 now: --resume needs the run's own recipe",
    )


def test_a_smaller_micro_batch_may_follow_where_memory_ran_out(
    tmp_path: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    run(small_recipe(tmp_path, tiny("bert"), train={"micro_batch_size": 4}), tmp_path / "run")
    smaller = small_recipe(tmp_path, tiny("bert"), train={"micro_batch_size": 2, "epochs": 3})
    made = train(smaller, tmp_path / "run", Plain(), resume=True)
    assert made.trainee.limit == Limit(rows=2)
    assert "warning: rows was 4 and is 2 now: the result differs by rounding" in capsys.readouterr().out
    assert [line["rows"] for line in history(tmp_path / "run", "plan")] == [2]


@pytest.mark.parametrize(
    ("given", "expected"), [("main", "a" * 40), (None, "a" * 40), ("a" * 40, "a" * 40), ("b" * 40, "b" * 40)]
)
def test_a_branch_stands_for_the_commit_that_the_run_began_with(
    tmp_path: Path, tiny: Tiny, given: str | None, expected: str
) -> None:
    """The run's recipe has the commit; a person goes on with the file that has the branch, or nothing."""
    began = small_recipe(tmp_path, tiny("bert"), model={"revision": "a" * 40})
    (tmp_path / "began.yaml").write_text(dump(began))
    asked = began.model_copy(update={"model": began.model.model_copy(update={"revision": given})})
    found = with_revision(asked, tmp_path / "began.yaml")
    assert found.model.revision == expected
    if expected == "a" * 40:
        check_same(tmp_path / "began.yaml", found, given=True)
    else:
        with pytest.raises(CheckpointError, match="model.revision was"):
            check_same(tmp_path / "began.yaml", found, given=True)


def test_what_is_there_now_is_looked_at_before_anything_is_removed(
    tmp_path: Path, tiny: Tiny, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody has deleted the directory while the base was loaded, and trains there."""
    before = {file.name: file.read_bytes() for file in finished.iterdir() if file.is_file()}
    real = run_module.begin

    def replaced(*args: Any) -> None:
        finished.rename(tmp_path / "elsewhere")
        shutil.copytree(tmp_path / "elsewhere", finished, ignore=shutil.ignore_patterns(".lock"))
        real(*args)

    monkeypatch.setattr(run_module, "begin", replaced)
    with pytest.raises(LorakitError, match="was deleted, moved or replaced"):
        run(small_recipe(tmp_path, tiny("bert")), finished, overwrite=True)
    assert {file.name: file.read_bytes() for file in finished.iterdir() if file.is_file()} == before

"""Experiment trackers get what metrics.jsonl gets."""

import math
from pathlib import Path
from typing import Any, get_args

import pytest
from small_runs import files, history, recipe_file, run, same_result, small_recipe

from lorakit.errors import LorakitError, RecipeError
from lorakit.recipe import Recipe, load
from lorakit.schedule import Tracker
from lorakit.training import run as run_module
from lorakit.training.history import History
from lorakit.training.setup import check_trackers
from lorakit.training.track import _Forward, numbers


def tracked(folder: Path, base: Path, **train: Any) -> Recipe:
    return small_recipe(folder, base, train={"track": ["tensorboard"], **train})


def scalars(out: Path) -> dict[str, list[tuple[int, float]]]:
    """Everything in a run's event files, by name: (step, value)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tracking/small"), size_guidance={"scalars": 0})
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def expected(out: Path) -> dict[str, list[tuple[int, float]]]:
    """What the history has, under the names that trackers get."""
    found: dict[str, list[tuple[int, float]]] = {}
    last = 0
    for line in history(out, "log", "eval", "final"):
        last = max(last, line["step"])
        for name, value in numbers(line["kind"], {"seconds": 0.0, **line}).items():
            if name != "train/seconds":
                found.setdefault(name, []).append((last, pytest.approx(value)))
    return found


def test_tensorboard_has_the_history(tmp_path: Path, tiny: Any) -> None:
    out = tmp_path / "run"
    run(tracked(tmp_path, tiny("bert")), out)
    found = scalars(out)
    assert found.pop("train/seconds")
    assert found == expected(out)
    assert {"train/loss", "train/lr", "validation/accuracy", "final/validation/loss"} <= set(found)
    assert [step for step, _ in found["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert all(name.startswith("tracking/small/") for name in files(out) if "tfevents" in name)


def test_a_resumed_run_continues_the_curves_and_may_be_tracked_otherwise(
    tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = small_recipe(tmp_path, tiny("bert"), train={"track": []})
    run(plain, tmp_path / "whole")
    real, out = run_module.optimise, tmp_path / "run"

    def killed(*args: Any) -> Any:
        for step in real(*args):
            if step.number == 6:
                raise MemoryError  # after step 5 was logged, with a checkpoint at 3
            yield step

    monkeypatch.setattr(run_module, "optimise", killed)
    with pytest.raises(MemoryError):
        run(tracked(tmp_path, tiny("bert")), out)
    monkeypatch.undo()
    assert [step for step, _ in scalars(out)["train/loss"]] == [1, 2, 3, 4, 5]
    run(tracked(tmp_path, tiny("bert")), out, resume=True)
    found = scalars(out)
    assert found.pop("train/seconds")
    assert found == expected(out)
    same_result(tmp_path / "whole", out)
    run(plain, out, resume=True)
    assert "tensorboard" not in (out / "recipe.yaml").read_text()


def test_without_trackers_nothing_is_written(tmp_path: Path, tiny: Any) -> None:
    run(small_recipe(tmp_path, tiny("bert")), tmp_path / "run")
    assert not (tmp_path / "run/tracking").exists()


def test_what_a_tracker_gets_of_a_line() -> None:
    line = {"loss": 1.0, "lr": 0.1, "grad_norm": math.inf, "epoch": 0, "tokens": 7, "seconds": 2.0, "targets": 3}
    assert numbers("log", line) == {
        "train/loss": 1.0, "train/lr": 0.1, "train/epoch": 0, "train/tokens": 7, "train/seconds": 2.0,
    }  # fmt: skip
    evaluation = {"split": "validation", "rows": 5, "metrics": {"loss": 1.0, "pearson": math.nan}}
    assert numbers("eval", evaluation) == {"validation/loss": 1.0}
    assert numbers("final", evaluation) == {"final/validation/loss": 1.0}
    assert numbers("save", {}) == {}


def test_steps_never_go_back(tmp_path: Path) -> None:
    class Accelerator:
        def __init__(self) -> None:
            self.steps: list[int] = []

        def log(self, values: dict[str, float], step: int) -> None:
            self.steps.append(step)

    accelerator = Accelerator()
    history = History(tmp_path)
    history.forward = _Forward(accelerator, 0)
    found = {"split": "validation", "metrics": {"loss": 1.0}}
    for kind, step in (("eval", 4), ("eval", 8), ("save", 8), ("final", 4)):
        history.write(kind, step, **found)
    assert accelerator.steps == [4, 8, 8]


def test_accelerate_knows_these() -> None:
    from accelerate.utils import LoggerType

    assert {str(name) for name in LoggerType} - {"all"} == set(get_args(Tracker))


def test_an_unknown_tracker_is_refused_with_those_there_are(tmp_path: Path, tiny: Any) -> None:
    file = recipe_file(tmp_path, tiny("bert"), train={"track": ["tensorbord"]})
    with pytest.raises(RecipeError) as raised:
        load(file)
    (problem,) = raised.value.problems
    assert "train.track" in problem
    assert 'did you mean "tensorboard"?' in problem
    assert "wandb" in problem


def test_a_missing_package_is_an_error_before_anything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    recipe = small_recipe(tmp_path, tmp_path / "no such base", train={"track": ["tensorboard", "comet_ml", "wandb"]})
    with pytest.raises(LorakitError) as raised:
        run(recipe, tmp_path / "run")
    assert raised.value.problems == (
        "train.track: tensorboard is not installed: pip install 'lorakit[track]'",
        "train.track: comet_ml is not installed: pip install comet-ml",
        "train.track: wandb is not installed: pip install wandb",
    )
    assert raised.value.exit_code == 2
    assert not (tmp_path / "run").exists()


def test_an_installed_one_is_none() -> None:
    check_trackers(["tensorboard"])
    check_trackers([])

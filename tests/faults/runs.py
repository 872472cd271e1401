"""What the fault tests share: whole runs to compare with, and the comparison."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from faults.server import Ended, ForkServer, Job
from small_runs import files, recipe_file, run, same_result, small_recipe

from lorakit.recipe import Recipe
from lorakit.training import run as run_module
from lorakit.training.loop import optimise

METHODS: tuple[dict[str, Any], ...] = (
    {"dropout": 0.1},
    {"dora": True, "dropout": 0.1},
    {"init": "pissa"},
    {"rslora": True, "dropout": 0.2},
)
KINDS = (("bert", "classification"), ("gpt2", "completion"), ("llama", "classification"), ("bert", "regression"))


@dataclass
class Whole:
    """A run that nothing interrupts.

    Args:
        recipe: Its file.
        directory: The run directory.
        ended: How it went.
    """

    recipe: Path
    directory: Path
    ended: Ended


def train(server: ForkServer, recipe: Path, out: Path, *options: str, **happens: Any) -> Ended:
    """`lorakit train` in a child of the server; `happens` is a `Job`'s kill or point."""
    return server.run(Job(["train", str(recipe), "--out", str(out), *options], str(out), **happens))


def whole_run(server: ForkServer, folder: Path, base: Path, kind: str, **sections: Any) -> Whole:
    """Train in a folder of its own; twice where the first child has still imported, for the time that it takes."""
    recipe = recipe_file(folder, base, kind, **sections)
    ended = train(server, recipe, folder / "run")
    if kind not in server.warm:
        ended = train(server, recipe, folder / "run", "--overwrite")
        server.warm.add(kind)
    assert ended.code == 0, ended.output
    return Whole(recipe, folder / "run", ended)


def drawn_run(server: ForkServer, folder: Path, base_of: Callable[[str], Path], seed: int) -> Whole:
    """A run whose recipe is drawn: base, task, method, and when it evaluates, saves and accumulates."""
    draw = random.Random(f"recipe {seed}")
    base, kind = KINDS[seed % len(KINDS)]
    train: dict[str, Any] = {
        "epochs": draw.choice([2, 3]),
        "micro_batch_size": draw.choice([1, 3, 8, "auto"]),
        "eval_every": draw.choice(["epoch", 1, 2, 4]),
        "save_every": draw.choice(["epoch", 1, 2, 5]),
        "eval_limit": draw.choice([None, 4]),
        "select": draw.choice([None, "last", "loss"]),
        "weight_decay": draw.choice([0.0, 0.1]),
        "schedule": draw.choice(["linear", "cosine"]),
        "seed": draw.randrange(1000),
    }
    if train["select"] != "last":
        train["patience"] = draw.choice([None, 2])
    method = draw.choice(METHODS)
    if "pissa" not in method.values():
        train["optimizer"] = {"lr_b_ratio": draw.choice([1, 4])}
    return whole_run(server, folder, base_of(base), kind, method=method, train=train)


def assert_same(whole: Path, out: Path) -> None:
    """Fails unless a run has the uninterrupted one's adapter, history, metrics, files, predictions and optimiser."""
    same_result(whole, out)
    assert files(out) == files(whole)
    assert _names(out / "checkpoints") == _names(whole / "checkpoints")
    assert _names(out) == _names(whole)
    for name in sorted(files(whole)):
        if name.endswith(".safetensors") or name.startswith("predictions/") or name == "recipe.yaml":
            assert (out / name).read_bytes() == (whole / name).read_bytes(), name
        if name.endswith("state.json"):
            assert _untimed(out / name) == _untimed(whole / name), name


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _untimed(state: Path) -> dict[str, Any]:
    return {key: value for key, value in json.loads(state.read_text()).items() if key not in ("seconds", "digest")}


class Died(BaseException):
    """The process is gone."""


def died_after(last: int, recipe: Recipe, out: Path) -> None:
    """Train in this process until a step is made, and no further: nothing is tidied up."""

    def until(*args: Any) -> Any:
        for step in optimise(*args):
            yield step
            if step.number == last:
                raise Died

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run_module, "optimise", until)
        with pytest.raises(Died):
            run(recipe, out)


def whole_and_died(folder: Path, base: Path) -> tuple[Recipe, Path, Path]:
    """A recipe, its whole run, and one that died with the checkpoints of steps 3 (the best) and 4."""
    sections: dict[str, Any] = {"method": {"dropout": 0.1}, "train": {"eval_every": 3, "save_every": 2}}
    recipe = small_recipe(folder, base, **sections)
    run(recipe, folder / "whole")
    died_after(5, recipe, folder / "died")
    assert {path.name for path in (folder / "died/checkpoints").iterdir()} == {"step-3", "step-4"}
    return recipe, folder / "whole", folder / "died"


def copied(source: Path, target: Path) -> Path:
    """A run directory once more."""
    shutil.copytree(source, target)
    return target

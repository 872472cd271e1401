"""One, two and four processes train the same, with copies of the model (ddp) and with parts of it (fsdp)."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_runs import history, recipe_file, report, run
from world_runs import NO_DROPOUT, train_in_world

from lorakit.recipe import load

Tiny = Callable[[str], Path]
MODELS = {"classification": "bert", "completion": "gpt2"}
ROWS = 17
"""With steps of 8 rows, each epoch ends with a step of a single row: fewer than there are processes."""


def recipe_of(folder: Path, tiny: Tiny, kind: str, parallel: str = "ddp", **sections: Any) -> Path:
    base = MODELS[kind]
    train = {"micro_batch_size": 2, "parallel": parallel, **sections.pop("train", {})}
    model = {"overrides": NO_DROPOUT[base], **sections.pop("model", {})}
    return recipe_file(folder, tiny(base), kind, ROWS, train=train, model=model, **sections)


def same(one: Path, other: Path, rel: float = 1e-4) -> None:
    """Fails unless two runs agree to rounding: steps, evaluations, predictions, adapters."""
    for a, b in zip(history(one, "log"), history(other, "log"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=rel)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=20 * rel)
        assert [a[name] for name in ("step", "epoch", "targets", "tokens", "lr")] == [
            b[name] for name in ("step", "epoch", "targets", "tokens", "lr")
        ]
    for name, value in report(one)["metrics"]["validation"].items():
        assert report(other)["metrics"]["validation"][name] == pytest.approx(value, rel=rel), name
    for kind in ("eval", "final", "save"):
        lines = [[(line["step"], line.get("rows")) for line in history(out, kind)] for out in (one, other)]
        assert lines[0] == lines[1]
    predictions = [(out / "predictions/validation.jsonl").read_text() for out in (one, other)]
    assert predictions[0] == predictions[1]
    adapters = [load_file(out / "adapter.safetensors") for out in (one, other)]
    assert list(adapters[0]) == list(adapters[1])
    for name, tensor in adapters[0].items():
        # Adam divides by the gradient's size, so where a gradient is next to nothing its rounding shows
        torch.testing.assert_close(
            tensor, adapters[1][name], rtol=10 * rel, atol=2 * rel, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Callable[[str], Path]:
    """A kind → the run of one process."""

    @cache
    def made(kind: str) -> Path:
        folder = tmp_path_factory.mktemp("alone")
        run(load(recipe_of(folder, tiny, kind)), folder / "run")
        return folder / "run"

    return made


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("kind", MODELS)
def test_two_processes_train_as_one(
    tmp_path: Path, tiny: Tiny, alone: Callable[[str], Path], kind: str, parallel: str
) -> None:
    train_in_world(2, recipe_of(tmp_path, tiny, kind, parallel), tmp_path / "run")
    same(alone(kind), tmp_path / "run")
    assert report(tmp_path / "run")["micro_batch"] == {"rows": 2, "tokens": None, "processes": 2, "parallel": parallel}


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("kind", MODELS)
def test_four_processes_train_as_one(
    tmp_path: Path, tiny: Tiny, alone: Callable[[str], Path], kind: str, parallel: str
) -> None:
    train_in_world(4, recipe_of(tmp_path, tiny, kind, parallel), tmp_path / "run")
    same(alone(kind), tmp_path / "run")

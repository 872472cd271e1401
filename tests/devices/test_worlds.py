"""One, two and four processes train the same, with copies of the model (ddp) and with parts of it (fsdp)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_runs import history, losses, recipe_file, report, run
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


def agree(folder: Path, tiny: Tiny, size: int) -> None:
    """Fails unless so many processes train as one does, in both ways, on both kinds."""
    jobs = {}
    for kind in MODELS:
        run(load(recipe_of(folder / kind, tiny, kind)), folder / kind / "alone")
        for parallel in ("ddp", "fsdp"):
            place = folder / kind / parallel
            jobs[kind, parallel] = recipe_of(place, tiny, kind, parallel), place / "run"
    train_in_world(size, list(jobs.values()))
    for (kind, parallel), (_, out) in jobs.items():
        same(folder / kind / "alone", out)
        plan = {"rows": 2, "tokens": None, "processes": size, "parallel": parallel}
        assert report(out)["micro_batch"] == plan


def test_two_processes_train_as_one(tmp_path: Path, tiny: Tiny) -> None:
    agree(tmp_path, tiny, 2)


@pytest.mark.slow
def test_four_processes_train_as_one(tmp_path: Path, tiny: Tiny) -> None:
    agree(tmp_path, tiny, 4)


SECTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "bias": ("classification", {"method": {"bias": "all", "targets": ["all-linear"]}}),
    "dora": ("completion", {"method": {"dora": True}}),
    "pissa": ("classification", {"method": {"init": "pissa"}}),
    "full": ("completion", {"method": {"name": "full", "rank": "absent", "alpha": "absent"}, "train": {"lr": 1e-4}}),
    "bitfit": ("classification", {"method": {"name": "bitfit", "rank": "absent", "alpha": "absent"}}),
    "top_layers": ("completion", {"method": {"name": "top_layers", "rank": "absent", "alpha": "absent"}}),
    "adapter": ("completion", {"method": {"name": "adapter", "rank": "absent", "alpha": "absent"}}),
    "preembed": ("classification", {"method": {"name": "preembed", "rank": "absent", "alpha": "absent"}}),
    "prelayer": ("completion", {"method": {"name": "prelayer", "rank": "absent", "alpha": "absent"}}),
    "prefix_kv": ("completion", {"method": {"name": "prefix_kv", "rank": "absent", "alpha": "absent"}}),
    "checkpointing": ("completion", {"train": {"gradient_checkpointing": True}}),
    "unclipped": ("classification", {"train": {"max_grad_norm": None}}),
}


def test_sharded_models_train_as_whole_ones(tmp_path: Path, tiny: Tiny) -> None:
    """Every method, and what else touches parameters."""
    jobs = {}
    for name, (kind, sections) in SECTIONS.items():
        run(load(recipe_of(tmp_path / name, tiny, kind, **sections)), tmp_path / name / "alone")
        place = tmp_path / name / "sharded"
        jobs[name] = recipe_of(place, tiny, kind, "fsdp", **sections), place / "run"
    train_in_world(2, list(jobs.values()))
    for name, (_, out) in jobs.items():
        same(tmp_path / name / "alone", out)


def test_mixed_precision(tmp_path: Path, tiny: Tiny) -> None:
    """bfloat16, and a base in bfloat16 with an adapter in float32: to the rounding of 8 bits."""
    kinds: dict[str, dict[str, Any]] = {
        "computed": {"train": {"precision": "bfloat16"}},
        "stored": {"model": {"dtype": "bfloat16"}},
    }
    jobs = {}
    for name, sections in kinds.items():
        run(load(recipe_of(tmp_path / name, tiny, "completion", **sections)), tmp_path / name / "alone")
        for parallel in ("ddp", "fsdp"):
            place = tmp_path / name / parallel
            jobs[name, parallel] = recipe_of(place, tiny, "completion", parallel, **sections), place / "run"
    train_in_world(2, list(jobs.values()))
    for (name, _), (_, out) in jobs.items():
        assert losses(out) == pytest.approx(losses(tmp_path / name / "alone"), rel=2e-3)

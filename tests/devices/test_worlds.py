"""One, two and four processes train the same, with copies of the model (ddp) and with parts of it (fsdp)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import losses, report, run
from world_runs import MODELS, recipe_of, same, train_in_world

from lorakit.recipe import load

Tiny = Callable[[str], Path]


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
        plan = {"rows": 2, "tokens": None, "overhead": None, "processes": size, "parallel": parallel}
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

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import IN_CHECKPOINT, run, small_recipe
from torch import nn

from lorakit.checkpoint import CHECKPOINTS, FORMAT, Provenance
from lorakit.errors import CheckpointError
from lorakit.seal import sealed
from lorakit.training.state import (
    Best,
    TrainingState,
    clear,
    newest_checkpoint,
    optimizer_state,
    read_moments,
    restore_optimizer,
    save_checkpoint,
    sweep,
)

PROVENANCE = Provenance(FORMAT, [], "base", None, "f" * 64)


def trained() -> tuple[torch.optim.Optimizer, dict[str, nn.Parameter]]:
    """AdamW after two steps, whose second left one parameter without a gradient."""
    torch.manual_seed(0)
    parameters = {"layer.A": nn.Parameter(torch.randn(3, 2)), "layer.B": nn.Parameter(torch.randn(4))}
    optimizer = torch.optim.AdamW(parameters.values())
    for names in (("layer.A", "layer.B"), ("layer.A",)):
        optimizer.zero_grad()
        for name in names:
            parameters[name].grad = torch.randn_like(parameters[name])
        optimizer.step()
    return optimizer, parameters


def save(directory: Path, step: int, best: int | None = None, evaluated: bool = True) -> Path:
    optimizer, parameters = trained()
    state = TrainingState(step, tokens=100 * step, best=Best(best, 0.5, 1), evaluated=evaluated)
    adapter = {name: parameter.detach() + step for name, parameter in parameters.items()}
    return save_checkpoint(directory, state, adapter, PROVENANCE, optimizer_state(optimizer, parameters))


def resealed(fields: dict[str, Any]) -> dict[str, Any]:
    return sealed({key: value for key, value in fields.items() if key != "digest"})


def names(directory: Path) -> set[str]:
    return {path.name for path in (directory / CHECKPOINTS).iterdir()}


def test_a_checkpoint_s_files(tmp_path: Path) -> None:
    assert {path.name for path in save(tmp_path, 3).iterdir()} == set(IN_CHECKPOINT)
    assert names(tmp_path) == {"step-3"}


def test_state_comes_back(tmp_path: Path) -> None:
    save(tmp_path, 3, best=2)
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert (found[0].name, found[1].step, found[1].tokens) == ("step-3", 3, 300)
    assert found[1].best == Best(2, 0.5, 1)
    assert torch.equal(found[2]["layer.B"], trained()[1]["layer.B"].detach() + 3)


def test_optimizer_goes_on_bit_for_bit(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 3)
    found = newest_checkpoint(tmp_path)
    assert found is not None
    results = []
    for restored in (False, True):
        optimizer, parameters = trained()
        if restored:
            optimizer = torch.optim.AdamW(parameters.values())
            restore_optimizer(read_moments(checkpoint), found[1], optimizer, parameters)
        for parameter in parameters.values():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        results.append([parameter.detach().clone() for parameter in parameters.values()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert found[1].steps == {"layer.A": {"step": 2.0}, "layer.B": {"step": 1.0}}


def test_newest_and_best_stay(tmp_path: Path) -> None:
    for step, best in ((1, 1), (2, 1), (3, 3), (4, 3), (5, 3)):
        save(tmp_path, step, best)
    assert names(tmp_path) == {"step-3", "step-5"}


def test_newest_is_by_number_and_not_by_name(tmp_path: Path) -> None:
    save(tmp_path, 9, best=9)
    save(tmp_path, 10, best=9)
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found[1].step == 10


def test_the_same_step_again_updates_the_state_alone(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 3, evaluated=False)
    before = {name: (checkpoint / name).stat().st_ino for name in IN_CHECKPOINT}
    save(tmp_path, 3, best=3)
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found[1].evaluated
    assert (checkpoint / "adapter.safetensors").stat().st_ino == before["adapter.safetensors"]


@pytest.mark.parametrize("name", IN_CHECKPOINT)
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty"])
def test_a_torn_checkpoint_is_passed_over(tmp_path: Path, name: str, damage: str) -> None:
    save(tmp_path, 2, best=2)
    file = save(tmp_path, 4, best=2) / name
    content = file.read_bytes()
    file.unlink()
    if damage != "missing":
        file.write_bytes(content[: len(content) // 2 if damage == "truncated" else 0])
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found[1].step == 2


def test_none_where_there_is_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    (save(tmp_path, 1) / "state.json").write_text("{}")
    assert newest_checkpoint(tmp_path) is None


def test_sweep_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    kept = save(tmp_path, 2, best=2)
    shutil.copytree(kept, kept.parent / "step-4")
    (kept.parent / ".step-6.x1y2z3ab").mkdir()
    (tmp_path / ".metrics.jsonl.x1y2z3ab").write_text("torn")
    (tmp_path / ".hidden").write_text("somebody's own")
    (tmp_path / "notes.txt").write_text("somebody's own")
    sweep(tmp_path, TrainingState(2, best=Best(2)))
    assert names(tmp_path) == {"step-2"}
    assert {path.name for path in tmp_path.iterdir()} == {CHECKPOINTS, ".hidden", "notes.txt"}
    sweep(tmp_path, None)
    assert names(tmp_path) == set()


def test_the_optimizer_s_moments_are_those_of_what_is_trained(tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    run(small_recipe(tmp_path, tiny("bert")), tmp_path / "run")
    checkpoint = tmp_path / "run" / CHECKPOINTS / "step-6"
    adapter = load_file(checkpoint / "adapter.safetensors")
    moments = load_file(checkpoint / "optimizer.safetensors")
    assert set(moments) == {f"{name}/{key}" for name in adapter for key in ("exp_avg", "exp_avg_sq")}
    assert all(tensor.shape == adapter[name.rpartition("/")[0]].shape for name, tensor in moments.items())


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    run(small_recipe(tmp_path / "a", tiny("bert"), method={"rank": 4}), tmp_path / "a/run")
    recipe = small_recipe(tmp_path / "b", tiny("bert"))
    run(recipe, tmp_path / "b/run")
    shutil.rmtree(tmp_path / "b/run/checkpoints")
    shutil.copytree(tmp_path / "a/run/checkpoints", tmp_path / "b/run/checkpoints")
    with pytest.raises(CheckpointError, match="has shape"):
        run(recipe, tmp_path / "b/run", resume=True)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("step",), 20),
        (("step",), "3"),
        (("tokens",), 1.5),
        (("plan",), [1]),
        (("best", "step"), "1/../../../elsewhere"),
        (("steps", "layer.A"), {"step": "two"}),
        (("steps", "layer.B"), None),
        (("steps",), {"layer.A": {"step": 2.0}}),
        (("data",), {"train": 1}),
    ],
)
def test_a_state_that_does_not_hold_together_is_passed_over(tmp_path: Path, path: tuple[str, ...], value: Any) -> None:
    save(tmp_path, 2, best=2)
    file = save(tmp_path, 3, best=2) / "state.json"
    fields = json.loads(file.read_text())
    inner = fields
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    file.write_text(json.dumps(resealed(fields)))
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found[1].step == 2


@pytest.mark.parametrize("change", [{"tokens": 301}, {"more": 1}, {"digest": "0" * 64}, {"digest": None}])
def test_a_state_that_was_changed_is_passed_over(tmp_path: Path, change: dict[str, Any]) -> None:
    save(tmp_path, 2, best=2)
    file = save(tmp_path, 3, best=2) / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    said: list[str] = []
    found = newest_checkpoint(tmp_path, said.append)
    assert found is not None
    assert found[1].step == 2
    assert "has changed since it was written" in said[0]


@pytest.mark.parametrize("name", IN_CHECKPOINT)
def test_one_flipped_bit_is_seen(tmp_path: Path, name: str) -> None:
    save(tmp_path, 2, best=2)
    file = save(tmp_path, 4, best=2) / name
    content = bytearray(file.read_bytes())
    at = len(content) - 5
    content[at] ^= 4
    file.write_bytes(content)
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found[1].step == 2


@pytest.mark.parametrize("name", ["adapter.safetensors", "optimizer.safetensors"])
def test_a_file_of_another_checkpoint_is_seen(tmp_path: Path, name: str) -> None:
    older, newer = save(tmp_path, 2, best=2), save(tmp_path, 4, best=2)
    if name == "optimizer.safetensors":  # whole, of the right shapes, and not this checkpoint's
        save_file({key: value + 1 for key, value in load_file(older / name).items()}, newer / name)
    else:
        shutil.copy(older / name, newer / name)
    said: list[str] = []
    found = newest_checkpoint(tmp_path, said.append)
    assert found is not None
    assert found[1].step == 2
    assert len(said) == 1


@pytest.mark.parametrize("text", ["[" * 100_000, "{}", "null", '{"step": 3', '{"step": 3, "best": []}', "\xff"])
def test_a_state_that_is_none_is_passed_over(tmp_path: Path, text: str) -> None:
    (save(tmp_path, 3) / "state.json").write_text(text, encoding="latin-1")
    assert newest_checkpoint(tmp_path) is None


def test_an_undefined_best_value_comes_back(tmp_path: Path) -> None:
    state = TrainingState(3, best=Best(2, math.nan, 1))
    save_checkpoint(tmp_path, state, {"a": torch.ones(1)}, PROVENANCE, ({}, {}))
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found[1].best.value is not None
    assert math.isnan(found[1].best.value)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda moments: moments.pop("layer.A/exp_avg"),
        lambda moments: moments.update({"layer.C/exp_avg": torch.ones(1), "layer.C/exp_avg_sq": torch.ones(1)}),
        lambda moments: moments.update({"layer.A/exp_avg": torch.ones(2, 3)}),
        lambda moments: [moments.pop(f"layer.B/{kind}") for kind in ("exp_avg", "exp_avg_sq")],
    ],
)
def test_moments_of_other_parameters_are_passed_over(tmp_path: Path, spoil: Callable[[dict[str, Any]], Any]) -> None:
    file = save(tmp_path, 3) / "optimizer.safetensors"
    moments = load_file(file)
    spoil(moments)
    save_file(moments, file)
    assert newest_checkpoint(tmp_path) is None


def test_what_is_cleared_cannot_go_on_without_its_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 3)
    for name in ("recipe.yaml", "metrics.jsonl", "a", ".lock"):
        (tmp_path / name).write_text("")
    gone: list[str] = []
    monkeypatch.setattr(Path, "unlink", lambda path: gone.append(path.name))
    monkeypatch.setattr(shutil, "rmtree", lambda path: gone.append(path.name))
    clear(tmp_path)
    assert (gone[0], gone[-1], sorted(gone[1:-1])) == ("checkpoints", "recipe.yaml", ["a", "metrics.jsonl"])

import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import history, losses, recipe_file, run, small_recipe
from torch import Tensor

from lorakit.data.batches import Limit, step_rows
from lorakit.errors import LorakitError
from lorakit.progress import Silent
from lorakit.recipe import load
from lorakit.surgery import trainable_state
from lorakit.training import loop
from lorakit.training.loop import Step, optimise
from lorakit.training.setup import Run, set_up

FIVE = {"epochs": None, "steps": 5, "weight_decay": 0.1}
MODELS = {"classification": "bert", "regression": "roberta", "completion": "gpt2"}


def no_dropout(base: str) -> dict[str, Any]:
    if base == "gpt2":
        return {"overrides": {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}}
    return {"overrides": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}}


def steps_of(prepared: Run, count: int = 5) -> list[Step]:
    train, data = prepared.recipe.train, prepared.train.encoded
    rows = step_rows(train.seed, len(data), train.batch_size, count)
    prepared.trainee.model.train()
    return list(optimise(prepared.trainee, data, rows, train, [train.lr] * count))


def trained(recipe: Any, out: Path, limit: Limit | None = None) -> tuple[list[Step], dict[str, Tensor]]:
    prepared = set_up(recipe, out, Silent())
    if limit is not None:
        prepared.trainee.limit = limit
    steps = steps_of(prepared)
    return steps, trainable_state(prepared.prepared.model)


def assert_same(one: tuple[list[Step], dict[str, Tensor]], other: tuple[list[Step], dict[str, Tensor]]) -> None:
    for a, b in zip(one[0], other[0], strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-5)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-3)
        assert (a.targets, a.tokens, a.epoch, a.ends_epoch) == (b.targets, b.tokens, b.epoch, b.ends_epoch)
    # Adam divides by the gradient's size, so where a gradient is next to nothing its rounding shows
    for name, tensor in one[1].items():
        torch.testing.assert_close(tensor, other[1][name], rtol=1e-3, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("kind", MODELS)
def test_any_cut_of_a_step_is_the_same_step(tmp_path: Path, tiny: Callable[[str], Path], kind: str) -> None:
    base = MODELS[kind]
    recipe = small_recipe(tmp_path, tiny(base), kind, model=no_dropout(base), train=FIVE)
    whole = trained(recipe, tmp_path / "run", Limit(rows=8))
    for limit in (Limit(rows=1), Limit(rows=3), Limit(tokens=100), None):
        assert_same(whole, trained(recipe, tmp_path / "run", limit))


def test_a_step_s_loss_is_the_mean_over_its_targets_and_not_over_its_rows(
    tmp_path: Path, tiny: Callable[[str], Path]
) -> None:
    recipe = small_recipe(tmp_path, tiny("gpt2"), "completion", model=no_dropout("gpt2"), train=FIVE)
    prepared = set_up(recipe, tmp_path / "run", Silent())
    data, objective = prepared.train.encoded, prepared.trainee.objective
    (rows,) = step_rows(0, len(data), 8, 1)
    from lorakit.data.collate import collate

    total, count = 0.0, 0
    for row in rows.rows:
        batch = collate([data.items[row]], prepared.trainee.pad_id)
        with torch.no_grad():
            total += float(objective(prepared.trainee.model, batch)[0])
        count += int((batch.labels != -100).sum())
    (step,) = steps_of(prepared, 1)
    assert step.targets == count
    assert step.loss == pytest.approx(total / count, rel=1e-5)


def test_memory_that_runs_out_halves_the_micro_batch(
    tmp_path: Path, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(tmp_path, tiny("bert"), model=no_dropout("bert"), train=FIVE)
    calm = trained(recipe, tmp_path / "run", Limit(rows=8))
    collate, seen = loop.collate, []

    def hungry(items: Any, pad_id: int) -> Any:
        seen.append(len(items))
        if len(items) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return collate(items, pad_id)

    monkeypatch.setattr(loop, "collate", hungry)
    prepared = set_up(recipe, tmp_path / "run", Silent())
    prepared.trainee.limit = Limit(rows=8)
    steps = steps_of(prepared)
    assert seen[:6] == [8, 4, 2, 2, 2, 2]
    assert prepared.trainee.limit == Limit(rows=2)
    assert_same(calm, (steps, trainable_state(prepared.prepared.model)))


def test_memory_that_runs_out_in_the_middle_of_a_step_leaves_no_gradient_behind(
    tmp_path: Path, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(tmp_path, tiny("bert"), model=no_dropout("bert"), train=FIVE)
    calm = trained(recipe, tmp_path / "run", Limit(rows=4))
    collate, calls = loop.collate, []

    def fails_once(items: Any, pad_id: int) -> Any:
        calls.append(len(items))
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return collate(items, pad_id)

    monkeypatch.setattr(loop, "collate", fails_once)
    assert_same(calm, trained(recipe, tmp_path / "run", Limit(rows=4)))
    assert calls[:4] == [4, 4, 2, 2]


def test_a_row_that_never_fits_is_one_message(
    tmp_path: Path, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop, "collate", full)
    with pytest.raises(LorakitError, match="step 1: out of memory with 1 rows .*gradient_checkpointing"):
        trained(small_recipe(tmp_path, tiny("bert"), train=FIVE), tmp_path / "run")


def test_a_changed_plan_is_logged_and_resumed(
    tmp_path: Path, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    collate = loop.collate

    def hungry(items: Any, pad_id: int) -> Any:
        if len(items) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return collate(items, pad_id)

    monkeypatch.setattr(loop, "collate", hungry)
    recipe = small_recipe(tmp_path, tiny("bert"), train={"micro_batch_size": 8, "steps": 2, "epochs": None})
    run(recipe, tmp_path / "run")
    (line,) = history(tmp_path / "run", "plan")
    assert (line["step"], line["rows"]) == (1, 2), "the rehearsal, whose batches fitted, has no line"
    monkeypatch.undo()
    assert run(recipe, tmp_path / "run", resume=True).trainee.limit == Limit(rows=2)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_whose_loss_is_no_number_changes_nothing(
    tmp_path: Path, tiny: Callable[[str], Path], bad: float
) -> None:
    prepared = set_up(small_recipe(tmp_path, tiny("bert"), train=FIVE), tmp_path / "run", Silent())
    real, calls = prepared.trainee.objective, []

    def broken(model: Any, batch: Any) -> Any:
        calls.append(1)
        loss, logits = real(model, batch)
        return (loss * bad if len(calls) == 3 else loss), logits

    prepared.trainee = replace(prepared.trainee, objective=broken)  # type: ignore[arg-type]
    states, found = [], []
    rows = list(step_rows(0, len(prepared.train.encoded), 8, 5))
    for step in optimise(prepared.trainee, prepared.train.encoded, rows, prepared.recipe.train, [0.01] * 5):
        moments = {
            f"{index}/{key}": value.clone()
            for index, state in enumerate(prepared.trainee.plain_optimizer.state.values())
            for key, value in state.items()
        }
        states.append({**trainable_state(prepared.prepared.model), **moments})
        found.append(step)
    assert [step.skipped for step in found] == [(), (), tuple(rows[2].rows.tolist()), (), ()]
    assert [math.isfinite(step.loss) for step in found] == [True, True, False, True, True]
    same = [all(torch.equal(a[name], b[name]) for name in b) for a, b in pairwise(states)]
    assert same == [False, True, False, False], "weights and moments"


def test_a_step_whose_gradient_is_no_number_changes_nothing(tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    prepared = set_up(small_recipe(tmp_path, tiny("bert"), train=FIVE), tmp_path / "run", Silent())
    prepared.trainee.parameters[0].register_hook(lambda gradient: gradient * math.inf)
    before = trainable_state(prepared.prepared.model)
    (step,) = steps_of(prepared, 1)
    assert len(step.skipped) == 8
    assert math.isfinite(step.loss)
    assert not math.isfinite(step.grad_norm)
    after = trainable_state(prepared.prepared.model)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(parameter.grad is None for parameter in prepared.trainee.parameters)


def test_clipping(tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    seen: dict[float | None, list[float]] = {}
    for limit in (None, 0.001):
        recipe = small_recipe(tmp_path, tiny("bert"), train={**FIVE, "max_grad_norm": limit})
        prepared = set_up(recipe, tmp_path / "run", Silent())
        inner = prepared.trainee.optimizer.step
        norms: list[float] = []

        def step(prepared: Run = prepared, norms: list[float] = norms, inner: Any = inner) -> None:
            gradients = [p.grad for p in prepared.trainee.parameters if p.grad is not None]
            norms.append(float(torch.nn.utils.get_total_norm(gradients)))
            inner()

        prepared.trainee.optimizer.step = step
        (reported,) = steps_of(prepared, 1)
        seen[limit] = [reported.grad_norm, norms[0]]
    assert seen[None][0] == pytest.approx(seen[None][1], rel=1e-5)
    assert seen[0.001][0] == pytest.approx(seen[None][0], rel=1e-5), "the norm is that before clipping"
    assert seen[0.001][1] == pytest.approx(0.001, rel=1e-2)


def test_label_smoothing_reaches_training_and_not_evaluation(tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    found = {}
    for smoothing in (0.0, 0.2):
        recipe = small_recipe(
            tmp_path / str(smoothing), tiny("gpt2"), "completion", model=no_dropout("gpt2"),
            train={"label_smoothing": smoothing, "epochs": None, "steps": 1, "lr": 1e-12},
        )  # fmt: skip
        run(recipe, tmp_path / str(smoothing) / "run")
        (log,), (evaluated,) = (history(tmp_path / str(smoothing) / "run", kind) for kind in ("log", "eval"))
        found[smoothing] = log["loss"], evaluated["metrics"]["loss"]
    assert found[0.0][0] != found[0.2][0]
    assert found[0.0][1] == pytest.approx(found[0.2][1], rel=1e-6)


def test_gradient_checkpointing_changes_nothing(tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    found = []
    for checkpointing in (False, True):
        folder = tmp_path / str(checkpointing)
        recipe = small_recipe(folder, tiny("llama"), "completion", train={"gradient_checkpointing": checkpointing})
        layers = run(recipe, folder / "run").prepared.model.model.layers
        assert {layer.gradient_checkpointing for layer in layers} == {checkpointing}
        found.append(losses(folder / "run"))
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_dropout_is_a_function_of_the_step(tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    recipe = small_recipe(tmp_path, tiny("gpt2"), "completion", method={"dropout": 0.5}, train=FIVE)
    whole, _ = trained(recipe, tmp_path / "run")
    torch.manual_seed(12345)
    torch.rand(77)  # whatever was drawn before
    again, _ = trained(recipe, tmp_path / "run")
    assert [step.loss for step in whole] == [step.loss for step in again]
    dry = small_recipe(tmp_path, tiny("gpt2"), "completion", train=FIVE)
    assert trained(dry, tmp_path / "run")[0][3].loss != whole[3].loss


def test_loraplus_multiplies_the_rate_of_every_step(tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    """After the first step of AdamW every element has moved by its rate, or a little less."""
    train = {"optimizer": {"lr_b_ratio": 4}, "lr": 1e-3, "weight_decay": 0, "steps": 5, "epochs": None}
    prepared = set_up(small_recipe(tmp_path, tiny("bert"), train=train), tmp_path / "run", Silent())
    for group in prepared.trainee.optimizer.param_groups:
        group["lr"] = 77.0  # the loop sets it
    before = trainable_state(prepared.prepared.model)
    (step,) = steps_of(prepared, 1)
    moved = {name: value - before[name] for name, value in trainable_state(prepared.prepared.model).items()}
    assert step.lr == 1e-3
    for name, expected in {".B": 4e-3, "classifier.bias": 4e-3, "classifier.weight": 1e-3}.items():
        found = [delta.abs().max().item() for key, delta in moved.items() if key.endswith(name)]
        assert found
        assert found == pytest.approx([expected] * len(found), rel=0.05)


HUNGRY = """
import os, sys, torch
from lorakit.training import loop, rehearsal
from lorakit.cli import main

def hungry(module, most):
    real = module.collate

    def collate(items, pad_id):
        if os.environ["RANK"] == "1" and len(items) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(items, pad_id)

    module.collate = collate

hungry({module}, {most})
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("module", "step"), [("loop", 1), ("rehearsal", 0)])
def test_two_processes_agree_when_the_memory_of_one_runs_out(
    tmp_path: Path, tiny: Callable[[str], Path], module: str, step: int
) -> None:
    train = {"micro_batch_size": 3, "batch_size": 8}
    file = recipe_file(tmp_path, tiny("bert"), model=no_dropout("bert"), train=train)
    run(load(file), tmp_path / "one")
    script = tmp_path / "hungry.py"
    script.write_text(HUNGRY.format(module=module, most=1))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(script), "train", str(file), "--out", str(tmp_path / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = history(tmp_path / "two", "plan")
    assert (line["step"], line["rows"]) == (step, 1)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)

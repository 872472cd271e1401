import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_runs import (
    change_state,
    expected_files,
    files,
    history,
    losses,
    recipe_file,
    report,
    run,
    same_result,
    small_recipe,
)
from torch import Tensor

from lorakit.checkpoint import open_run
from lorakit.errors import CheckpointError, DataError, LorakitError, RecipeError
from lorakit.recipe import Recipe, load
from lorakit.training import run as run_module
from lorakit.training.interrupt import Interrupted, StopEvaluation, StopSignals
from lorakit.training.loop import Step, optimise

Tiny = Callable[[str], Path]
WET: dict[str, Any] = {"method": {"dropout": 0.1}, "train": {"epochs": 3, "eval_every": 4, "save_every": 2}}
"""LoRA dropout (and the base's own); 9 steps in 3 epochs, saved at 2 4 6 8 9, evaluated at 4 8 9."""


def adapter(out: Path) -> dict[str, Tensor]:
    return load_file(out / "adapter.safetensors")


def checkpoints(out: Path) -> set[str]:
    return {path.name for path in (out / "checkpoints").iterdir()}


def scripted(monkeypatch: pytest.MonkeyPatch, values: list[float], metric: str = "accuracy") -> None:
    """Let the evaluations during training find these values of a metric, one after the other."""
    left, real = iter(values), run_module._evaluate

    def evaluate(*args: Any) -> Any:
        found = real(*args)
        found.metrics[metric] = next(left, 0.123)
        return found

    monkeypatch.setattr(run_module, "_evaluate", evaluate)


def test_files_of_a_finished_run(tmp_path: Path, tiny: Tiny) -> None:
    run(small_recipe(tmp_path, tiny("bert"), train={"select": "last"}), tmp_path / "run")
    assert files(tmp_path / "run") == expected_files([6])


def test_lines_of_the_history(tmp_path: Path, tiny: Tiny) -> None:
    run(small_recipe(tmp_path, tiny("bert")), tmp_path / "run")
    lines = history(tmp_path / "run")
    order = [(line["kind"], line["step"]) for line in lines if line["kind"] != "final"]
    assert order == [
        *(("log", step) for step in (1, 2, 3)), ("eval", 3), ("save", 3),
        *(("log", step) for step in (4, 5, 6)), ("eval", 6), ("save", 6),
    ]  # fmt: skip
    assert set(lines[0]) == {"kind", "step", "epoch", "loss", "lr", "grad_norm", "targets", "tokens"}
    assert [(line["targets"], line["epoch"]) for line in history(tmp_path / "run", "log")] == [
        (8, 0), (8, 0), (4, 0), (8, 1), (8, 1), (4, 1),
    ]  # fmt: skip
    (final,) = history(tmp_path / "run", "final")
    assert final["metrics"] == report(tmp_path / "run")["metrics"]["validation"]
    assert final["rows"] == 10


def test_report(tmp_path: Path, tiny: Tiny) -> None:
    run(small_recipe(tmp_path, tiny("bert")), tmp_path / "run")
    found = report(tmp_path / "run")
    required = (
        "recipe status metrics best_step steps epochs parameters targets truncated seconds tokens_per_second "
        "peak_memory_bytes adapter_bytes versions device seed paper"
    )
    assert set(required.split()) <= set(found)
    assert (found["status"], found["steps"], found["epochs"], found["seed"]) == ("complete", 6, 2.0, 0)
    assert set(found["metrics"]["validation"]) == {"loss", "accuracy", "f1_macro"}
    tensors = adapter(tmp_path / "run")
    pairs = sum(tensor.numel() for name, tensor in tensors.items() if ".update." in name)
    head = sum(tensor.numel() for name, tensor in tensors.items() if ".update." not in name)
    assert (found["parameters"]["method"], found["parameters"]["head"]) == (pairs, head)
    assert found["parameters"]["trainable"] == pairs + head
    assert found["targets"] == {"q": 2, "v": 2}
    assert found["rows"] == {"train": 20, "validation": 10}
    assert found["adapter_bytes"] == (tmp_path / "run/adapter.safetensors").stat().st_size
    text = (tmp_path / "run/report.md").read_text()
    assert f"{100 * found['metrics']['validation']['accuracy']:.2f}" in text


def test_parameters_of_full_fine_tuning_are_the_method_s(tmp_path: Path, tiny: Tiny) -> None:
    method = {"name": "full", "rank": "absent", "alpha": "absent"}
    run(small_recipe(tmp_path, tiny("bert"), method=method), tmp_path / "run")
    counts = report(tmp_path / "run")["parameters"]
    assert counts["head"] == 64 * 2 + 2
    assert counts["method"] + counts["head"] == counts["trainable"] == counts["total"]


@pytest.mark.parametrize(("base", "kind"), [("bert", "classification"), ("gpt2", "completion")])
def test_what_is_frozen_stays_and_what_is_trained_moves(tmp_path: Path, tiny: Tiny, base: str, kind: str) -> None:
    stored = (tiny(base) / "model.safetensors").read_bytes()
    recipe = small_recipe(tmp_path, tiny(base), kind, train={"weight_decay": 0.1})
    begun = run_module.set_up(recipe, tmp_path / "run", run_module_silent())
    before = {name: tensor.clone() for name, tensor in begun.prepared.model.state_dict().items()}
    model = run(recipe, tmp_path / "run").prepared.model
    after = model.state_dict()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    frozen = set(after) - trained
    assert trained
    assert frozen
    assert not [name for name in frozen if not torch.equal(before[name], after[name])]
    assert not [name for name in trained if torch.equal(before[name], after[name])]
    assert (tiny(base) / "model.safetensors").read_bytes() == stored


def run_module_silent() -> Any:
    from lorakit.progress import Silent

    return Silent()


def test_same_recipe_same_bytes_and_another_seed_other_bytes(tmp_path: Path, tiny: Tiny) -> None:
    recipe = small_recipe(tmp_path, tiny("bert"), method={"dropout": 0.1})
    run(recipe, tmp_path / "a")
    run(recipe, tmp_path / "b")
    same_result(tmp_path / "a", tmp_path / "b")
    run(small_recipe(tmp_path, tiny("bert"), method={"dropout": 0.1}, train={"seed": 1}), tmp_path / "c")
    assert losses(tmp_path / "c") != losses(tmp_path / "a")
    assert (tmp_path / "c/adapter.safetensors").read_bytes() != (tmp_path / "a/adapter.safetensors").read_bytes()


def test_it_learns(tmp_path: Path, tiny: Tiny) -> None:
    recipe = small_recipe(
        tmp_path, tiny("bert"), rows=64, method={"targets": ["all-linear"], "rank": 8}, train={"epochs": 15}
    )
    run(recipe, tmp_path / "run")
    found = losses(tmp_path / "run")
    assert sum(found[-8:]) < 0.8 * sum(found[:8])


def test_the_best_step_is_published(tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [0.5, 0.9, 0.9, 0.7])
    recipe = small_recipe(tmp_path, tiny("bert"), train={"epochs": 4, "select": "accuracy"})
    run(recipe, tmp_path / "run")
    assert report(tmp_path / "run")["best_step"] == 6, "of equals the first"
    assert checkpoints(tmp_path / "run") == {"step-6", "step-12"}
    best, last = (load_file(tmp_path / f"run/checkpoints/step-{n}/adapter.safetensors") for n in (6, 12))
    published = adapter(tmp_path / "run")
    assert all(torch.equal(published[name], best[name]) for name in best)
    assert any(not torch.equal(published[name], last[name]) for name in last)


def test_the_loss_is_better_when_lower(tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [0.5, 0.9, 0.2, 0.7], "loss")
    run(small_recipe(tmp_path, tiny("bert"), train={"epochs": 4, "select": "loss"}), tmp_path / "run")
    assert report(tmp_path / "run")["best_step"] == 9


def test_last_publishes_the_last(tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [0.9, 0.1])
    run(small_recipe(tmp_path, tiny("bert"), train={"select": "last"}), tmp_path / "run")
    assert report(tmp_path / "run")["best_step"] == 6


def test_a_metric_that_is_undefined_at_first_does_not_win(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [float("nan"), 0.4, float("nan")])
    run(small_recipe(tmp_path, tiny("bert"), train={"epochs": 3, "select": "accuracy"}), tmp_path / "run")
    assert report(tmp_path / "run")["best_step"] == 6


@pytest.mark.parametrize(("kind", "base", "expected"), [
    ("classification", "bert", "accuracy"), ("regression", "bert", "pearson"), ("completion", "gpt2", "loss"),
])  # fmt: skip
def test_what_selects_by_default(tmp_path: Path, tiny: Tiny, kind: str, base: str, expected: str) -> None:
    run(small_recipe(tmp_path, tiny(base), kind), tmp_path / "run")
    assert report(tmp_path / "run")["select"] == expected


def test_patience(tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [0.5, 0.9, 0.8, 0.9, 1.0])
    train = {"epochs": 9, "patience": 2, "select": "accuracy", "save_every": 100}
    run(small_recipe(tmp_path, tiny("bert"), train=train), tmp_path / "run")
    found = report(tmp_path / "run")
    assert (found["steps"], found["best_step"]) == (12, 6)
    assert checkpoints(tmp_path / "run") == {"step-6", "step-12"}
    run(small_recipe(tmp_path, tiny("bert"), train=train), tmp_path / "run", resume=True)
    assert report(tmp_path / "run")["steps"] == 12, "a resumed run is as patient as before"


def test_evaluation_and_saving_every_n_steps(tmp_path: Path, tiny: Tiny) -> None:
    train = {"eval_every": 4, "save_every": 3, "epochs": None, "steps": 7, "select": "last"}
    run(small_recipe(tmp_path, tiny("bert"), train=train), tmp_path / "run")
    assert [line["step"] for line in history(tmp_path / "run", "eval")] == [4, 7]
    assert [line["step"] for line in history(tmp_path / "run", "save")] == [3, 6, 7]


def test_eval_limit_holds_for_training_and_not_for_the_end(tmp_path: Path, tiny: Tiny) -> None:
    run(small_recipe(tmp_path, tiny("bert"), train={"eval_limit": 4}), tmp_path / "run")
    assert {line["rows"] for line in history(tmp_path / "run", "eval")} == {4}
    assert [line["rows"] for line in history(tmp_path / "run", "final")] == [10]
    assert len((tmp_path / "run/predictions/validation.jsonl").read_text().splitlines()) == 10


def test_eval_limit_leaves_the_loss_of_a_generation_task_whole(tmp_path: Path, tiny: Tiny) -> None:
    """Texts of few rows, the loss of all: as in a run without a limit."""
    losses = []
    for name, limit in (("all", None), ("few", 3)):
        recipe = small_recipe(tmp_path / name, tiny("gpt2"), "completion", train={"eval_limit": limit})
        run(recipe, tmp_path / name / "run")
        lines = history(tmp_path / name / "run", "eval")
        assert {line["rows"] for line in lines} == {limit or 10}
        losses.append([line["metrics"]["loss"] for line in lines])
        assert len((tmp_path / name / "run/predictions/validation.jsonl").read_text().splitlines()) > 3
    assert losses[0] == losses[1]


def test_an_existing_run_is_refused(tmp_path: Path, tiny: Tiny) -> None:
    recipe = small_recipe(tmp_path, tiny("bert"))
    run(recipe, tmp_path / "run")
    before = {name: (tmp_path / "run" / name).read_bytes() for name in files(tmp_path / "run")}
    with pytest.raises(RecipeError, match="--resume.*--overwrite"):
        run(recipe, tmp_path / "run")
    with pytest.raises(RecipeError, match="exclude each other"):
        run(recipe, tmp_path / "run", resume=True, overwrite=True)
    assert before == {name: (tmp_path / "run" / name).read_bytes() for name in files(tmp_path / "run")}


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}])
def test_a_directory_of_somebody_else_is_never_touched(tmp_path: Path, tiny: Tiny, options: dict[str, bool]) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.tex").write_text("years of work")
    with pytest.raises(RecipeError, match="no run directory"):
        run(small_recipe(tmp_path, tiny("bert")), tmp_path / "home", **options)
    assert files(tmp_path / "home") == {"thesis.tex"}


def test_overwrite_replaces(tmp_path: Path, tiny: Tiny) -> None:
    run(small_recipe(tmp_path, tiny("bert"), train={"epochs": 4, "select": "last"}), tmp_path / "run")
    recipe = small_recipe(tmp_path, tiny("bert"), train={"select": "last"})
    run(recipe, tmp_path / "run", overwrite=True)
    assert files(tmp_path / "run") == expected_files([6])
    assert len(losses(tmp_path / "run")) == 6


def test_overwrite_with_a_recipe_that_cannot_run_keeps_the_old_run(tmp_path: Path, tiny: Tiny) -> None:
    recipe = small_recipe(tmp_path, tiny("bert"))
    run(recipe, tmp_path / "run")
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(DataError):
        run(recipe, tmp_path / "run", overwrite=True)
    assert (tmp_path / "run/adapter.safetensors").is_file()


def test_resume_on_nothing_starts_afresh(tmp_path: Path, tiny: Tiny) -> None:
    recipe = small_recipe(tmp_path, tiny("bert"))
    run(recipe, tmp_path / "plain")
    run(recipe, tmp_path / "run", resume=True)
    same_result(tmp_path / "plain", tmp_path / "run")


def test_resume_of_a_finished_run_changes_nothing(tmp_path: Path, tiny: Tiny) -> None:
    recipe = small_recipe(tmp_path, tiny("bert"), **WET)
    run(recipe, tmp_path / "plain")
    shutil.copytree(tmp_path / "plain", tmp_path / "run")
    run(recipe, tmp_path / "run", resume=True)
    same_result(tmp_path / "plain", tmp_path / "run")
    assert files(tmp_path / "run") == files(tmp_path / "plain")


def test_resume_with_a_changed_recipe_names_every_change(tmp_path: Path, tiny: Tiny) -> None:
    run(small_recipe(tmp_path, tiny("bert")), tmp_path / "run")
    changed = small_recipe(tmp_path, tiny("bert"), train={"lr": 0.02, "seed": 3})
    with pytest.raises(CheckpointError) as raised:
        run(changed, tmp_path / "run", resume=True)
    assert [problem.split(": ")[1] for problem in raised.value.problems] == [
        "train.lr was 0.01 and is 0.02 now",
        "train.seed was 0 and is 3 now",
    ]


def test_resume_on_another_number_of_threads_warns(
    tmp_path: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    from lorakit.progress import Plain
    from lorakit.training.run import train

    recipe = small_recipe(tmp_path, tiny("bert"))
    run(recipe, tmp_path / "run")
    for checkpoint in (tmp_path / "run/checkpoints").iterdir():
        machine = json.loads((checkpoint / "state.json").read_text())["machine"]
        change_state(checkpoint, machine=machine | {"threads": 99})
    train(recipe, tmp_path / "run", Plain(), resume=True)
    assert "warning: threads was 99 and is 1 now" in capsys.readouterr().out


class Died(BaseException):
    """The process is gone: nothing in lorakit catches this."""


def dies_after(monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    def dying(*args: Any) -> Iterator[Step]:
        for step in optimise(*args):
            yield step
            if step.number == last:
                raise Died

    monkeypatch.setattr(run_module, "optimise", dying)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> tuple[Recipe, Path]:
    """A run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = small_recipe(folder, tiny("bert"), **WET)
    run(recipe, folder / "run")
    return recipe, folder / "run"


@pytest.mark.parametrize("step", range(1, 10))
def test_a_run_that_died_and_is_resumed_is_the_whole_run(
    tmp_path: Path, whole: tuple[Recipe, Path], monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    recipe, uninterrupted = whole
    dies_after(monkeypatch, step)
    with pytest.raises(Died):
        run(recipe, tmp_path / "run")
    monkeypatch.undo()
    run(recipe, tmp_path / "run", resume=True)
    same_result(uninterrupted, tmp_path / "run")
    assert files(tmp_path / "run") == files(uninterrupted)


def test_generation_resumes_too(tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small_recipe(tmp_path, tiny("gpt2"), "completion", **WET)
    run(recipe, tmp_path / "plain")
    dies_after(monkeypatch, 5)
    with pytest.raises(Died):
        run(recipe, tmp_path / "run")
    monkeypatch.undo()
    run(recipe, tmp_path / "run", resume=True)
    same_result(tmp_path / "plain", tmp_path / "run")


def test_died_again_and_again(tmp_path: Path, whole: tuple[Recipe, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, uninterrupted = whole
    for step in (3, 4, 7):
        dies_after(monkeypatch, step)
        with pytest.raises(Died):
            run(recipe, tmp_path / "run", resume=True)
    monkeypatch.undo()
    run(recipe, tmp_path / "run", resume=True)
    same_result(uninterrupted, tmp_path / "run")


@pytest.mark.parametrize("damage", ["truncated", "half written"])
def test_a_torn_newest_checkpoint_falls_back_to_the_older(
    tmp_path: Path, whole: tuple[Recipe, Path], monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    recipe, uninterrupted = whole
    dies_after(monkeypatch, 7)
    with pytest.raises(Died):
        run(recipe, tmp_path / "run")
    monkeypatch.undo()
    assert checkpoints(tmp_path / "run") == {"step-4", "step-6"}
    newest = tmp_path / "run/checkpoints/step-6"
    if damage == "truncated":
        file = newest / "optimizer.safetensors"
        file.write_bytes(file.read_bytes()[:-9])
    else:
        newest.rename(newest.with_name(".step-6.abcdefgh"))
        (tmp_path / "run/.metrics.jsonl.abcdefgh").write_text("half a line")
        with (tmp_path / "run/metrics.jsonl").open("a") as file_:
            file_.write('{"kind": "lo')
    run(recipe, tmp_path / "run", resume=True)
    same_result(uninterrupted, tmp_path / "run")
    assert files(tmp_path / "run") == files(uninterrupted)


def signals_in(monkeypatch: pytest.MonkeyPatch, evaluation: int) -> None:
    """Let a SIGTERM come in the middle of an evaluation (counted from 1)."""
    real, count = run_module._evaluate, [0]

    def evaluate(*args: Any) -> Any:
        count[0] += 1
        if count[0] == evaluation:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(run_module, "_evaluate", evaluate)


@pytest.mark.parametrize("evaluation", [1, 2, 3])
def test_stopped_in_an_evaluation(
    tmp_path: Path, whole: tuple[Recipe, Path], monkeypatch: pytest.MonkeyPatch, evaluation: int
) -> None:
    recipe, uninterrupted = whole
    signals_in(monkeypatch, evaluation)
    with pytest.raises(Interrupted, match=rf"stopped after step {[4, 8, 9][evaluation - 1]} of 9.*--resume") as raised:
        run(recipe, tmp_path / "run")
    assert raised.value.exit_code == 143
    monkeypatch.undo()
    run(recipe, tmp_path / "run", resume=True)
    same_result(uninterrupted, tmp_path / "run")


def test_stopped_in_the_final_evaluation_loses_nothing(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(tmp_path, tiny("bert"), method={"dropout": 0.1}, train={"eval_limit": 4})
    run(recipe, tmp_path / "plain")
    signals_in(monkeypatch, 3)
    with pytest.raises(Interrupted, match="stopped after step 6 of 6"):
        run(recipe, tmp_path / "run")
    assert not (tmp_path / "run/adapter.safetensors").exists()
    monkeypatch.setattr(run_module, "optimise", lambda *args: iter(_no_step(*args)))
    run(recipe, tmp_path / "run", resume=True)
    same_result(tmp_path / "plain", tmp_path / "run")


def _no_step(*args: Any) -> list[Step]:
    assert list(args[2]) == [], "a step was done again"
    return []


def test_a_signal_in_a_step_finishes_it_and_saves(
    tmp_path: Path, whole: tuple[Recipe, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, uninterrupted = whole

    def signalled(*args: Any) -> Iterator[Step]:
        for step in optimise(*args):
            if step.number == 5:
                os.kill(os.getpid(), signal.SIGINT)
            yield step

    monkeypatch.setattr(run_module, "optimise", signalled)
    with pytest.raises(Interrupted, match="stopped after step 5 of 9; saved") as raised:
        run(recipe, tmp_path / "run")
    assert raised.value.exit_code == 130
    assert "step-5" in checkpoints(tmp_path / "run")
    with pytest.raises(CheckpointError, match="has not finished.*--resume"):
        open_run(tmp_path / "run")
    monkeypatch.undo()
    run(recipe, tmp_path / "run", resume=True)
    same_result(uninterrupted, tmp_path / "run")


def test_an_evaluation_leaves_at_once(tmp_path: Path, tiny: Tiny) -> None:
    signals = StopSignals()
    begun = run_module.set_up(small_recipe(tmp_path, tiny("bert")), tmp_path / "run", run_module_silent())
    signals.received = signal.SIGINT
    with pytest.raises(StopEvaluation):
        run_module._evaluate(begun, begun.validation[0], signals)
    assert not begun.prepared.model.training, "the mode from before is back"


@pytest.mark.parametrize("place", ["_save", "save_adapter", "write_report", "write_records"])
def test_a_full_disk_is_one_message_and_the_run_goes_on_after(
    tmp_path: Path, whole: tuple[Recipe, Path], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    recipe, uninterrupted = whole
    real, fsync, armed = getattr(run_module, place), os.fsync, [False]

    def full(handle: int) -> None:
        if armed[0]:
            raise OSError(28, "No space left on device")
        fsync(handle)

    def arm(run: Any, *args: Any) -> Any:
        armed[0] = place != "_save" or run.state.step == 6
        return real(run, *args)

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(run_module, place, arm)
    with pytest.raises(LorakitError, match="cannot write: No space left on device .*MiB free"):
        run(recipe, tmp_path / "run")
    monkeypatch.undo()
    assert not [name for name in files(tmp_path / "run") if Path(name).name.startswith(".")]
    run(recipe, tmp_path / "run", resume=True)
    same_result(uninterrupted, tmp_path / "run")


SLOW_STEPS = """
import sys, time, torch
torch.set_num_threads(1)
from lorakit.training import run
optimise = run.optimise
def slowly(*args):
    for step in optimise(*args):
        yield step
        time.sleep(0.2)
run.optimise = slowly
from lorakit.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_process_that_is_stopped_and_resumed(
    tmp_path: Path, whole: tuple[Recipe, Path], number: signal.Signals, code: int
) -> None:
    _, uninterrupted = whole
    out = tmp_path / "run"
    arguments = ["train", str(uninterrupted / "recipe.yaml"), "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_STEPS, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and not (out / "checkpoints/step-2").is_dir():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code
    if code > 0:
        assert errors.startswith("stopped after step ")
        assert errors.endswith("Continue with the same command and --resume\n")
        assert errors.count("\n") == 1
    run(load(uninterrupted / "recipe.yaml"), out, resume=True)
    same_result(uninterrupted, out)


@pytest.mark.slow
def test_two_processes_find_the_same_losses(tmp_path: Path, tiny: Tiny) -> None:
    dry = {"overrides": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}}
    file = recipe_file(tmp_path, tiny("bert"), model=dry, train={"micro_batch_size": 2})
    run(load(file), tmp_path / "one")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "lorakit", "train", str(file), "--out", str(tmp_path / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert [line["targets"] for line in history(tmp_path / "two", "log")] == [8, 8, 4, 8, 8, 4]
    assert files(tmp_path / "two") >= expected_files([6])
    assert done.stdout.count("step 6 of 6") == 1, "only the first process speaks"

"""The rehearsal: it finds what would fail later, and leaves no trace."""

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import files, history, report, run, same_result, small_recipe
from torch import Tensor

from lorakit.data.batches import Limit
from lorakit.errors import CheckpointError, LorakitError
from lorakit.progress import Plain, Silent
from lorakit.surgery import trainable_state
from lorakit.training import rehearsal, state
from lorakit.training import run as run_module
from lorakit.training.rehearsal import part_of, rehearse, rehearse_save
from lorakit.training.setup import Run, set_up
from lorakit.training.state import REHEARSAL

Tiny = Callable[[str], Path]
CASES = [("bert", "classification"), ("roberta", "regression"), ("gpt2", "completion")]
WET: dict[str, Any] = {"method": {"dropout": 0.1}}


def begun(tmp_path: Path, base: Path, kind: str = "classification", **sections: Any) -> Run:
    return set_up(small_recipe(tmp_path, base, kind, **sections), tmp_path / "run", Silent())


def memory(of: Run) -> dict[str, Any]:
    """All that a rehearsal might change."""
    return {
        "adapter": trainable_state(of.prepared.model),
        "moments": dict(of.trainee.plain_optimizer.state),
        "gradients": [name for name, p in of.prepared.model.named_parameters() if p.grad is not None],
        "mode": of.prepared.model.training,
        "limit": of.trainee.limit,
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1],  # noqa: NPY002
        "state": repr(of.state),
        "files": files(of.directory) if of.directory.exists() else set(),
    }


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    return bool(np.array_equal(one, other)) if isinstance(one, np.ndarray) else bool(one == other)


@pytest.mark.parametrize(("base", "kind"), CASES)
def test_it_leaves_no_trace(tmp_path: Path, tiny: Tiny, base: str, kind: str) -> None:
    prepared = begun(tmp_path, tiny(base), kind, **WET)
    before = memory(prepared)
    rehearse(prepared)
    prepared.directory.mkdir()
    rehearse_save(prepared)
    after = memory(prepared)
    assert [key for key in before if not equal(before[key], after[key])] == []


@pytest.mark.parametrize(("base", "kind"), CASES)
def test_the_result_is_the_same_without_one(
    tmp_path: Path, tiny: Tiny, base: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(tmp_path, tiny(base), kind, **WET)
    run(recipe, tmp_path / "with")
    monkeypatch.setattr(run_module, "rehearse", lambda of: None)
    monkeypatch.setattr(run_module, "rehearse_save", lambda of: None)
    run(recipe, tmp_path / "without")
    same_result(tmp_path / "with", tmp_path / "without")
    assert files(tmp_path / "with") == files(tmp_path / "without")


def test_it_takes_the_heaviest_micro_batch_and_the_longest_rows(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = begun(tmp_path, tiny("bert"), train={"micro_batch_size": 4})
    read, shown = list[tuple[int, int]](), list[Any]()
    real, evaluate = prepared.trainee.objective, rehearsal.evaluate

    def objective(model: Any, batch: Any) -> Any:
        read.append(tuple(batch.inputs["input_ids"].shape))
        return real(model, batch)

    def watched(subject: Any, task: Any, data: Any, *rest: Any) -> Any:
        shown.append(data)
        return evaluate(subject, task, data, *rest)

    monkeypatch.setattr(prepared.trainee, "objective", objective)
    monkeypatch.setattr(rehearsal, "evaluate", watched)
    rehearse(prepared)
    longest = int(prepared.train.encoded.lengths.max())
    assert len(read) == 1
    assert read[0][0] == 4
    assert read[0][1] == longest
    (part,) = shown
    assert part.encoded.lengths.max() == prepared.validation[0].encoded.lengths.max()
    assert int(part.encoded.lengths.sum()) <= 4 * longest, "on a CPU no more than the micro-batch"


def test_part_of_a_split(tmp_path: Path, tiny: Tiny) -> None:
    data = begun(tmp_path, tiny("bert")).validation[0]
    part = part_of(data, [7, 2])
    assert list(part.rows) == [data.rows[7], data.rows[2]]
    assert [item.row for item in part.encoded.items] == [0, 1]
    assert part.encoded.items[0].input_ids.tolist() == data.encoded.items[7].input_ids.tolist()


def hungry(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """Let memory run out in the rehearsal of a batch of more rows."""
    real, seen = rehearsal.collate, list[int]()

    def collate(items: Any, pad_id: int) -> Any:
        seen.append(len(items))
        if len(items) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(items, pad_id)

    monkeypatch.setattr(rehearsal, "collate", collate)
    return seen


def test_memory_that_runs_out_halves_the_micro_batch_beforehand(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(tmp_path, tiny("bert"), train={"micro_batch_size": 8})
    seen = hungry(monkeypatch, 2)
    assert run(recipe, tmp_path / "run").trainee.limit == Limit(rows=2)
    assert seen == [8, 4, 2]
    (line,) = history(tmp_path / "run", "plan")
    assert (line["step"], line["rows"]) == (0, 2)
    assert report(tmp_path / "run")["memory_ran_out"] == ["training: memory ran out; micro-batches have 2 rows"]
    text = (tmp_path / "run/report.md").read_text()
    assert "| memory ran out | training: micro-batches have 2 rows |" in text


def test_a_row_that_never_fits_fails_before_anything_is_written(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(tmp_path, tiny("bert"))
    run(recipe, tmp_path / "run")
    before = {name: (tmp_path / "run" / name).read_bytes() for name in files(tmp_path / "run")}
    hungry(monkeypatch, 0)
    with pytest.raises(LorakitError, match=r"^rehearsal: out of memory with one row of \d+ tokens"):
        run(recipe, tmp_path / "run", overwrite=True)
    assert before == {name: (tmp_path / "run" / name).read_bytes() for name in files(tmp_path / "run")}


def test_a_loss_that_is_no_number_is_a_warning(
    tmp_path: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = begun(tmp_path, tiny("bert"))
    prepared.progress = Plain()
    real = prepared.trainee.objective

    def broken(model: Any, batch: Any) -> Any:
        loss, logits = real(model, batch)
        return loss * torch.nan, logits

    monkeypatch.setattr(prepared.trainee, "objective", broken)
    rehearse(prepared)
    assert "warning: before the first step the loss of the longest rows is nan" in capsys.readouterr().out


def test_a_save_that_fails_ends_the_run_before_its_first_step(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state, "save_bytes", full)
    monkeypatch.setattr(run_module, "optimise", lambda *_: pytest.fail("a step was made"))
    with pytest.raises(LorakitError, match=r"cannot write: No space left on device \([\d,]+ MiB free there\)"):
        run(small_recipe(tmp_path, tiny("bert")), tmp_path / "run")
    assert files(tmp_path / "run") <= {"recipe.yaml", "metrics.jsonl"}


def test_a_save_that_reads_back_otherwise(tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    real = state.check_written

    def flips(file: Path, tensors: Any) -> None:
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        real(file, tensors)

    monkeypatch.setattr(state, "check_written", flips)
    with pytest.raises(CheckpointError, match="read back, is not what was written"):
        run(small_recipe(tmp_path, tiny("bert")), tmp_path / "run")
    assert not (tmp_path / "run" / REHEARSAL).exists()


def test_what_a_killed_rehearsal_left_is_removed(tmp_path: Path, tiny: Tiny) -> None:
    recipe = small_recipe(tmp_path, tiny("bert"), **WET)
    run(recipe, tmp_path / "plain")
    (tmp_path / "run" / REHEARSAL / "checkpoints/step-0").mkdir(parents=True)
    (tmp_path / "run/recipe.yaml").write_bytes((tmp_path / "plain/recipe.yaml").read_bytes())
    run(recipe, tmp_path / "run", resume=True)
    same_result(tmp_path / "plain", tmp_path / "run")
    assert files(tmp_path / "run") == files(tmp_path / "plain")


def test_a_disk_that_will_be_full_is_a_warning(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = begun(tmp_path, tiny("bert"))
    prepared.progress = Plain()
    prepared.directory.mkdir()
    rehearse_save(prepared)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(rehearsal.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    rehearse_save(prepared)
    assert "1000 B free, and the run's checkpoints may take" in capsys.readouterr().out

"""Checkpoints that are cut off, at every 1 KB of every file, and disks that cannot be read."""

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults.runs import copied, died_after, whole_and_died
from small_runs import IN_CHECKPOINT, files, run, same_result, small_recipe

from lorakit.errors import CheckpointError, LorakitError
from lorakit.progress import Plain
from lorakit.recipe import Recipe
from lorakit.training.run import train
from lorakit.training.state import newest_checkpoint

Tiny = Callable[[str], Path]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> tuple[Recipe, Path, Path]:
    """See `whole_and_died`."""
    return whole_and_died(tmp_path_factory.mktemp("runs"), tiny("bert"))


@pytest.mark.parametrize("name", IN_CHECKPOINT)
def test_cut_off_at_every_kilobyte_the_older_one_is_used(
    tmp_path: Path, runs: tuple[Recipe, Path, Path], name: str
) -> None:
    out = copied(runs[2], tmp_path / "run")
    file = out / "checkpoints/step-4" / name
    content = file.read_bytes()
    for size in sorted({*range(0, len(content), 1024), len(content) - 1}):
        file.write_bytes(content[:size])
        said: list[str] = []
        found = newest_checkpoint(out, said.append)
        assert found is not None
        assert found[1].step == 3, size
        assert len(said) == 1
        assert said[0].startswith("warning: step-4 is damaged and passed over: ")
        assert str(file) in said[0]


@pytest.mark.parametrize("name", IN_CHECKPOINT)
@pytest.mark.parametrize("steps", [(4,), (3, 4)])
def test_a_run_goes_on_from_what_is_whole(
    tmp_path: Path, runs: tuple[Recipe, Path, Path], name: str, steps: tuple[int, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = copied(runs[2], tmp_path / "run")
    for step in steps:
        file = out / f"checkpoints/step-{step}" / name
        file.write_bytes(file.read_bytes()[:1024])
    train(runs[0], out, Plain(), resume=True)
    said = capsys.readouterr().out
    assert ("no checkpoint is whole: the run starts afresh" in said) == (steps == (3, 4))
    assert ("resuming after step 3 of 6" in said) == (steps == (4,))
    same_result(runs[1], out)
    assert files(out) == files(runs[1])


def test_a_damaged_best_one_is_an_error_and_nothing_is_removed(tmp_path: Path, runs: tuple[Recipe, Path, Path]) -> None:
    out = copied(runs[2], tmp_path / "run")
    file = out / "checkpoints/step-3/adapter.safetensors"
    file.write_bytes(file.read_bytes()[:1024])
    before = files(out)
    with pytest.raises(CheckpointError, match=f"{file}: not a whole .* It is the best so far.*--overwrite"):
        run(runs[0], out, resume=True)
    assert files(out) == before


@pytest.mark.parametrize("name", IN_CHECKPOINT)
def test_a_disk_that_cannot_be_read_loses_nothing(
    tmp_path: Path, runs: tuple[Recipe, Path, Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    out, real = copied(runs[2], tmp_path / "run"), io.open
    before = files(out)

    def refuse(file: Any, *args: Any, **options: Any) -> Any:
        if str(file).endswith(f"step-4/{name}"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(file))
        return real(file, *args, **options)

    monkeypatch.setattr(io, "open", refuse)
    with pytest.raises(LorakitError, match="Input/output error"):
        run(runs[0], out, resume=True)
    monkeypatch.undo()
    assert files(out) == before
    run(runs[0], out, resume=True)
    same_result(runs[1], out)


def test_a_checkpoint_of_a_newer_lorakit_is_not_taken_for_a_torn_one(
    tmp_path: Path, runs: tuple[Recipe, Path, Path]
) -> None:
    out = copied(runs[2], tmp_path / "run")
    file = out / "checkpoints/step-4/adapter.safetensors"
    content = file.read_bytes()
    assert content.count(rb"\"format\":2,") == 1
    file.write_bytes(content.replace(rb"\"format\":2,", rb"\"format\":9,"))
    before = files(out)
    with pytest.raises(CheckpointError, match="written by a newer lorakit"):
        run(runs[0], out, resume=True)
    assert files(out) == before


def test_where_the_last_one_is_published_no_earlier_one_is_needed(tmp_path: Path, tiny: Tiny) -> None:
    """Evaluated at 2, saved at 3: the checkpoint names step 2 as its best, of which there is none."""
    recipe = small_recipe(
        tmp_path, tiny("bert"), train={"eval_every": 2, "save_every": 3, "epochs": 2, "select": "last"}
    )
    run(recipe, tmp_path / "whole")
    died_after(4, recipe, tmp_path / "run")
    run(recipe, tmp_path / "run", resume=True)
    same_result(tmp_path / "whole", tmp_path / "run")

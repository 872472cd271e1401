"""Disks that are full, read-only or gone, and two runs in one directory: through `train`, in this process."""

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.runs import copied
from small_runs import files, run, same_result, small_recipe

from lorakit.checkpoint import adapter_file
from lorakit.errors import LorakitError, RecipeError
from lorakit.evaluate import Evaluation
from lorakit.lock import DirectoryLock
from lorakit.recipe import Recipe
from lorakit.session import open_session
from lorakit.training import run as run_module
from lorakit.training.loop import Step, optimise

Tiny = Callable[[str], Path]
SECTIONS: dict[str, Any] = {"method": {"dropout": 0.1}, "train": {"eval_every": 3, "save_every": 2}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> tuple[Recipe, Path]:
    """6 steps, saved at 2, 3, 4 and 6."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = small_recipe(folder, tiny("bert"), **SECTIONS)
    run(recipe, folder / "run")
    return recipe, folder / "run"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    options = ["-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if (
        shutil.which("mount") is None
        or subprocess.run(["mount", *options], capture_output=True, check=False).returncode
    ):
        pytest.skip("mounting a small tmpfs needs root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def when_step(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], object]) -> None:
    """Let something happen right after an optimiser step."""

    def steps(*args: Any) -> Iterator[Step]:
        for step in optimise(*args):
            if step.number == number:
                act()
            yield step

    monkeypatch.setattr(run_module, "optimise", steps)


def test_a_disk_that_fills_up(small_disk: Path, whole: tuple[Recipe, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    out, ballast = small_disk / "run", small_disk / "ballast"

    def fill() -> None:
        with ballast.open("wb", buffering=0) as file:
            try:
                while file.write(b"0" * 4096):
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC

    when_step(monkeypatch, 4, fill)
    with pytest.raises(LorakitError, match="cannot write: No space left on device .0 MiB free there"):
        run(whole[0], out)
    assert (out / "checkpoints/step-3/state.json").is_file()
    monkeypatch.undo()
    with pytest.raises(LorakitError, match="cannot write: No space left on device"):
        run(whole[0], out, resume=True)
    ballast.unlink()
    run(whole[0], out, resume=True)
    same_result(whole[1], out)
    assert files(out) == files(whole[1])


def test_a_disk_that_may_only_be_read(small_disk: Path, whole: tuple[Recipe, Path]) -> None:
    out = copied(whole[1], small_disk / "run")
    shutil.rmtree(out / "checkpoints/step-6")
    before = files(out)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for options in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(LorakitError, match="cannot write: Read-only file system"):
            run(whole[0], out, **options)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert files(out) == before
    run(whole[0], out, resume=True)
    same_result(whole[1], out)


def test_files_that_may_not_grow(tmp_path: Path, whole: tuple[Recipe, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A quota: the kernel itself cuts the write off in the middle."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    when_step(monkeypatch, 4, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1])))
    try:
        with pytest.raises(LorakitError, match="cannot write: File too large"):
            run(whole[0], tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    monkeypatch.undo()
    run(whole[0], tmp_path / "run", resume=True)
    same_result(whole[1], tmp_path / "run")


def test_a_directory_that_may_not_be_written(tmp_path: Path, whole: tuple[Recipe, Path]) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(LorakitError, match="cannot write: Permission denied"):
        run(whole[0], tmp_path / "closed/run")


@pytest.mark.parametrize("how", ["deleted", "moved", "replaced by another run"])
def test_a_run_whose_directory_goes(
    tmp_path: Path, whole: tuple[Recipe, Path], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    recipe, out = whole[0], tmp_path / "run"

    def go() -> None:
        shutil.move(out, tmp_path / "moved")
        if how == "deleted":
            shutil.rmtree(tmp_path / "moved")
        if how == "replaced by another run":
            copied(whole[1], out)

    when_step(monkeypatch, 4, go)
    with pytest.raises(
        LorakitError, match=f"{out}: the run directory, or its .lock, was deleted, moved or replaced while"
    ):
        run(recipe, out)
    monkeypatch.undo()
    if how == "replaced by another run":
        assert {name: (out / name).read_bytes() for name in files(out)} == {
            name: (whole[1] / name).read_bytes() for name in files(whole[1])
        }
    else:
        assert not out.exists(), "nothing is made anew"
    if how == "moved":
        run(recipe, tmp_path / "moved", resume=True)
        same_result(whole[1], tmp_path / "moved")


def test_it_goes_during_an_evaluation_that_a_signal_ends(
    tmp_path: Path, whole: tuple[Recipe, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint would make the directory anew."""
    real = run_module._evaluate

    def evaluate(run: Any, *args: Any) -> Evaluation:
        shutil.rmtree(tmp_path / "run")
        args[1].received = 15
        return real(run, *args)

    monkeypatch.setattr(run_module, "_evaluate", evaluate)
    with pytest.raises(LorakitError, match="the run directory, or its .lock, was deleted"):
        run(whole[0], tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", ["resume", "overwrite"])
def test_two_runs_in_one_directory(tmp_path: Path, whole: tuple[Recipe, Path], option: str) -> None:
    out = copied(whole[1], tmp_path / "run")
    with DirectoryLock(out, print):
        before = files(out)
        with pytest.raises(RecipeError, match=rf"run: process {os.getpid()} on .* trains in this directory now"):
            run(whole[0], out, **{option: True})
        assert files(out) == before
    run(whole[0], out, resume=True)
    same_result(whole[1], out)


def test_a_running_directory_can_be_read(tmp_path: Path, whole: tuple[Recipe, Path]) -> None:
    out = copied(whole[1], tmp_path / "run")
    with DirectoryLock(out, print):
        assert open_session(out, "step-3") is not None
        assert adapter_file(out).is_file()


def test_a_run_killed_in_its_first_moment_leaves_a_directory_that_can_be_used(
    tmp_path: Path, whole: tuple[Recipe, Path]
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".lock").write_text('{"pid": 1, "host": "gone"}')
        (tmp_path / name / ".recipe.yaml.abcd_123").write_text("na")
        run(whole[0], tmp_path / name, resume=name == "b")
        assert files(tmp_path / name) == files(whole[1])
    (tmp_path / "c").mkdir()
    (tmp_path / "c/.lock").touch()
    (tmp_path / "c/mine.txt").touch()
    with pytest.raises(RecipeError, match="is no run directory"):
        run(whole[0], tmp_path / "c")


def test_an_overwritten_run_is_gone_and_a_half_removed_one_still_a_run(
    tmp_path: Path, whole: tuple[Recipe, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = copied(whole[1], tmp_path / "run")
    (out / "more").mkdir()
    (out / "more/of_mine").touch()
    real, left = os.unlink, [4]

    def unlink(*args: Any, **options: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(*args, **options)

    monkeypatch.setattr(os, "unlink", unlink)
    with pytest.raises(LorakitError, match="cannot write: Input/output error"):
        run(whole[0], out, overwrite=True)
    monkeypatch.undo()
    assert (out / "recipe.yaml").is_file()
    run(whole[0], out, overwrite=True)
    assert files(out) == files(whole[1])

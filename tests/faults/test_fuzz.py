"""Mutated files: whatever is in them, what comes out is a result or a `LorakitError`.

Some of each here; `make test-fuzz` 10,000.
"""

import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from faults.conftest import FUZZ
from faults.mutate import mutated
from faults.runs import copied, whole_and_died
from small_runs import IN_CHECKPOINT

from lorakit.checkpoint import open_run, read_adapter
from lorakit.errors import LorakitError
from lorakit.progress import Silent
from lorakit.recipe import Recipe, dump, load
from lorakit.report.write import write_pages
from lorakit.training.run import train
from lorakit.training.state import newest_checkpoint

Tiny = Callable[[str], Path]
PARTS = 8
RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
WHOLE_RUNS = 10
"""Of so many mutated files of a run, one is given to a whole command, which takes longer."""


def share(part: int) -> range:
    """The numbers of one part of the fuzzing."""
    return range(part, FUZZ, PARTS)


def refused(error: LorakitError) -> None:
    """Fails unless a person can read it: each problem one line."""
    assert error.problems
    for problem in error.problems:
        assert problem.strip()
        assert len(problem.splitlines()) == 1, problem
        assert len(problem) < 2000, problem


def attempt(command: Callable[[Path], object], out: Path) -> None:
    """It works, or says why not."""
    try:
        command(out)
    except LorakitError as error:
        refused(error)


@pytest.mark.parametrize("part", range(PARTS))
def test_mutated_recipes(tmp_path: Path, part: int) -> None:
    texts = [file.read_bytes() for file in RECIPES]
    read = 0
    for number in share(part):
        draw = random.Random(f"recipe {number}")
        content = mutated(draw.choice(texts), draw, draw.choice(texts))
        file = tmp_path / "mutated.yaml"
        file.write_bytes(content)
        try:
            recipe = load(file)
        except LorakitError as error:
            refused(error)
            assert all("mutated.yaml" in problem for problem in error.problems), (number, error.problems)
        else:
            read += 1
            file.write_text(dump(recipe))
            assert load(file) == recipe, number
    assert read < len(share(part))


@pytest.mark.parametrize("part", range(PARTS))
def test_mutated_overrides(part: int) -> None:
    keys = ["method.rank", "train", "task.limit", "train.lr", "methods.full.lr", "name", "generate.stop", "x.y", ""]
    for number in share(part):
        draw = random.Random(f"override {number}")
        text = f"{draw.choice(keys)}={draw.choice(['1', '[a, b]', '{a: 1}', 'null', 'x'])}".encode()
        try:
            load(draw.choice(RECIPES), [mutated(text, draw).decode(errors="surrogateescape")])
        except LorakitError as error:
            refused(error)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> tuple[Recipe, Path, Path]:
    """See `whole_and_died`."""
    return whole_and_died(tmp_path_factory.mktemp("runs"), tiny("bert"))


@pytest.mark.parametrize("part", range(PARTS))
def test_mutated_checkpoints(tmp_path: Path, runs: tuple[Recipe, Path, Path], part: int) -> None:
    """What is found is the newest one, as it was written, or the one before."""
    out = copied(runs[2], tmp_path / "run")
    written = {path: path.read_bytes() for path in sorted((out / "checkpoints/step-4").iterdir())}
    assert {path.name for path in written} == set(IN_CHECKPOINT)
    whole = newest_checkpoint(out)
    assert whole is not None
    older = {path.name: path.read_bytes() for path in sorted((out / "checkpoints/step-3").iterdir())}
    for number in share(part):
        draw = random.Random(f"checkpoint {number}")
        path = draw.choice(list(written))
        path.write_bytes(mutated(written[path], draw, older[path.name]))
        said: list[str] = []
        try:
            found = newest_checkpoint(out, said.append)
        except LorakitError as error:
            refused(error)
        else:
            assert found is not None, number
            assert found[1].step == (3 if said else 4), number
            if not said:
                assert found[1] == whole[1], number
                assert all(torch.equal(found[2][name], value) for name, value in whole[2].items()), number
        path.write_bytes(written[path])


@pytest.mark.parametrize("part", range(PARTS))
def test_mutated_adapters(tmp_path: Path, runs: tuple[Recipe, Path, Path], part: int) -> None:
    file = tmp_path / "adapter.safetensors"
    content = (runs[1] / file.name).read_bytes()
    file.write_bytes(content)
    state, provenance = read_adapter(file)
    for number in share(part):
        draw = random.Random(f"adapter {number}")
        file.write_bytes(mutated(content, draw, content))
        try:
            found = read_adapter(file)
        except LorakitError as error:
            refused(error)
        else:
            assert found[1] == provenance, number
            assert all(torch.equal(found[0][name], value) for name, value in state.items()), number


@pytest.mark.parametrize("part", range(PARTS))
def test_runs_with_a_mutated_file(tmp_path: Path, runs: tuple[Recipe, Path, Path], part: int) -> None:
    """Continued, opened, and reported on: that works, or says why not."""
    for number in list(share(part))[::WHOLE_RUNS]:
        draw = random.Random(f"run {number}")
        ended = draw.random() < 0.5
        out = copied(runs[1 if ended else 2], tmp_path / "run")
        names = ["recipe.yaml", "metrics.jsonl", *(["report.json", "adapter.safetensors"] if ended else [])]
        names += [
            f"checkpoints/{path.name}/{name}" for path in (out / "checkpoints").iterdir() for name in IN_CHECKPOINT
        ]
        file = out / draw.choice(names)
        file.write_bytes(mutated(file.read_bytes(), draw, file.read_bytes()))
        for command in (write_pages, open_run, partial(train, runs[0], progress=Silent(), resume=True)):
            attempt(command, out)
        shutil.rmtree(out)


@pytest.mark.parametrize("part", range(PARTS))
def test_bases_with_a_mutated_file(tmp_path: Path, runs: tuple[Recipe, Path, Path], part: int) -> None:
    """Configurations, tokenizers and weights come from strangers."""
    base = copied(Path(str(runs[0].model.base)), tmp_path / "base")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump(runs[0]).replace(str(runs[0].model.base), str(base)))
    files = {file: file.read_bytes() for file in sorted(base.iterdir()) if file.is_file()}
    for number in list(share(part))[::WHOLE_RUNS]:
        draw = random.Random(f"base {number}")
        file = draw.choice(list(files))
        file.write_bytes(mutated(files[file], draw, files[file]))
        attempt(lambda out: train(load(recipe), out, Silent()), tmp_path / "run")
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        file.write_bytes(files[file])

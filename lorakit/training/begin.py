"""How a run begins: in a directory of its own, afresh or where its newest checkpoint left it."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from lorakit.checkpoint import RECIPE
from lorakit.data.batches import Limit
from lorakit.errors import CheckpointError, DataError, RecipeError
from lorakit.lock import DirectoryLock
from lorakit.progress import Progress
from lorakit.recipe import Recipe, dump, flat, load
from lorakit.runtime import write_atomic
from lorakit.schedule import Train
from lorakit.surgery import load_trainable, trainable_parameters
from lorakit.training.optim import rate, total_steps, warmup_steps
from lorakit.training.setup import Run, machine_of, plan_of
from lorakit.training.state import (
    TrainingState,
    clear,
    is_empty,
    newest_checkpoint,
    read_moments,
    require_best,
    restore_optimizer,
    sweep,
)
from lorakit.world import World

_NO_MATTER = ("name", "methods", "paper", "train.track", "train.save_every")
"""Keys that cannot change the result: a resumed run may have other values."""
_ROUNDING = ("train.parallel", "train.micro_batch_size", "train.gradient_checkpointing")
"""Keys that change the result as another plan does: sums are added up in another order, dropout's masks differ."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_MAY_GROW = ("train.epochs", "train.steps")


@contextmanager
def own_directory(
    out: Path, progress: Progress, world: World, *, resume: bool, overwrite: bool
) -> Iterator[DirectoryLock]:
    """While entered, the directory is this run's alone: the first process, which alone needs it, holds it for all.

    Args:
        out: The run directory.
        progress: Told where the file system has no locks.
        world: All processes.
        resume: The person has said that the run there is to be continued.
        overwrite: The person has said that it is to be replaced.

    Raises:
        RecipeError: Somebody else's files are there, another process trains there, or a run is there and the person
            has said neither.
        LorakitError: The directory may not be written.
    """
    if resume and overwrite:
        raise RecipeError("--resume and --overwrite exclude each other: to continue a run, leave --overwrite out")
    lock = DirectoryLock(out, progress.say, enabled=world.rank == 0)
    with ExitStack() as stack:

        def take() -> None:
            if out.exists() and not (out.is_dir() and ((out / RECIPE).is_file() or is_empty(out))):
                raise RecipeError(f"{out} exists and is no run directory; choose another --out")
            stack.enter_context(lock)
            _check_asked(out, resume or overwrite)  # not before: the run may be another process's, just begun

        world.from_first(take)
        yield lock


def _check_asked(out: Path, asked: bool) -> None:
    if (out / RECIPE).is_file() and not asked:
        raise RecipeError(
            f"{out} exists: continue it with --resume, replace it with --overwrite, or choose another --out"
        )


def begin(run: Run, resume: bool) -> None:
    """Make the directory, or pick up an earlier run where its newest checkpoint left it.

    An earlier run is removed only here: a base or a data file that is wrong has spoken before.

    Raises:
        CheckpointError: The recipe is not that of the run that is continued, or a checkpoint does not fit the model.
    """
    digests = {data.name: data.encoded.digest() for data in (run.train, *run.validation)}
    if any(other != digests for other in run.world.gather(digests)):
        raise DataError("task: the processes of this run have read different rows: bring the machines the same data")
    found = run.world.from_first(lambda: _earlier(run, digests)) if resume else None
    run.world.from_first(lambda: _make_ready(run, resume, None if found is None else found[2]))
    if found is None:
        run.state.data = digests
        run.history.rewind(-1, evaluated=True)
        return
    before, checkpoint, state, adapter, moments = found
    _take_up_plan(run, state, before)
    _warn_if_moved(run, state)
    load_trainable(run.prepared.model, adapter, str(checkpoint))
    names = trainable_parameters(run.prepared.model)
    restore_optimizer(moments, state, run.trainee.plain_optimizer, names)
    if state.scaler and run.trainee.accelerator.scaler is not None:
        run.trainee.accelerator.scaler.load_state_dict(state.scaler)
    run.state = state
    run.state.data = digests
    run.history.rewind(state.step, state.evaluated)
    if state.plan != plan_of(run):
        run.history.write("plan", state.step, **plan_of(run))
    _tell_longer(run, before, state.step)
    run.progress.say(f"resuming after step {state.step} of {run.total}")


def _make_ready(run: Run, resume: bool, state: TrainingState | None) -> None:
    """Leave in the directory what the run goes on from, and nothing else, with its recipe."""
    file = run.directory / RECIPE
    run.history.guard()  # before anything is removed: the directory may be another one's by now
    if file.is_file() and not resume:
        clear(run.directory)
    sweep(run.directory, state)
    write_atomic(file, dump(run.recipe))


def _earlier(
    run: Run, digests: Mapping[str, str]
) -> tuple[Train, Path, TrainingState, dict[str, Tensor], dict[str, Tensor]] | None:
    """What an earlier run has left: its schedule, and its newest whole checkpoint with the optimiser's moments."""
    file = run.directory / RECIPE
    if file.is_file():
        check_same(file, run.recipe)
    found = newest_checkpoint(run.directory, run.progress.say)
    if found is None:
        return None
    _check_data(found[1], digests)
    require_best(run.directory, found[1])
    return load(file).train, *found, read_moments(found[0])


def with_revision(recipe: Recipe, file: Path) -> Recipe:
    """The recipe with the commit that the run began with, where the person names a branch, a tag or nothing.

    Args:
        recipe: To continue with.
        file: The run's own recipe.
    """
    began, given = load(file).model, recipe.model
    if began.base != given.base or began.revision is None or _COMMIT.fullmatch(given.revision or ""):
        return recipe
    return recipe.model_copy(update={"model": given.model_copy(update={"revision": began.revision})})


def check_same(file: Path, recipe: Recipe, given: bool = False) -> None:
    """Refuse a recipe that is not the run's own, but for keys that cannot change the result, and a longer run.

    Where the data lie may change too: `begin` looks whether they are the same rows.

    Args:
        file: The run's recipe.
        recipe: What it is to be continued with.
        given: As in the person's file: what the base and the data fill in is not there yet.

    Raises:
        CheckpointError: Names every key with both values.
    """
    before, now = flat(load(file)), flat(recipe)
    free = (*_NO_MATTER, *_ROUNDING, *(f"task.{key}" for key in recipe.task.places))
    changed = [
        f"{file}: {key} was {_written(before, key)} and is {_written(now, key)} now: "
        "--resume needs the run's own recipe"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key)
        and not any(key == name or key.startswith(f"{name}.") for name in free)
        and not (key in _MAY_GROW and _grown(before.get(key), now.get(key)))
        and not any(other.startswith(f"{key}.") for other in (*before, *now))  # an empty mapping, told by what it lacks
        and not (given and now.get(key) is None)
    ]
    if changed:
        raise CheckpointError(*changed)


def _grown(before: object, now: object) -> bool:
    return isinstance(before, int) and isinstance(now, int) and now > before


def _tell_longer(run: Run, before: Train, step: int) -> None:
    """Say what a longer run changes: all rates that depend on its length, those of the steps that are done too."""
    now, data = run.recipe.train, run.train.encoded
    old = total_steps(before, len(data))
    if old == run.total:
        return
    rates = [
        [rate(train, index, warmup_steps(train, data.lengths, total), total) for index in range(old)]
        for train, total in ((before, old), (now, run.total))
    ]
    text = f"the run was {old} steps long and is {run.total} now"
    if rates[0] == rates[1]:
        run.progress.say(f"{text}; no learning rate of before changes")
        return
    following = rate(now, step, warmup_steps(now, data.lengths, run.total), run.total)
    if step < old:
        text += f": step {step + 1} learns at {following:.3g} instead of {rates[0][step]:.3g}"
    else:
        text += f": step {step + 1} learns at {following:.3g}, after {rates[0][-1]:.3g} at step {old}"
    if rates[0][:step] != rates[1][:step]:
        text += f"; the steps done had other rates than in a run of {run.total} steps, so the result is not that of one"
    run.progress.say(f"warning: {text}")


def _check_data(state: TrainingState, digests: Mapping[str, str]) -> None:
    """Refuse to go on with other rows: the order of the rows would mean nothing.

    Raises:
        CheckpointError: Names the splits.
    """
    problems = [
        f"task: the rows of {split}, or the token ids that they become, are not those that the run began with; "
        "bring the data back, or start again with --overwrite"
        for split, digest in digests.items()
        if state.data.get(split, digest) != digest
    ]
    if problems:
        raise CheckpointError(*problems)


def _written(values: dict[str, Any], key: str) -> str:
    """A value as a recipe has it."""
    return json.dumps(values[key], ensure_ascii=False) if key in values else "not there"


def _take_up_plan(run: Run, state: TrainingState, before: Train) -> None:
    """Go on with the micro-batches of before, which may have been halved when memory ran out."""
    asked = run.recipe.train.micro_batch_size != before.micro_batch_size
    if state.plan.get("processes") == plan_of(run)["processes"] and not asked:
        run.trainee.limit = Limit(**{name: state.plan.get(name) for name in ("rows", "tokens", "overhead")})


def _warn_if_moved(run: Run, state: TrainingState) -> None:
    for now, then, what in (
        (machine_of(run), state.machine, "the last bits of the result may differ"),
        (
            plan_of(run),
            state.plan,
            "the result differs by rounding, and with dropout by other masks from here on",
        ),
    ):
        for key, before in then.items():
            if now.get(key) != before:
                run.progress.say(f"warning: {key} was {before} and is {now.get(key)} now: {what}")

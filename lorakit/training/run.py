"""A whole run: from a recipe to a run directory."""

import json
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorakit.checkpoint import ADAPTER, CHECKPOINTS, RECIPE, read_adapter, save_adapter
from lorakit.data.batches import Limit, step_rows, steps_per_epoch
from lorakit.errors import CheckpointError, RecipeError
from lorakit.evaluate import Evaluation, Part, SplitData, evaluate, write_records
from lorakit.meter import Meter
from lorakit.methods.base import publish
from lorakit.progress import Bar, Progress
from lorakit.recipe import Recipe, dump, flat, load
from lorakit.report import shown, write_report
from lorakit.runtime import disk_errors, write_atomic
from lorakit.surgery import load_trainable, trainable_parameters, trainable_state
from lorakit.training.interrupt import Interrupted, StopEvaluation, StopSignals
from lorakit.training.loop import Step, optimise
from lorakit.training.optim import rate, warmup_steps
from lorakit.training.setup import Run, machine_of, plan_of, report_of, set_up
from lorakit.training.state import Best, TrainingState, newest_checkpoint, restore_optimizer, save_checkpoint, sweep
from lorakit.training.track import tracking
from lorakit.training.warm_start import read_source, warm_start

_NO_MATTER = ("train.track",)
"""Keys that cannot change the result: a resumed run may have other values."""


def train(recipe: Recipe, out: Path, progress: Progress, *, resume: bool = False, overwrite: bool = False) -> Run:
    """Run a recipe into a directory.

    Args:
        recipe: Validated.
        out: The run directory to make.
        progress: For the person.
        resume: Continue from the newest checkpoint; start afresh where there is none.
        overwrite: Replace a run that is there.

    Raises:
        LorakitError: Anything that a person can mend; files of earlier runs and checkpoints stay whole.
    """
    _check_directory(out, resume, overwrite)
    if resume and (out / RECIPE).is_file():
        _check_same(out / RECIPE, recipe, given=True)  # and once more when the base has filled in the rest
    source = read_source(recipe, out, resume)
    with Meter() as meter:
        run = set_up(recipe, out, progress, meter)
        if source is not None:
            run.state.init_from = warm_start(source, run.prepared, progress)
        with StopSignals() as signals:  # before, nothing has been done that would have to be saved
            _begin(run, resume)
            with tracking(run):
                _steps(run, signals)
                _finish(run, signals)
    return run


def _check_directory(out: Path, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise RecipeError("--resume and --overwrite exclude each other")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / RECIPE).is_file():
        raise RecipeError(f"{out} exists and is no run directory; choose another --out")
    if not (resume or overwrite):
        raise RecipeError(
            f"{out} exists: continue it with --resume, replace it with --overwrite, or choose another --out"
        )


def _begin(run: Run, resume: bool) -> None:
    """Make the directory, or pick up an earlier run where its newest checkpoint left it.

    An earlier run is removed only here: a base or a data file that is wrong has spoken before.
    """
    file = run.directory / RECIPE
    if resume and file.is_file():
        _check_same(file, run.recipe)
    found = newest_checkpoint(run.directory) if resume else None
    run.trainee.accelerator.wait_for_everyone()  # all have read it
    if run.main and resume:
        sweep(run.directory, None if found is None else found[0])
    elif run.main and file.is_file():
        with disk_errors(run.directory):
            shutil.rmtree(run.directory)
    if run.main:
        write_atomic(file, dump(run.recipe))
    if found is None:
        run.history.rewind(0, evaluated=True)
        return
    checkpoint, state, adapter = found
    _take_up_plan(run, state)
    _warn_if_moved(run, state)
    load_trainable(run.prepared.model, adapter, str(checkpoint))
    names = trainable_parameters(run.prepared.model)
    restore_optimizer(checkpoint, state, _inner(run.trainee.optimizer), names)
    if state.scaler and run.trainee.accelerator.scaler is not None:
        run.trainee.accelerator.scaler.load_state_dict(state.scaler)
    run.state = state
    run.history.rewind(state.step, state.evaluated)
    run.progress.say(f"resuming after step {state.step} of {run.total}")


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner


def _check_same(file: Path, recipe: Recipe, given: bool = False) -> None:
    """Refuse a recipe that is not the run's own; of one as `given`, only what the base and the data do not fill in."""
    before, now = flat(load(file)), flat(recipe)
    changed = [
        f"{file}: {key} was {_written(before, key)} and is {_written(now, key)} now: "
        "--resume needs the run's own recipe"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key)
        and not key.startswith(_NO_MATTER)
        and not any(other.startswith(f"{key}.") for other in (*before, *now))  # an empty mapping, told by what it lacks
        and not (given and now.get(key) is None)
    ]
    if changed:
        raise CheckpointError(*changed)


def _written(values: dict[str, Any], key: str) -> str:
    """A value as a recipe has it."""
    return json.dumps(values[key], ensure_ascii=False) if key in values else "not there"


def _take_up_plan(run: Run, state: TrainingState) -> None:
    """Go on with the micro-batches of before, which may have been halved when memory ran out."""
    if state.plan.get("processes") == plan_of(run)["processes"]:
        run.trainee.limit = Limit(rows=state.plan["rows"], tokens=state.plan["tokens"])


def _warn_if_moved(run: Run, state: TrainingState) -> None:
    now = {**machine_of(run), **plan_of(run)}
    moved = {
        key: (value, now.get(key)) for key, value in {**state.machine, **state.plan}.items() if now.get(key) != value
    }
    for key, (before, after) in moved.items():
        run.progress.say(f"warning: {key} was {before} and is {after} now: the last bits of the result may differ")


def _steps(run: Run, signals: StopSignals) -> None:
    train, data = run.recipe.train, run.train.encoded
    warmup = warmup_steps(train, data.lengths, run.total)
    rates = [rate(train, step, warmup, run.total) for step in range(run.total)]
    if not run.state.evaluated:
        done = run.state.step
        ends_epoch = done % steps_per_epoch(len(data), train.batch_size) == 0
        _evaluate_and_save(run, done, ends_epoch, signals, last=done == run.total)
    if _patience_spent(run):
        return
    run.trainee.model.train()
    rows = step_rows(train.seed, len(data), train.batch_size, run.total, run.state.step)
    with run.progress.bar("train", run.total, "steps", run.state.step) as bar:
        began, limit = time.monotonic(), run.trainee.limit
        for step in optimise(run.trainee, data, rows, train, rates):
            run.state.step, run.state.tokens = step.number, run.state.tokens + step.tokens
            run.state.seconds += time.monotonic() - began
            limit = _tell_plan(run, limit)
            _log(run, step, bar)
            last = step.number == run.total
            _evaluate_and_save(run, step.number, step.ends_epoch, signals, last)
            if _patience_spent(run):
                run.progress.say(f"stopped after step {step.number}: {train.patience} evaluations without a better one")
                return
            if _stop_asked(run, signals) and not last:
                _stop(run, signals)
            began = time.monotonic()


def _stop_asked(run: Run, signals: StopSignals) -> bool:
    """Whether any process was asked to stop: all must leave at the same step."""
    accelerator, asked = run.trainee.accelerator, signals.received is not None
    if accelerator.num_processes == 1:
        return asked
    votes = accelerator.reduce(torch.tensor(float(asked), device=accelerator.device), reduction="sum")
    if votes > 0 and signals.received is None:
        signals.received = signal.SIGTERM
    return bool(votes > 0)


def _tell_plan(run: Run, before: Limit) -> Limit:
    """Note that the micro-batches have changed: with dropout, the masks change with them."""
    if run.trainee.limit != before:
        run.history.write("plan", run.state.step, **plan_of(run))
        run.progress.say(f"step {run.state.step}: memory ran out; now {run.trainee.limit.rows} rows per forward pass")
    return run.trainee.limit


def _log(run: Run, step: Step, bar: Bar) -> None:
    speed = run.state.tokens / max(run.state.seconds, 1e-9)
    bar.advance(1, loss=f"{step.loss:.4f}", lr=f"{step.lr:.2e}", tok_s=f"{speed:,.0f}")
    run.history.write(
        "log",
        step.number,
        epoch=step.epoch,
        loss=step.loss,
        lr=step.lr,
        grad_norm=step.grad_norm,
        targets=step.targets,
        tokens=step.tokens,
        seconds=round(run.state.seconds, 3),
    )


def _due(every: int | str, step: int, ends_epoch: bool, last: bool) -> bool:
    return last or (ends_epoch if every == "epoch" else step % int(every) == 0)


def _evaluate_and_save(run: Run, step: int, ends_epoch: bool, signals: StopSignals, last: bool = False) -> None:
    train = run.recipe.train
    better = False
    if _due(train.eval_every, step, ends_epoch, last):
        run.state.evaluated = False
        with _stoppable(run, signals):
            data = run.validation[0]
            found = _evaluate(run, data, signals, train.eval_limit)
        rows = len(data.first(train.eval_limit).rows)
        _tell(run, "eval", step, rows, found)
        if rows == len(data.rows):
            run.latest[found.split] = (step, found)
        better = _select(run, step, found)
        run.state.evaluated = True
    if better or _due(train.save_every, step, ends_epoch, last or _patience_spent(run)):
        run.history.write("save", step)  # first: a checkpoint without its line could not be told from one by a signal
        _save(run)


def _evaluate(run: Run, data: SplitData, signals: StopSignals, limit: int | None = None) -> Evaluation:
    """Evaluate the model as it is; leaves at once when a signal has come.

    All devices go on with the main one's metrics: one that chose another step, or lost patience earlier, would leave
    the others waiting.
    """
    watched, task = _Watched(run.progress, signals.check), run.recipe.task
    found = evaluate(run.subject, task, data, run.recipe.generate, watched, Part(limit, quick=True))
    if run.select in task.slow_metrics and run.main:  # not on every device: it starts Java
        found = found.complete(task, data.first(limit).rows, watched)
    if run.trainee.accelerator.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        found = replace(found, metrics=broadcast_object_list([found.metrics])[0])
    run.trainee.model.train()
    return found


def _tell(run: Run, kind: str, step: int, rows: int, found: Evaluation) -> None:
    run.history.write(kind, step, split=found.split, rows=rows, metrics=found.metrics)
    if kind == "eval":  # the final ones are the table at the end
        values = "  ".join(f"{name} {shown(name, value)}" for name, value in found.metrics.items())
        run.progress.say(f"step {step} of {run.total}  {found.split}  {values}")


class _Watched:
    """A progress that looks for signals whenever something advances."""

    def __init__(self, progress: Progress, check: Callable[[], None]) -> None:
        self.progress, self.check = progress, check

    def say(self, text: str) -> None:
        self.progress.say(text)

    @contextmanager
    def bar(self, label: str, total: int, unit: str = "rows", done: int = 0) -> Iterator[Bar]:
        with self.progress.bar(label, total, unit, done) as bar:
            yield _WatchedBar(bar, self.check)


class _WatchedBar:
    def __init__(self, bar: Bar, check: Callable[[], None]) -> None:
        self.bar, self.check = bar, check

    def advance(self, count: int = 1, **values: str) -> None:
        self.bar.advance(count, **values)
        self.check()


@contextmanager
def _stoppable(run: Run, signals: StopSignals, save: bool = True) -> Iterator[None]:
    try:
        yield
    except StopEvaluation:
        _stop(run, signals, save)


def _stop(run: Run, signals: StopSignals, save: bool = True) -> None:
    assert signals.received is not None
    if save:
        _save(run)
    raise Interrupted(
        signals.received,
        f"stopped after step {run.state.step} of {run.total}; saved. Continue with the same command and --resume",
    )


def _select(run: Run, step: int, found: Evaluation) -> bool:
    """Keep the books of the best evaluation; returns whether this one is it."""
    best = run.state.best
    if run.select == "last":
        run.state.best = Best(step, None, 0)
        return False
    value = found.metrics.get(run.select, math.nan)  # the program of a metric may have failed
    sign = -1 if run.select == "loss" else 1
    better = (
        best.value is None or sign * value > sign * best.value or (math.isnan(best.value) and not math.isnan(value))
    )
    run.state.best = Best(step, value, 0) if better else replace(best, waited=best.waited + 1)
    return better


def _patience_spent(run: Run) -> bool:
    patience = run.recipe.train.patience
    return patience is not None and run.state.best.waited >= patience


def _save(run: Run) -> None:
    if not run.main:
        return
    scaler = run.trainee.accelerator.scaler
    run.state.scaler = {} if scaler is None else {k: v for k, v in scaler.state_dict().items() if v is not None}
    run.state.plan, run.state.machine = plan_of(run), machine_of(run)
    names = trainable_parameters(run.prepared.model)
    pair = (_inner(run.trainee.optimizer), names)
    save_checkpoint(run.directory, run.state, trainable_state(run.prepared.model), run.provenance, pair)


def _finish(run: Run, signals: StopSignals) -> None:
    """Publish the selected adapter, evaluate it on every validation split, and write the report."""
    step, state = _selected(run)
    load_trainable(run.prepared.model, state, "the selected checkpoint")
    evaluations: list[Evaluation] = []
    final: list[Evaluation] = []
    for data in run.validation:
        of_step, found = run.latest.get(data.name, (None, None))
        if found is None or of_step != step:
            with _stoppable(run, signals, save=False):  # the last step is saved; the model holds the selected one now
                found = _evaluate(run, data, signals)
        evaluations.append(found)
    if not run.main:
        return
    for data, found in zip(run.validation, evaluations, strict=True):
        whole = found.complete(run.recipe.task, data.rows, run.progress)
        final.append(whole)
        _tell(run, "final", step, len(data.rows), whole)
        write_records(run.directory / "predictions" / f"{whole.split}.jsonl", whole.records)
    methods, published = publish(run.prepared.methods, state)
    save_adapter(run.directory / ADAPTER, published, run.provenance.of_methods(methods))
    write_report(run.directory, report_of(run, final))


def _selected(run: Run) -> tuple[int, dict[str, Tensor]]:
    """The published step and its adapter."""
    step = run.state.best.step
    if step is None or step == run.state.step:
        return run.state.step, trainable_state(run.prepared.model)
    return step, read_adapter(run.directory / CHECKPOINTS / f"step-{step}" / ADAPTER)[0]

"""A whole run: from a recipe to a run directory."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from lorakit.checkpoint import ADAPTER, CHECKPOINTS, RECIPE, read_adapter, save_adapter
from lorakit.data.batches import Limit, step_rows, steps_per_epoch
from lorakit.errors import LorakitError
from lorakit.evaluate import Evaluation, Part, evaluate
from lorakit.lock import DirectoryLock
from lorakit.meter import Meter
from lorakit.methods.base import publish
from lorakit.progress import Bar, Progress
from lorakit.recipe import Recipe
from lorakit.records import write_records
from lorakit.report import shown, write_report
from lorakit.splits import SplitData
from lorakit.surgery import load_trainable, trainable_parameters, trainable_state
from lorakit.training.audit import TOO_MANY_SKIPPED, Watch, check_written, named_rows
from lorakit.training.begin import begin, check_same, own_directory, with_revision
from lorakit.training.interrupt import Interrupted, StopEvaluation, StopSignals
from lorakit.training.loop import Step, optimise
from lorakit.training.optim import rate, warmup_steps
from lorakit.training.rehearsal import rehearse, rehearse_save
from lorakit.training.setup import Run, machine_of, plan_of, report_of, set_up
from lorakit.training.state import Best, Moments, newest_checkpoint, optimizer_state, save_checkpoint
from lorakit.training.track import tracking
from lorakit.training.warm_start import Source, read_source, warm_start
from lorakit.world import join


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
    world = join()
    with own_directory(out, progress, world, resume=resume, overwrite=overwrite) as lock:
        recipe, source = world.from_first(lambda: _start(recipe, out, resume))
        return _train(recipe, out, progress, lock, source, resume)


def _start(recipe: Recipe, out: Path, resume: bool) -> tuple[Recipe, Source | None]:
    """The recipe, of a continued run with the commit that it began with; and the run to start from, if any."""
    if resume and (out / RECIPE).is_file():
        recipe = with_revision(recipe, out / RECIPE)
        check_same(out / RECIPE, recipe, given=True)  # and once more when the base has filled in the rest
    return recipe, read_source(recipe, out, resume)


def _train(
    recipe: Recipe, out: Path, progress: Progress, lock: DirectoryLock, source: Source | None, resume: bool
) -> Run:
    with Meter() as meter:
        run = set_up(recipe, out, progress, meter)
        run.history.guard = lock.check
        if source is not None:
            run.state.init_from = warm_start(source, run.prepared, progress)
        limit = run.trainee.limit
        rehearse(run)
        with StopSignals() as signals:  # before, nothing has been done that would have to be saved
            rehearse_save(run)  # before: `begin` removes the run that is there
            begin(run, resume)
            with tracking(run):
                if run.state.step == 0:  # a resumed run has its plan, and its line, from before
                    _tell_plan(run, limit)
                _steps(run, signals)
                _finish(run, signals)
    return run


def _steps(run: Run, signals: StopSignals) -> None:
    train, data = run.recipe.train, run.train.encoded
    warmup = warmup_steps(train, data.lengths, run.total)
    rates = [rate(train, step, warmup, run.total) for step in range(run.total)]
    if not run.state.evaluated:
        done = run.state.step
        ends_epoch = done % steps_per_epoch(len(data), train.batch_size) == 0
        _evaluate_and_save(run, done, ends_epoch, signals, last=done == run.total)
        run.state.evaluated = True  # of a run that is longer now, its end of before may not be due any more
    if _patience_spent(run):
        run.progress.say(f"{run.recipe.train.patience} evaluations without a better one: nothing more is trained")
        return
    run.trainee.model.train()
    run.trainee.watch = _watch(run)
    rows = step_rows(train.seed, len(data), train.batch_size, run.total, run.state.step)
    with run.progress.bar("train", run.total, "steps", run.state.step) as bar:
        began, limit = time.monotonic(), run.trainee.limit
        for step in optimise(run.trainee, data, rows, train, rates):
            run.state.step, run.state.tokens = step.number, run.state.tokens + step.tokens
            run.state.seconds += time.monotonic() - began
            limit = _tell_plan(run, limit)
            _log(run, step, bar)
            _count_skipped(run, step)
            last = step.number == run.total
            _evaluate_and_save(run, step.number, step.ends_epoch, signals, last)
            if _patience_spent(run):
                run.progress.say(f"stopped after step {step.number}: {train.patience} evaluations without a better one")
                return
            if signals.asked(run.world) and not last:
                _stop(run, signals)
            began = time.monotonic()


def _watch(run: Run) -> Watch:
    model, base = run.prepared.model, run.prepared.file_names
    trained = trainable_parameters(model)
    added = [name for name in trained if name not in base and not run.prepared.in_head(name)]
    return Watch(model, added, [name for name in trained if name in base], run.progress.say)


def _count_skipped(run: Run, step: Step) -> None:
    """Keep the books of steps that changed nothing; too many in a row end the run.

    The counts are part of a checkpoint, so that a run that was stopped in between ends at the same step.

    Raises:
        LorakitError: Says which rows it was at, and what is saved.
    """
    state = run.state
    if not step.skipped:
        state.skipped_in_a_row = 0
        return
    state.skipped, state.skipped_in_a_row = state.skipped + 1, state.skipped_in_a_row + 1
    run.history.write("skip", step.number, rows=[row + 1 for row in step.skipped])
    if state.skipped_in_a_row >= TOO_MANY_SKIPPED:
        saved = run.world.from_first(lambda: newest_checkpoint(run.directory))
        what = "loss" if not math.isfinite(step.loss) else "gradient's norm"
        raise LorakitError(
            f"step {step.number}: the {what} is {step.loss if what == 'loss' else step.grad_norm}, and "
            f"{state.skipped_in_a_row} steps in a row had to be skipped; start again with a lower train.lr, or with "
            f"bfloat16 or float32. What is good so far (for eval and merge, with --checkpoint): "
            f"{saved[0].name if saved else 'nothing yet'}. "
            f"This step's rows, counted from 1: {named_rows(step.skipped)} of {run.train.name}; "
            f"all of them: the lines of kind skip in {run.history.file}"
        )


def _tell_plan(run: Run, before: Limit) -> Limit:
    """Note that the micro-batches have changed: with dropout, the masks change with them."""
    if run.trainee.limit != before:
        run.history.write("plan", run.state.step, **plan_of(run))
        run.progress.say(f"step {run.state.step}: memory ran out; now {run.trainee.limit.rows} rows per forward pass")
    return run.trainee.limit


def _log(run: Run, step: Step, bar: Bar) -> None:
    speed = run.state.tokens / max(run.state.seconds, 1e-9)
    count = run.state.skipped + bool(step.skipped)
    skipped = {"skipped": f"{count:,}"} if count else {}
    bar.advance(1, loss=f"{step.loss:.4f}", lr=f"{step.lr:.2e}", tok_s=f"{speed:,.0f}", **skipped)
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

    def leave_if_asked() -> None:
        if signals.asked(run.world):
            raise StopEvaluation

    watched, task = _Watched(run.progress, leave_if_asked), run.recipe.task
    quick = evaluate(run.subject, task, data, run.recipe.generate, watched, Part(limit, quick=True))
    found = quick
    if run.select in task.slow_metrics:  # not in every process: it starts Java, and asks nobody meanwhile
        shown_in = watched if run.world.size == 1 else run.progress
        found = run.world.from_first(lambda: quick.complete(task, data.first(limit).rows, shown_in))
    elif run.world.size > 1:
        found = replace(quick, metrics=run.world.from_first(lambda: quick.metrics))
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
    assert signals.agreed is not None
    if save:
        _save(run)
    raise Interrupted(
        signals.agreed,
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
    if not (run.main or run.world.sharded):
        run.world.from_first(lambda: None)  # the first one's error is everybody's
        return
    names = trainable_parameters(run.prepared.model)
    adapter, moments = trainable_state(run.prepared.model), optimizer_state(run.trainee.plain_optimizer, names)
    run.world.from_first(lambda: _write(run, adapter, moments))


def _write(run: Run, adapter: dict[str, Tensor], moments: Moments) -> None:
    scaler = run.trainee.accelerator.scaler
    run.state.scaler = {} if scaler is None else {k: v for k, v in scaler.state_dict().items() if v is not None}
    run.state.plan, run.state.machine = plan_of(run), machine_of(run)
    run.history.flush()  # the lines before the checkpoint that counts on them
    save_checkpoint(run.directory, run.state, adapter, run.provenance, moments)


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
    check_written(run.directory / ADAPTER, published)
    write_report(run.directory, report_of(run, final))


def _selected(run: Run) -> tuple[int, dict[str, Tensor]]:
    """The published step and its adapter."""
    step = run.state.best.step
    if step is None or step == run.state.step:
        return run.state.step, trainable_state(run.prepared.model)
    return step, run.world.from_first(lambda: read_adapter(run.directory / CHECKPOINTS / f"step-{step}" / ADAPTER)[0])

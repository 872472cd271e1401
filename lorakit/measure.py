"""`plan --measure`: a few real steps and an evaluation in a temporary run, to tell how long the whole one will take."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from lorakit.data.batches import StepRows, step_rows, steps_per_epoch
from lorakit.evaluate import evaluate
from lorakit.meter import Meter
from lorakit.plan import Plan
from lorakit.progress import Progress
from lorakit.training.loop import optimise
from lorakit.training.optim import rate, warmup_steps
from lorakit.training.setup import Run, set_up

STEPS = 20
WARM = 3
"""Steps at the beginning that are slower than the rest, and not counted."""
ROWS = 64
"""Of the first validation split, evaluated to tell how long an evaluation takes."""


@dataclass(frozen=True)
class Probe:
    """What a few steps told.

    Args:
        steps: How many were timed.
        seconds_per_step: Their mean.
        tokens_per_second: Without the padding.
        training_seconds: Of all steps of the run.
        evaluation_seconds: Of all evaluations during it, and of the last one, on every validation split.
        evaluations: How many there are during the run.
        predicted_bytes: The plan's.
        measured_bytes: Memory in use above what the imports take; None where nobody counts.
    """

    steps: int
    seconds_per_step: float
    tokens_per_second: float
    training_seconds: float
    evaluation_seconds: float
    evaluations: int
    predicted_bytes: int
    measured_bytes: int | None


def measure(plan: Plan, progress: Progress) -> Probe:
    """Train the first steps of a recipe on its real rows, evaluate some, and throw the result away.

    Raises:
        LorakitError: The base or the rows are not there, or the run fails.
    """
    with tempfile.TemporaryDirectory(prefix="lorakit-plan-") as scratch, Meter() as meter:
        run = set_up(plan.recipe, Path(scratch) / "run", progress, meter)
        seconds, tokens, steps = _train(run)
        sample = run.validation[0].first(ROWS)
        began = time.monotonic()
        evaluate(run.subject, run.recipe.task, sample, run.recipe.generate, progress)
        per_row = (time.monotonic() - began) / len(sample.rows)
        during, rows = _evaluations(run)
        return Probe(
            steps,
            seconds / steps,
            tokens / seconds,
            run.total * seconds / steps,
            rows * per_row,
            during,
            plan.phases[0].total,
            meter.above_imports(),
        )


def _train(run: Run) -> tuple[float, int, int]:
    """(seconds, tokens, steps) of the steps that were timed: those after the warm ones, where there are any."""
    train, data = run.recipe.train, run.train.encoded
    warmup = warmup_steps(train, data.lengths, run.total)
    rates = [rate(train, step, warmup, run.total) for step in range(run.total)]
    run.trainee.model.train()
    rows = _steps(run)
    skipped = WARM if len(rows) > WARM else 0
    seconds, tokens = 0.0, 0
    with run.progress.bar("measure", len(rows), "steps") as bar:
        began = time.monotonic()
        for done, step in enumerate(optimise(run.trainee, data, rows, train, rates), start=1):
            now = time.monotonic()
            if done > skipped:
                seconds, tokens = seconds + now - began, tokens + step.tokens
            began = now
            bar.advance(1)
    return seconds, tokens, len(rows) - skipped


def _steps(run: Run) -> list[StepRows]:
    """The first steps, and before them that of the first epoch which needs the most memory."""
    train, lengths = run.recipe.train, run.train.encoded.lengths
    epoch = min(run.total, steps_per_epoch(len(lengths), train.batch_size))
    every = list(step_rows(train.seed, len(lengths), train.batch_size, epoch))
    longest = max(every, key=lambda step: int(lengths[step.rows].max()))
    return [longest, *(step for step in every if step is not longest)][:STEPS]


def _evaluations(run: Run) -> tuple[int, int]:
    """How often a run evaluates, and on how many rows in all: the last time on every validation split."""
    train, per_epoch = run.recipe.train, steps_per_epoch(len(run.train.encoded), run.recipe.train.batch_size)
    every = per_epoch if train.eval_every == "epoch" else train.eval_every
    during = -(-run.total // every)
    each = len(run.validation[0].first(train.eval_limit).rows)
    return during, during * each + sum(len(data.rows) for data in run.validation)

"""Lorakit's own loop, some steps at a time."""

import tempfile
from pathlib import Path

from benchmarks.turns import Turns
from benchmarks.worker import Channel
from lorakit.recipe import Recipe


def train(recipe: Recipe, channel: Channel) -> None:
    """The real loop on what the real set-up makes; nothing is evaluated or saved."""
    from lorakit.data.batches import step_rows
    from lorakit.progress import Silent
    from lorakit.training.loop import optimise
    from lorakit.training.optim import rate, warmup_steps
    from lorakit.training.setup import set_up

    with tempfile.TemporaryDirectory() as scratch:
        run = set_up(recipe, Path(scratch) / "run", Silent())
        train, data = run.recipe.train, run.train.encoded
        warmup = warmup_steps(train, data.lengths, run.total)
        rates = [rate(train, step, warmup, run.total) for step in range(run.total)]
        run.trainee.model.train()
        steps = step_rows(train.seed, len(data), train.batch_size, run.total)
        turns = Turns(channel, run.prepared.model)
        for step in optimise(run.trainee, data, steps, train, rates):
            turns.done(step.loss, step.tokens)

"""A rehearsal before the first step: the heaviest batch, an evaluation and a save. What must fail, fails at once.

It leaves no trace: no step is made, gradients and random numbers are put back, nothing is logged, and what is written
is removed. Only micro-batches for which memory ran out stay cut.
"""

import random
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from lorakit.checkpoint import CHECKPOINTS
from lorakit.data.batches import Limit, by_length
from lorakit.data.collate import collate
from lorakit.errors import LorakitError
from lorakit.evaluate import BATCH, Part, evaluate
from lorakit.lengths import cut_steps
from lorakit.packing import packing_in
from lorakit.progress import Silent
from lorakit.runtime import derive, disk_errors, size_text
from lorakit.splits import SplitData
from lorakit.surgery import trainable_parameters, trainable_state
from lorakit.training.eight_bit import first_state
from lorakit.training.setup import Run
from lorakit.training.state import REHEARSAL, newest_checkpoint, save_checkpoint
from lorakit.world import ALONE

_NEW_TOKENS_ON_CPU = 2
_CHECKPOINTS_AT_ONCE = 3
"""The best, the newest, and the one that is being written."""


def rehearse(run: Run) -> None:
    """Train on the heaviest micro-batch and evaluate the longest rows, with no step made.

    On a GPU the evaluation is of a whole batch, with its texts generated to the end; on a CPU, where memory does not
    run out but time does, of no more tokens than the micro-batch has, with two generated per text.

    Raises:
        LorakitError: Not even a single row fits, or the evaluation cannot be done.
    """
    with _untouched(run):
        tokens = _train(run)
        _evaluate(run, tokens)


@contextmanager
def _untouched(run: Run) -> Iterator[None]:
    """Put random numbers, the model's mode and the gradients back."""
    device, was_training = run.world.device, run.prepared.model.training
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (other people's code may draw from it)
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(derive(run.recipe.train.seed, "rehearsal"))
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        run.trainee.model.train(was_training)
        run.trainee.optimizer.zero_grad(set_to_none=True)


def _train(run: Run) -> int:
    """Forward and backward over the heaviest micro-batch, halved as long as memory runs out; returns its tokens.

    Devices agree on the halving: without DDP's wrapper nothing is sent meanwhile, so that one may fail alone.
    """
    trainee, lengths = run.trainee, run.train.encoded.lengths
    while True:
        steps = cut_steps(run.recipe.train, lengths, run.total, trainee.limit, run.world.size)
        rows = max((group for step in steps for group in step), key=partial(_weight, run))
        failed = False
        try:
            _pass(run, rows, accumulating=any(len(step) > 1 for step in steps))
        except torch.OutOfMemoryError:
            if run.world.sharded:  # the others are in the middle of a forward pass that needs this process
                raise
            failed = True
        trainee.optimizer.zero_grad(set_to_none=True)
        if not run.world.most(failed):
            return _weight(run, rows)
        torch.cuda.empty_cache()
        if len(rows) == 1:
            raise LorakitError(
                f"rehearsal: out of memory with one row of {lengths[rows].max():,} tokens; try "
                "train.gradient_checkpointing, model.dtype: bfloat16, or a smaller task.max_length"
            )
        trainee.limit = Limit(rows=len(rows) // 2)


def _weight(run: Run, rows: list[int]) -> int:
    """Tokens that the model's blocks compute of a micro-batch."""
    lengths = run.train.encoded.lengths[rows]
    return int(lengths.sum() if packing_in(run.prepared.model) else len(rows) * lengths.max())


def _pass(run: Run, rows: list[int], accumulating: bool) -> None:
    trainee, data = run.trainee, run.train.encoded
    device = run.world.device
    # What a later step finds there already: two moments for each trained number, and gradients of micro-batches before.
    later: list[Tensor] = []
    if device.type == "cuda":
        later = [torch.empty_like(p) for p in trainee.parameters for _ in range(3 if accumulating else 2)]
    model = trainee.model if run.world.sharded else run.prepared.model
    model.train()
    batch = collate([data.items[row] for row in rows], trainee.pad_id).to(device)
    with trainee.accelerator.autocast():
        loss, _ = trainee.objective(model, batch)
    trainee.accelerator.backward(loss / int(data.targets[rows].sum()))
    del later
    if not torch.isfinite(loss):
        run.progress.say(
            f"warning: before the first step the loss of the longest rows is {float(loss.detach())}: steps with them "
            "are skipped; try train.precision: bfloat16 or float32"
        )


def _evaluate(run: Run, tokens: int) -> None:
    on_cpu, settings = run.on_cpu, run.recipe.generate
    data = max(run.validation, key=lambda split: int(split.encoded.lengths.max()))
    rows = by_length(data.encoded.lengths, BATCH)[0]
    if on_cpu:
        rows = rows[: max(1, tokens // int(data.encoded.lengths[rows].max()))]
        if settings is not None:
            new = min(_NEW_TOKENS_ON_CPU, settings.max_new_tokens)
            settings = settings.model_copy(update={"max_new_tokens": new})
    subject = run.subject if run.world.sharded else replace(run.subject, world=ALONE)  # all rehearse, each for itself
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # metrics of so few rows may be undefined, and nobody reads them
        found = evaluate(subject, run.recipe.task, part_of(data, rows), settings, Silent(), Part(quick=True))
    for line in subject.room.notes():
        run.progress.say(line)
    assert found.predictions


def part_of(data: SplitData, items: list[int]) -> SplitData:
    """Some items of a split, as a split of their own."""
    chosen = [data.encoded.items[index] for index in items]
    encoded = replace(data.encoded, items=[replace(item, row=new) for new, item in enumerate(chosen)])
    return replace(data, rows=[data.rows[item.row] for item in chosen], encoded=encoded)


def rehearse_save(run: Run) -> None:
    """Write a checkpoint as large as the run's will be, read it back, and remove it; all processes must call.

    Raises:
        LorakitError: The disk is full, read-only, or gives back other bytes.
    """
    adapter = trainable_state(run.prepared.model)
    run.world.from_first(lambda: _save(run, adapter))


def _save(run: Run, adapter: dict[str, Tensor]) -> None:
    directory = run.directory / REHEARSAL
    names = trainable_parameters(run.prepared.model)
    eight_bit = run.recipe.train.optimizer.name == "adamw8bit"
    moments = {f"{name}/{key}": value for name in names for key, value in first_state(adapter[name], eight_bit).items()}
    run.history.guard()
    counters = {name: {"step": 0.0} for name in names}
    with disk_errors(directory):
        shutil.rmtree(directory, ignore_errors=True)  # that of a process that was killed
        try:
            saved = save_checkpoint(directory, replace(run.state), adapter, run.provenance, (moments, counters))
            if newest_checkpoint(directory) is None:
                raise LorakitError(f"{saved}: what was just written cannot be read back; the disk is at fault")
            size = sum(file.stat().st_size for file in saved.iterdir())
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        shutil.rmtree(directory)
        there = sum(file.stat().st_size for file in (run.directory / CHECKPOINTS).rglob("*") if file.is_file())
        needed, free = _CHECKPOINTS_AT_ONCE * size - there, shutil.disk_usage(run.directory).free
    if free < needed:
        run.progress.say(
            f"warning: {run.directory}: {size_text(free)} free, and the run's checkpoints may take {size_text(needed)} "
            "more"
        )

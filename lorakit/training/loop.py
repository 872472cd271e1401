"""The training loop: it yields a step at a time, and the caller decides what to log, evaluate and save."""

import math
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.data.batches import Limit, StepRows, micro_batches
from lorakit.data.collate import collate
from lorakit.data.items import Encoded
from lorakit.errors import LorakitError
from lorakit.objective import Objective
from lorakit.runtime import derive
from lorakit.schedule import Train
from lorakit.surgery import whole
from lorakit.training.audit import TELLING, Watch
from lorakit.world import ALONE, World


@dataclass(frozen=True)
class Step:
    """What one optimiser step did.

    Args:
        number: From 1.
        epoch: From 0.
        ends_epoch: Whether it is the epoch's last.
        loss: Mean over the step's targets, before the update.
        lr: The rate that was used.
        grad_norm: Of all trained parameters together, before clipping.
        targets: Learned tokens, or rows, over all devices.
        tokens: Tokens read, padding not counted, over all devices.
        skipped: Of a step whose loss or gradient was no number, and which changed nothing: the indices of its rows.
    """

    number: int
    epoch: int
    ends_epoch: bool
    loss: float
    lr: float
    grad_norm: float
    targets: int
    tokens: int
    skipped: tuple[int, ...] = ()


@dataclass
class Trainee:
    """What is trained, and with what.

    Args:
        accelerator: Accelerate's: devices, precision, collective operations.
        model: The prepared (wrapped) model.
        optimizer: The prepared optimiser.
        objective: The task's loss.
        parameters: What is trained.
        pad_id: The tokenizer's padding token.
        limit: Of a micro-batch; on CUDA halved when memory runs out.
        world: The processes, to agree on that.
        watch: Looks at the first steps.
    """

    accelerator: Any
    model: Any
    optimizer: Any
    objective: Objective
    parameters: list[nn.Parameter]
    pad_id: int
    limit: Limit
    world: World = ALONE
    watch: Watch | None = None

    @property
    def plain_optimizer(self) -> torch.optim.Optimizer:
        """Without Accelerate's wrapping."""
        inner: torch.optim.Optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return inner


def optimise(
    trainee: Trainee, data: Encoded, steps: Iterable[StepRows], train: Train, rates: list[float]
) -> Iterator[Step]:
    """Train, one optimiser step for each of `steps`; one without a finite loss and gradient is skipped.

    All devices skip alike: the loss is summed over them, and the norm is that of the summed gradient.

    Args:
        trainee: Model, optimiser and devices.
        data: The training split.
        steps: The rows of each step.
        train: The recipe's section.
        rates: Learning rate of every step of the run.

    Raises:
        LorakitError: A single row does not fit the GPU's memory, or an audit finds that something is not trained.
    """
    lengths, targets = data.lengths, data.targets
    for rows in steps:
        lr = rates[rows.number - 1]
        for group in trainee.optimizer.param_groups:
            group["lr"] = lr * group["lr_ratio"]
        count = int(targets[rows.rows].sum())
        loss = _gradient_with_room(trainee, data, rows, lengths, count, train.seed)
        norm = _clip(trainee, train.max_grad_norm)
        skipped = not (math.isfinite(loss) and math.isfinite(norm))
        _update(trainee, skipped, telling=lr >= train.lr * TELLING)
        tokens = int(lengths[rows.rows].sum())
        whose = tuple(data.items[i].row for i in rows.rows) if skipped else ()
        yield Step(rows.number, rows.epoch, rows.ends_epoch, loss, lr, norm, count, tokens, whose)


def _update(trainee: Trainee, skipped: bool, telling: bool) -> None:
    """The optimiser's step, unless it is skipped; either way the gradient is used up.

    Args:
        trainee: Model and optimiser.
        skipped: Whether the gradient is no number.
        telling: Whether the rate is so large that what is trained must move.
    """
    watch = trainee.watch if telling else None
    if not skipped:
        if watch is not None:
            watch.before()
        trainee.optimizer.step()
        if watch is not None:
            watch.after()
    elif trainee.accelerator.scaler is not None:
        trainee.accelerator.scaler.update()  # float16's scale was too large: halve it
    trainee.optimizer.zero_grad(set_to_none=True)


def _gradient_with_room(trainee: Trainee, data: Encoded, rows: StepRows, lengths: Any, count: int, seed: int) -> float:
    """The step's gradient; where the GPU's memory runs out the micro-batch is halved and the step done again."""
    while True:
        # Masks depend on the seed and the step alone, so a step that is done again, or resumed, draws the same.
        torch.manual_seed(derive(seed, "dropout", rows.number, trainee.accelerator.process_index))
        world = trainee.accelerator.num_processes
        plans = micro_batches(rows.rows.tolist(), lengths, trainee.limit, world)
        largest = max(len(group) for plan in plans for group in plan)
        try:
            return _accumulate(trainee, data, plans[trainee.accelerator.process_index], count, rows.rows[0])
        except _Agreed:
            too_large = largest <= 1
        except torch.OutOfMemoryError as error:
            if largest <= 1 or world > 1:  # the others are in the middle of an exchange, and cannot be told
                raise _does_not_fit(rows.number, largest) from error
            too_large = False
        if too_large:
            raise _does_not_fit(rows.number, largest)
        trainee.limit = Limit(rows=largest // 2)
        # Only here is the failed pass's graph, which the error held, gone.
        trainee.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()


class _Agreed(Exception):
    """Memory ran out in some process, and all know."""


def _does_not_fit(step: int, rows: int) -> LorakitError:
    return LorakitError(
        f"step {step}: out of memory with {rows} rows per forward pass; go on with --resume and a smaller "
        "train.micro_batch_size or train.gradient_checkpointing=true, or start again with a smaller task.max_length"
    )


def _accumulate(trainee: Trainee, data: Encoded, plan: list[list[int]], count: int, stand_in: int) -> float:
    """Backward over the micro-batches: each adds its summed loss divided by the whole step's target count.

    Of several processes each works alone until the last micro-batch, the smallest, in which gradients are exchanged.
    Before that they tell one another whether memory ran out. In parts of a model (fsdp) they never work alone. A
    process without rows takes part with one of the step's, times zero.
    """
    accelerator, world = trainee.accelerator, trainee.accelerator.num_processes
    total: Tensor = torch.zeros((), device=accelerator.device)
    failed = False
    for index, group in enumerate(plan):
        last = index == len(plan) - 1
        if last and index and trainee.world.most(failed):
            raise _Agreed
        if failed:
            continue
        try:
            with nullcontext() if last else accelerator.no_sync(trainee.model):
                batch = collate([data.items[i] for i in group or [stand_in]], trainee.pad_id).to(accelerator.device)
                with accelerator.autocast():
                    loss, _ = trainee.objective(trainee.model, batch)
                # DDP and FSDP average over devices, hence the factor; an empty micro-batch adds nothing.
                accelerator.backward(loss * (world / count if group else 0.0))
            total += loss.detach() if group else 0.0
        except torch.OutOfMemoryError:
            if last or world == 1 or trainee.world.sharded:
                raise
            failed = True
    if world > 1:
        total = accelerator.reduce(total, reduction="sum")
    return float(total) / count


def _clip(trainee: Trainee, limit: float | None) -> float:
    """Unscale (fp16), measure and clip the gradient; returns its norm before clipping."""
    norm = trainee.accelerator.clip_grad_norm_(trainee.parameters, math.inf if limit is None else limit)
    return float(whole(norm))  # of a sharded model, all parts'

"""Who trains: lorakit's own loop, and PEFT with transformers' Trainer as people use it; each for some steps at a time.

Same base, same initial tensors, same rows in each step, same rates; the caller's recipe has no dropout, so that the
losses must be the same.
"""

import gc
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.memory import Peak
from benchmarks.worker import Channel
from lorakit.recipe import Recipe, load

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from lorakit.splits import SplitData


class Stop(Exception):
    """Nobody will order anything any more."""


class Turns:
    """Lets the caller's loop go on for as many steps as were ordered, and reports them.

    Args:
        channel: To the parent.
        model: Loaded, and not yet trained: memory is counted above it.
    """

    def __init__(self, channel: Channel, model: Any) -> None:
        self._channel = channel
        self._losses: list[Any] = []
        self._tokens = self._left = 0
        self._peak = Peak(model)
        channel.send(ready=True)
        self._wait()

    def done(self, loss: Any, tokens: int) -> None:
        """A step is over; returns when the next one may begin.

        Args:
            loss: Mean over the step's targets; a tensor is only read at the end of the turn, so as not to wait for it.
            tokens: Read, padding not counted.

        Raises:
            Stop: There will be no next one.
        """
        self._losses.append(loss)
        self._tokens += tokens
        self._left -= 1
        if self._left:
            return
        losses = [float(one) for one in self._losses]
        _synchronize()
        seconds = time.perf_counter() - self._began
        self._channel.send(seconds=seconds, tokens=self._tokens, losses=losses, peak_bytes=self._peak.bytes())
        self._losses, self._tokens = [], 0
        self._wait()

    def _wait(self) -> None:
        order = self._channel.receive()
        if order is None:
            raise Stop
        self._left = int(order["steps"])
        self._began = time.perf_counter()


def _synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def lorakit(recipe: Recipe, channel: Channel) -> None:
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


def peft(recipe: Recipe, channel: Channel) -> None:
    """PEFT and the Trainer, each batch padded to its longest row."""
    _trainer(recipe, channel, padded_to=None)


def peft_padded(recipe: Recipe, channel: Channel) -> None:
    """PEFT and the Trainer, each row padded to 512 tokens, as the authors' scripts for GLUE do."""
    _trainer(recipe, channel, padded_to=512)


CONTENDERS: dict[str, Callable[[Recipe, Channel], None]] = {
    "lorakit": lorakit,
    "peft": peft,
    "peft-padded": peft_padded,
}


def _trainer(recipe: Recipe, channel: Channel, padded_to: int | None) -> None:
    import torch
    from transformers import Trainer, TrainerCallback

    model, data, tokenizer = _theirs(recipe)
    size, total = recipe.train.batch_size, recipe.train.steps
    assert total is not None, "benchmarks count steps"
    items, tokens = _in_order(recipe, data)

    class Watched(Trainer):
        """Keeps what every step returns."""

        def training_step(self, *given: Any, **named: Any) -> "torch.Tensor":
            self.last_loss: torch.Tensor = super().training_step(*given, **named)
            return self.last_loss

    with tempfile.TemporaryDirectory() as scratch:
        collator = _collator(recipe, tokenizer, padded_to)
        trainer = Watched(model, _arguments(recipe, scratch, total), data_collator=collator, train_dataset=items)
        turns: list[Turns] = []

        class Pace(TrainerCallback):
            def on_train_begin(self, *_: Any, **__: Any) -> None:
                turns.append(Turns(channel, model))

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                step = state.global_step
                turns[0].done(trainer.last_loss, sum(tokens[(step - 1) * size : step * size]))

        trainer.add_callback(Pace())
        trainer.train()


def _theirs(recipe: Recipe) -> "tuple[PeftModel, SplitData, Any]":
    """PEFT's model with lorakit's initial tensors, lorakit's rows, and the tokenizer."""
    import torch

    from benchmarks.peft_side import copy_initial, peft_model
    from lorakit.checkpoint import head_of
    from lorakit.model import prepare, torch_dtype
    from lorakit.progress import Silent
    from lorakit.splits import read_split

    prepared = prepare(recipe.model, recipe.method, head_of(recipe), recipe.train.seed)
    data = read_split(recipe.task, "train", prepared, Silent())
    model = peft_model(recipe, prepared, torch_dtype(recipe.model, prepared.located.directory))
    copy_initial(prepared, model)
    tokenizer = prepared.tokenizer
    del prepared
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return model, data, tokenizer


def _in_order(recipe: Recipe, data: "SplitData") -> tuple[list[dict[str, Any]], list[int]]:
    """Features in the order in which lorakit reads the rows, and how many tokens each has."""
    from lorakit.data.batches import step_rows

    train = recipe.train
    assert train.steps is not None and train.steps * train.batch_size <= len(data.encoded), "too few rows for one epoch"
    order = [i for step in step_rows(train.seed, len(data.encoded), train.batch_size, train.steps) for i in step.rows]
    features = []
    for index in order:
        item = data.encoded.items[index]
        one: dict[str, Any] = {"input_ids": item.input_ids.tolist(), "attention_mask": [1] * len(item.input_ids)}
        if item.token_type_ids is not None:
            one["token_type_ids"] = item.token_type_ids.tolist()
        one["labels"] = item.labels.tolist()
        if recipe.task.kind == "regression":
            one["labels"] = float(one["labels"])
        features.append(one)
    return features, [len(one["input_ids"]) for one in features]


def _collator(recipe: Recipe, tokenizer: Any, padded_to: int | None) -> Any:
    from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding

    auto: Any = DataCollatorForSeq2Seq if recipe.task.kind == "generation" else DataCollatorWithPadding
    return auto(tokenizer, padding="longest" if padded_to is None else "max_length", max_length=padded_to)


def _arguments(recipe: Recipe, scratch: str, total: int) -> Any:
    """The recipe's settings in the Trainer's words."""
    import numpy as np
    import torch
    from transformers import TrainingArguments

    from lorakit.evaluate import resolve_precision
    from lorakit.training.optim import warmup_steps

    train, cuda = recipe.train, torch.cuda.is_available()
    assert train.warmup is None or train.warmup.tokens is None, "give the warm-up in steps or as a ratio"
    precision = resolve_precision(recipe, torch.device("cuda" if cuda else "cpu"))
    # Named only where asked for: newer releases have another word for it, and warn of this one.
    checkpointing: dict[str, Any] = {"gradient_checkpointing": True} if train.gradient_checkpointing else {}
    schedules = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
    return TrainingArguments(
        output_dir=scratch,
        use_cpu=not cuda,
        max_steps=total,
        per_device_train_batch_size=train.batch_size,
        learning_rate=train.lr,
        lr_scheduler_type=schedules[train.schedule],
        warmup_steps=warmup_steps(train, np.zeros(0, np.int64), total),
        weight_decay=train.weight_decay,
        adam_beta1=train.optimizer.betas[0],
        adam_beta2=train.optimizer.betas[1],
        adam_epsilon=train.optimizer.eps,
        max_grad_norm=train.max_grad_norm or 0.0,
        bf16=precision == "bfloat16",
        fp16=precision == "float16",
        seed=train.seed,
        train_sampling_strategy="sequential",
        dataloader_pin_memory=cuda,
        remove_unused_columns=False,
        label_names=["labels"],
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **checkpointing,
    )


def work(job: dict[str, Any], channel: Channel) -> None:
    """Train as a contender for as many steps as the parent orders at a time.

    Args:
        job: `contender`, and `recipe` with its `overrides`.
        channel: Orders `{"steps": n}`; answers `ready` once, then seconds, tokens, losses and peak_bytes per order.
    """
    recipe = load(Path(job["recipe"]), job["overrides"])
    try:
        CONTENDERS[job["contender"]](recipe, channel)
    except Stop:
        return

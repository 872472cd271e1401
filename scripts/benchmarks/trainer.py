"""PEFT with transformers' Trainer, as people use it."""

import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks.turns import Turns
from benchmarks.worker import Channel
from lorakit.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from lorakit.model import Prepared


def peft(recipe: Recipe, channel: Channel) -> None:
    """PEFT and the Trainer, each batch padded to its longest row."""
    train(recipe, channel, _peft_model(recipe))


def peft_padded(recipe: Recipe, channel: Channel) -> None:
    """PEFT and the Trainer, each row padded to 512 tokens, as the authors' scripts for GLUE do."""
    train(recipe, channel, _peft_model(recipe), padded_to=512)


def _peft_model(recipe: Recipe) -> "Callable[[Prepared], PeftModel]":
    from benchmarks.peft_side import peft_model
    from lorakit.model import torch_dtype

    return lambda prepared: peft_model(recipe, prepared, torch_dtype(recipe.model, prepared.located.directory))


def train(
    recipe: Recipe, channel: Channel, build: "Callable[[Prepared], PeftModel]", padded_to: int | None = None
) -> None:
    """The Trainer on lorakit's rows in lorakit's order.

    Args:
        recipe: Counts its steps.
        channel: To the parent.
        build: Makes PEFT's model of the same base; its initial tensors are copied here.
        padded_to: A number of tokens, or None: each batch to its longest row.
    """
    import torch
    from transformers import Trainer, TrainerCallback

    from benchmarks.peft_side import copy_initial
    from benchmarks.same_start import features, let_go, read

    prepared, data = read(recipe)
    model, tokenizer = build(prepared), prepared.tokenizer
    copy_initial(prepared, model)
    del prepared
    let_go()
    size, total = recipe.train.batch_size, recipe.train.steps
    assert total is not None, "benchmarks count steps"
    items, tokens = features(recipe, data)

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

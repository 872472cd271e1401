"""Unsloth: its model with LoRA under transformers' Trainer, which it patches.

Written by the documentation and the source of 2026.10.9, and never run: its import needs a GPU.
"""

import os
from typing import TYPE_CHECKING, Any

from benchmarks.by_hand import lora_sites, plain_llama
from benchmarks.worker import Channel
from lorakit.recipe import Recipe

if TYPE_CHECKING:
    from lorakit.model import Prepared


def train(recipe: Recipe, channel: Channel) -> None:
    """Raises Refused where it is not known how Unsloth would do this training."""
    os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"  # it would fetch a file from the hub to be counted
    # First: it patches what is imported after it.
    from unsloth import FastLanguageModel

    from benchmarks import trainer
    from lorakit.model import torch_dtype

    def build(prepared: "Prepared") -> Any:
        lora = lora_arguments(recipe, prepared)
        model, _ = FastLanguageModel.from_pretrained(
            model_name=str(prepared.located.directory),
            max_seq_length=recipe.task.max_length or prepared.model.config.max_position_embeddings,
            dtype=torch_dtype(recipe.model, prepared.located.directory),
            load_in_4bit=False,
            use_exact_model_name=True,  # and not a copy of its own from the hub
        )
        return FastLanguageModel.get_peft_model(model, **lora)

    trainer.train(recipe, channel, build)


def lora_arguments(recipe: Recipe, prepared: "Prepared") -> dict[str, Any]:
    """What Unsloth's `get_peft_model` takes.

    Raises:
        Refused: Another architecture than Llama, or other modules than projections of the attention.
    """
    from lorakit.surgery import trainable_state

    config: Any = prepared.model.config
    method: Any = prepared.methods[0]
    plain_llama(config)
    return {
        "r": method.rank,
        "target_modules": list(lora_sites(trainable_state(prepared.model), config.num_hidden_layers)),
        "lora_alpha": method.alpha,
        "lora_dropout": method.dropout,
        "bias": "none",
        "use_gradient_checkpointing": recipe.train.gradient_checkpointing,
        "random_state": recipe.train.seed,
    }

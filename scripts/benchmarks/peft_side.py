"""PEFT's model beside lorakit's: the same base, LoRA on the same modules, the same initial tensors."""

from typing import TYPE_CHECKING, Any

from lorakit.checkpoint import head_of
from lorakit.model import Prepared, load_config
from lorakit.recipe import Recipe
from lorakit.surgery import trainable_state

if TYPE_CHECKING:
    import torch
    from peft import PeftModel


def peft_model(recipe: Recipe, prepared: Prepared, dtype: "torch.dtype") -> "PeftModel":
    """The recipe's base with PEFT's LoRA on the modules that lorakit adapts.

    Args:
        recipe: With the method lora.
        prepared: By the same recipe.
        dtype: Of the frozen weights.
    """
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    head = head_of(recipe)
    generation = head.kind == "generation"
    auto: Any = AutoModelForCausalLM if generation else AutoModelForSequenceClassification
    config = load_config(recipe.model, prepared.located, head)
    if not generation and config.pad_token_id is None:
        config.pad_token_id = prepared.tokenizer.pad_token_id
    base = auto.from_pretrained(prepared.located.directory, config=config, dtype=dtype)
    method: Any = prepared.methods[0]
    modules = sorted({path for paths in prepared.coverage[0].values() for path in paths})
    lora = LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,
        target_modules=modules,
        lora_dropout=method.dropout,
        task_type=TaskType.CAUSAL_LM if generation else TaskType.SEQ_CLS,
        fan_in_fan_out=prepared.row.model_type == "gpt2",
    )
    return get_peft_model(base, lora)


def copy_initial(prepared: Prepared, model: "PeftModel") -> None:
    """Give PEFT's model the tensors that lorakit starts from, in float32 as lorakit has them."""
    import torch

    state = trainable_state(prepared.model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            with torch.no_grad():
                parameter.data = parameter.data.float()
                parameter.copy_(state.pop(_ours(name)))
    assert not state, f"not copied: {list(state)}"


def _ours(name: str) -> str:
    """Lorakit's name of a parameter of PEFT's model: without its prefix and the names of its wrappers."""
    plain = name.removeprefix("base_model.model.").replace(".modules_to_save.default.", ".")
    for matrix in ("A", "B"):
        plain = plain.replace(f".lora_{matrix}.default.weight", f".update.{matrix}")
    return plain

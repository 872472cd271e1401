"""Adapters that PEFT itself trained: its own classes make, move and save them."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

LABELS = 3


def base_model(base: Path, kind: str, labels: int = LABELS) -> Any:
    """The tiny base as plain transformers loads it; a new head is a function of the seed."""
    torch.manual_seed(0)
    if kind == "generation":
        return AutoModelForCausalLM.from_pretrained(base)
    padding = 1 if "roberta" in base.name else 0
    return AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels, pad_token_id=padding)


def peft_adapter(base: Path, out: Path, kind: str, labels: int = LABELS, **options: Any) -> Any:
    """Save an adapter of PEFT's whose trained values have all moved; returns the model, in eval mode."""
    task = "CAUSAL_LM" if kind == "generation" else "SEQ_CLS"
    config = LoraConfig(**{"task_type": task, "r": 4, "lora_alpha": 6, **options})
    model = get_peft_model(base_model(base, kind, labels), config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    model.save_pretrained(str(out))
    return model.eval()

"""Tiny models without a file: from a config, frozen, with weights large enough that a change of them shows."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from lorakit.arch import ARCHITECTURES
from lorakit.surgery import freeze

VOCABULARY = 40


def bare_model(model_type: str, kind: str = "classification", device: str = "cpu", **more: Any) -> Any:
    """A model of a known architecture, in eval mode; always the same weights."""
    some = {"vocab_size": VOCABULARY, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "num_labels": 3}
    fields = {**ARCHITECTURES[model_type].tiny, **some, "initializer_range": 0.1, **more}
    config = AutoConfig.for_model(model_type, **fields)
    torch.manual_seed(0)
    with torch.device(device):
        auto = AutoModelForSequenceClassification if kind == "classification" else AutoModelForCausalLM
        model = auto.from_config(config)
    freeze(model)
    return model.eval()


def random_ids(seed: int = 1) -> Tensor:
    """Four rows of seven tokens, none of them special."""
    return torch.randint(4, VOCABULARY, (4, 7), generator=torch.Generator().manual_seed(seed))


def of_peft(model: nn.Module) -> dict[str, nn.Parameter]:
    """What a PEFT model trains in its LoRA and DoRA layers, by our names."""
    ours = {
        ".lora_A.default.weight": ".update.A",
        ".lora_B.default.weight": ".update.B",
        ".lora_magnitude_vector.default.weight": ".magnitude",
    }
    return {
        name.removeprefix("base_model.model.").removesuffix(ending) + own: parameter
        for name, parameter in model.named_parameters()
        for ending, own in ours.items()
        if name.endswith(ending)
    }

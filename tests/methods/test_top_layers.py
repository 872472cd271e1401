"""FT-Top2: which blocks, and what stays frozen."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from lorakit.arch import ARCHITECTURES, Architecture
from lorakit.errors import RecipeError
from lorakit.methods.top_layers import TopLayers
from lorakit.model import Head, attach
from lorakit.surgery import trainable_parameters

CLASSES = Head("classification", ("a", "b"))
TEXT = Head("generation")

FINAL_NORM = {
    "modernbert": "model.final_norm",
    "gpt2": "transformer.ln_f",
    "opt": "model.decoder.final_layer_norm",
    "gpt_neox": "gpt_neox.final_layer_norm",
}


def build(model_type: str, **fields: Any) -> Any:
    row = ARCHITECTURES[model_type]
    auto = AutoModelForCausalLM if row.decoder else AutoModelForSequenceClassification
    return auto.from_config(AutoConfig.for_model(model_type, **{"vocab_size": 40, "pad_token_id": 1, **fields}))


def apply(model: Any, layers: int = 2) -> list[str]:
    row = ARCHITECTURES[model.config.model_type]
    return attach(model, row, [TopLayers(layers=layers)], TEXT if row.decoder else CLASSES, (), 0)[0]["top"]


def test_count_of_the_paper() -> None:
    """FT-Top2 of GPT-2 medium: 25.19M (Table 3)."""
    with torch.device("meta"):
        model = build("gpt2", n_embd=1024, n_layer=24, n_head=16)
    assert apply(model) == ["transformer.h.22", "transformer.h.23", "transformer.ln_f"]
    trained = trainable_parameters(model)
    assert all(parameter.is_meta and parameter.dtype == torch.float32 for parameter in trained.values())
    assert sum(parameter.numel() for parameter in trained.values()) == 25_194_496


@pytest.mark.parametrize("model_type", list(ARCHITECTURES))
def test_every_architecture(model_type: str) -> None:
    """The last block, the norm behind it where there is one, and the head; all of it gets a gradient."""
    row = ARCHITECTURES[model_type]
    model = build(model_type, **row.tiny)
    norm = FINAL_NORM.get(model_type, "model.norm" if row.decoder else None)
    block, *rest = apply(model, 1)
    assert block.endswith(f"{row.blocks}.1") and rest == ([norm] if norm else [])
    trained = trainable_parameters(model)
    assert {name for name in trained if not name.startswith(row.head)} == {
        name for name, _ in model.named_parameters() if name.startswith((f"{block}.", *(f"{path}." for path in rest)))
    }
    model(input_ids=torch.tensor([[5, 6, 7]])).logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in trained.values())


def test_a_model_that_ends_with_its_last_block() -> None:
    """opt-350m normalises behind its sums, and has no norm at the end."""
    fields = {**ARCHITECTURES["opt"].tiny, "do_layer_norm_before": False}
    assert apply(build("opt", **fields), 1) == ["model.decoder.layers.1"]


def test_more_layers_than_there_are() -> None:
    with pytest.raises(RecipeError, match="method.layers: 3 blocks are to be trained, but this bert model has 2"):
        apply(build("bert", **ARCHITECTURES["bert"].tiny), 3)


def test_smoke_sizes() -> None:
    assert TopLayers(layers=6).shrunk().layers == 1


def test_unknown_architectures_are_refused() -> None:
    model = build("bert", **ARCHITECTURES["bert"].tiny)
    with pytest.raises(RecipeError, match=r"those of a electra model are not known; known are: bert, .*lora works"):
        TopLayers().apply(model, Architecture("electra", False), seed=0)


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "bert"])
def test_a_bfloat16_base(model_type: str) -> None:
    model = build(model_type, **ARCHITECTURES[model_type].tiny).bfloat16()
    apply(model, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().backward()
    for parameter in model.parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16)
        assert (parameter.grad is not None) == parameter.requires_grad

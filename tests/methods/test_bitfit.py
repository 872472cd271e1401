"""BitFit: which biases, and how many."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from lorakit.arch import ARCHITECTURES
from lorakit.errors import RecipeError
from lorakit.methods.bitfit import BitFit
from lorakit.model import Head, attach
from lorakit.surgery import trainable_parameters

CLASSES = Head("classification", ("a", "b"))
TEXT = Head("generation")
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}


def build(model_type: str, head: Head, **fields: Any) -> Any:
    auto = AutoModelForCausalLM if head is TEXT else AutoModelForSequenceClassification
    return auto.from_config(AutoConfig.for_model(model_type, **{"vocab_size": 40, "pad_token_id": 1, **fields}))


def trained(model: Any, head: Head) -> dict[str, Any]:
    attach(model, ARCHITECTURES[model.config.model_type], [BitFit()], head, (), 0)
    return trainable_parameters(model)


@pytest.mark.parametrize(
    ("model_type", "head", "fields", "count"),
    [
        ("roberta", CLASSES, {}, 102_144),
        ("roberta", CLASSES, LARGE, 271_360),
        ("gpt2", TEXT, {"n_embd": 1024, "n_layer": 24, "n_head": 16}, 271_360),
        ("gpt2", TEXT, {"n_embd": 12288, "n_layer": 96, "n_head": 96}, 12_988_416),
    ],
    ids=["roberta-base", "roberta-large", "gpt2-medium", "gpt3"],
)
def test_counts_of_the_paper(model_type: str, head: Head, fields: dict[str, Any], count: int) -> None:
    with torch.device("meta"):
        model = build(model_type, head, **fields)
    parameters = trained(model, head)
    assert all(parameter.is_meta and parameter.dtype == torch.float32 for parameter in parameters.values())
    body = {name: p for name, p in parameters.items() if not name.startswith("classifier.")}
    assert all(name.endswith(".bias") for name in body)
    assert sum(parameter.numel() for parameter in body.values()) == count


def test_qwen2_has_biases_in_three_places() -> None:
    row = ARCHITECTURES["qwen2"]
    names = trained(build("qwen2", TEXT, **row.tiny), TEXT)
    assert set(names) == {f"model.layers.{i}.self_attn.{m}_proj.bias" for i in range(2) for m in "qkv"}


@pytest.mark.parametrize("model_type", ["llama", "mistral", "gemma2", "qwen3", "phi3"])
def test_models_without_biases_are_refused(model_type: str) -> None:
    model = build(model_type, TEXT, **ARCHITECTURES[model_type].tiny)
    with pytest.raises(RecipeError, match=rf"bitfit trains biases, and this {model_type} model has none; use lora, or"):
        trained(model, TEXT)


def test_a_classifier_that_is_trained_anyway_is_no_bias_of_the_model() -> None:
    row = ARCHITECTURES["modernbert"]
    model = build("modernbert", CLASSES, **row.tiny)
    assert model.classifier.bias is not None
    with pytest.raises(RecipeError, match="this modernbert model has none"):
        trained(model, CLASSES)


def test_a_bfloat16_base_trains_its_biases_in_float32() -> None:
    model = build("bert", CLASSES, **ARCHITECTURES["bert"].tiny).bfloat16()
    frozen = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    parameters = trained(model, CLASSES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().backward()
    assert all(p.dtype == torch.float32 and p.grad is not None for p in parameters.values())
    assert all(torch.equal(p.bfloat16(), frozen[name]) for name, p in model.named_parameters())
    weight = model.bert.encoder.layer[0].attention.self.query.weight
    assert weight.dtype == torch.bfloat16 and not weight.requires_grad

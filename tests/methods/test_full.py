"""Full fine-tuning."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from lorakit.arch import ARCHITECTURES
from lorakit.methods.full import Full
from lorakit.methods.lora import LoRA
from lorakit.surgery import freeze, trainable_parameters, trainable_state


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", list(ARCHITECTURES))
def test_trains_everything_in_float32(model_type: str, dtype: torch.dtype) -> None:
    row = ARCHITECTURES[model_type]
    model = AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model(model_type, **row.tiny, vocab_size=40, pad_token_id=1, num_labels=2)
    ).to(dtype)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    freeze(model)
    coverage = Full().apply(model, row, seed=0)
    assert coverage == {"all": list(before)}
    trained = trainable_parameters(model)
    assert list(trained) == list(before)
    assert all(parameter.dtype == torch.float32 for parameter in trained.values())
    assert all(torch.equal(trained[name].to(dtype), before[name]) for name in before)
    logits = model(input_ids=torch.tensor([[5, 6, 7]])).logits
    logits.square().sum().backward()
    reached = {name for name, parameter in trained.items() if parameter.grad is not None}
    # without a mask token or a second segment some embedding rows get no gradient, but every tensor gets one
    assert reached == set(before)


def test_names_are_those_of_the_untouched_model() -> None:
    row = ARCHITECTURES["llama"]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **row.tiny, vocab_size=40))
    freeze(model)
    plain = [name for name, _ in model.named_parameters()]
    LoRA(rank=2, targets=["q"]).apply(model, row, seed=0)
    assert [name for name in Full().apply(model, row, seed=0)["all"] if ".update." not in name] == plain


def test_tied_parameters_are_one() -> None:
    row = ARCHITECTURES["gpt2"]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **row.tiny, vocab_size=40))
    freeze(model)
    Full().apply(model, row, seed=0)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert "lm_head.weight" not in trainable_state(model)


def test_meta_models_stay_on_the_meta_device() -> None:
    row = ARCHITECTURES["llama"]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **row.tiny, vocab_size=40)).bfloat16()
    Full().apply(model, row, seed=0)
    assert all(p.is_meta and p.requires_grad and p.dtype == torch.float32 for p in model.parameters())

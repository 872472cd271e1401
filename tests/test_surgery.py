"""Replacing, freezing, and reading and writing what is trained."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from lorakit.arch import ARCHITECTURES
from lorakit.errors import CheckpointError
from lorakit.methods.full import Full
from lorakit.methods.lora import LoRA
from lorakit.surgery import (
    WRAPPED,
    canonical,
    even_norms,
    freeze,
    load_trainable,
    release,
    replace,
    trainable_parameters,
    trainable_state,
)


def llama(device: str = "cpu", **fields: Any) -> nn.Module:
    row = ARCHITECTURES["llama"]
    config = AutoConfig.for_model("llama", **{**row.tiny, "vocab_size": 40, **fields})
    torch.manual_seed(0)
    with torch.device(device):
        model: nn.Module = AutoModelForCausalLM.from_config(config)
    freeze(model)
    return model


def adapted(device: str = "cpu", **method: Any) -> nn.Module:
    model = llama(device)
    LoRA(**{"rank": 2, "targets": ["q", "v"], **method}).apply(model, ARCHITECTURES["llama"], seed=0)
    return model


def test_canonical_names() -> None:
    assert canonical("model.layers.0.self_attn.q_proj.frozen.weight") == "model.layers.0.self_attn.q_proj.weight"
    assert canonical("model.layers.0.self_attn.q_proj.update.A") == "model.layers.0.self_attn.q_proj.update.A"
    assert canonical("model.frozen_part.weight") == "model.frozen_part.weight"


def test_replace() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    new, top = nn.Identity(), nn.Identity()
    replace(model, "1.0", new)
    replace(model, "0", top)
    assert model[1][0] is new  # type: ignore[index]
    assert model[0] is top


def test_freeze_and_release() -> None:
    model = nn.Linear(2, 2).bfloat16()
    freeze(model)
    assert trainable_parameters(model) == {}
    weight = model.weight
    before = weight.detach().clone()
    release(weight)
    assert model.weight is weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight.bfloat16(), before)
    assert list(trainable_parameters(model)) == ["weight"]
    assert model.bias.dtype == torch.bfloat16


def test_even_norms_raises_only_what_is_trained() -> None:
    model = nn.ModuleDict({"a": nn.LayerNorm(4), "b": nn.LayerNorm(4), "c": nn.Linear(4, 4)}).bfloat16()
    freeze(model)
    for name in "ac":
        release(model[name].bias)  # type: ignore[arg-type]
    model["b"].add_module("adapter", nn.Linear(4, 4))  # trained, but no part of the norm
    even_norms(model)
    dtypes = {name: str(p.dtype) for name, p in model.named_parameters() if p.dtype == torch.float32}
    assert sorted(dtypes) == ["a.bias", "a.weight", "b.adapter.bias", "b.adapter.weight", "c.bias"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model["a"](torch.ones(1, 4, dtype=torch.bfloat16)).shape == (1, 4)


def test_state_is_the_trainable_parameters_by_their_untouched_names() -> None:
    model = adapted(bias="none")
    state = trainable_state(model)
    at = "model.layers.{}.self_attn.{}_proj.update.{}"
    assert sorted(state) == sorted(at.format(i, m, p) for i in range(2) for m in "qv" for p in "AB")
    everything = llama()
    plain = [name for name, _ in everything.named_parameters()]
    LoRA(rank=2, targets=["all-linear"]).apply(everything, ARCHITECTURES["llama"], seed=0)
    Full().apply(everything, ARCHITECTURES["llama"], seed=0)
    names = list(trainable_state(everything))
    assert [name for name in names if ".update." not in name] == plain
    assert not [name for name in names if WRAPPED in name]


def test_state_is_a_detached_copy_that_can_be_saved() -> None:
    model = adapted()
    name = "model.layers.0.self_attn.q_proj.update.A"
    state = trainable_state(model)
    with torch.no_grad():
        trainable_parameters(model)[name].zero_()
    assert state[name].abs().max() > 0
    assert not state[name].requires_grad
    transposed = nn.Linear(2, 3)
    transposed.weight = nn.Parameter(torch.randn(2, 3).T)
    saved = trainable_state(transposed)["weight"]
    assert saved.is_contiguous()
    assert torch.equal(saved, transposed.weight)


def test_load_round_trip() -> None:
    source, target = adapted(), adapted()
    for index, parameter in enumerate(trainable_parameters(source).values()):
        nn.init.constant_(parameter, index + 1.0)
    parameters = dict(target.named_parameters())
    load_trainable(target, trainable_state(source), "file")
    assert {n: p.data_ptr() for n, p in target.named_parameters()} == {n: p.data_ptr() for n, p in parameters.items()}
    for name, value in trainable_state(source).items():
        assert torch.equal(trainable_state(target)[name], value)


def test_load_lists_every_problem_and_writes_nothing() -> None:
    model = adapted()
    before = trainable_state(model)
    state = {name: torch.full_like(value, 7.0) for name, value in before.items()}
    del state["model.layers.0.self_attn.q_proj.update.A"]
    state["model.layers.0.self_attn.q_proj.lora_A.weight"] = torch.zeros(2, 64)
    state["model.layers.1.self_attn.v_proj.update.B"] = torch.zeros(32, 4)
    with pytest.raises(CheckpointError) as caught:
        load_trainable(model, state, "adapter.safetensors")
    assert caught.value.problems == (
        "adapter.safetensors: model.layers.0.self_attn.q_proj.lora_A.weight is not part of this model",
        "adapter.safetensors: model.layers.0.self_attn.q_proj.update.A is missing",
        "adapter.safetensors: model.layers.1.self_attn.v_proj.update.B has shape (32, 4), the recipe makes (32, 2)",
    )
    after = trainable_state(model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_frozen_tensor_in_the_file_is_refused() -> None:
    model = adapted()
    state = trainable_state(model) | {"model.embed_tokens.weight": torch.zeros(40, 64)}
    with pytest.raises(CheckpointError, match="model.embed_tokens.weight is not part of this model"):
        load_trainable(model, state, "file")


def test_meta_parameters_become_real() -> None:
    state = trainable_state(adapted())
    skeleton = adapted("meta")
    assert all(parameter.is_meta for parameter in skeleton.parameters())
    load_trainable(skeleton, state, "file")
    loaded = trainable_parameters(skeleton)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) and loaded[name].requires_grad for name in state)
    assert skeleton.get_parameter("model.embed_tokens.weight").is_meta
    layer = skeleton.get_submodule("model.layers.0.self_attn.q_proj")
    x = torch.randn(3, 64)
    assert torch.equal(layer.update(x), adapted().get_submodule("model.layers.0.self_attn.q_proj").update(x))  # type: ignore[operator]


def test_tied_parameters_stay_tied() -> None:
    row = ARCHITECTURES["llama"]
    real, skeleton = llama(tie_word_embeddings=True), llama("meta", tie_word_embeddings=True)
    for model in (real, skeleton):
        Full().apply(model, row, seed=0)
    state = trainable_state(real)
    assert "lm_head.weight" not in state
    load_trainable(skeleton, state, "file")
    embedding = skeleton.get_parameter("model.embed_tokens.weight")
    assert skeleton.get_parameter("lm_head.weight") is embedding
    assert torch.equal(embedding, real.get_parameter("lm_head.weight"))


def test_heads_travel_with_the_adapter() -> None:
    row = ARCHITECTURES["roberta"]
    config = AutoConfig.for_model("roberta", **row.tiny, vocab_size=40, num_labels=3)
    model = AutoModelForSequenceClassification.from_config(config)
    freeze(model)
    model.classifier.requires_grad_(True)
    LoRA(rank=2, targets=["q"]).apply(model, row, seed=0)
    head = {
        "classifier.dense.weight",
        "classifier.dense.bias",
        "classifier.out_proj.weight",
        "classifier.out_proj.bias",
    }
    assert head < trainable_state(model).keys()


def test_saved_buffers_are_part_of_the_state() -> None:
    class Holds(nn.Module):
        saved_buffers = ("start",)

        def __init__(self, device: str) -> None:
            super().__init__()
            self.register_buffer("start", torch.ones(3, device=device))
            self.register_buffer("other", torch.ones(3, device=device))

    model, skeleton = (nn.ModuleDict({"a": Holds(device)}) for device in ("cpu", "meta"))
    state = trainable_state(model)
    assert list(state) == ["a.start"]
    state["a.start"] += 1
    for each in (model, skeleton):
        load_trainable(each, state, "file")
        assert torch.equal(each["a"].get_buffer("start"), torch.full((3,), 2.0))
    with pytest.raises(CheckpointError, match="file: a.start is missing"):
        load_trainable(model, {}, "file")

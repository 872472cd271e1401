"""The file must be what the authors' code reads: a model of loralib's own layers loads it, by `load_state_dict`."""

from pathlib import Path
from typing import Any

import loralib
import pytest
import torch
from adapted import EMBEDDINGS, live_model, logits, open_adapted, tiny_base
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from lorakit.checkpoint import Opened
from lorakit.errors import MergeError
from lorakit.export import export
from lorakit.export.card import CARD
from lorakit.export.loralib import FILE
from lorakit.layers.low_rank import LoRALayer, RowBlocks
from lorakit.merge_plan import adapted_layers
from lorakit.methods import BitFit, Full, LoRA, Method
from lorakit.surgery import replace

QV = LoRA(rank=4, alpha=12, targets=["q", "v"])
ORDER = ("q", "k", "v")


def authors_model(opened: Opened, base: Path, kind: str, alpha: float) -> nn.Module:
    """The base with loralib's layers in the place of those that were adapted."""
    auto: Any = AutoModelForCausalLM if kind == "generation" else AutoModelForSequenceClassification
    padding = 1 if "roberta" in base.name else 0
    options = {} if kind == "generation" else {"num_labels": 3, "pad_token_id": padding}
    model: nn.Module = auto.from_pretrained(base, **options)
    for path, layer in adapted_layers(opened.prepared.model).items():
        assert isinstance(layer, LoRALayer)
        old = model.get_submodule(path)
        assert isinstance(old.weight, nn.Parameter)
        turned = isinstance(old, Conv1D)
        bias = getattr(old, "bias", None) is not None
        made: Any
        if isinstance(layer.update, RowBlocks):
            pairs = layer.update.pairs()
            rank = max(len(pair.A) for pair in pairs.values())
            enable = [name in pairs for name in ORDER]
            in_, out = old.weight.shape if turned else old.weight.shape[::-1]
            options = {"r": rank, "lora_alpha": alpha, "enable_lora": enable, "fan_in_fan_out": turned}
            made = loralib.MergedLinear(in_, out, merge_weights=False, bias=bias, **options)
        elif isinstance(old, nn.Embedding):
            made = loralib.Embedding(*old.weight.shape, r=len(layer.update.A), lora_alpha=alpha, merge_weights=False)
        else:
            in_, out = old.weight.shape if turned else old.weight.shape[::-1]
            options = {"r": len(layer.update.A), "lora_alpha": alpha, "fan_in_fan_out": turned}
            made = loralib.Linear(in_, out, merge_weights=False, bias=bias, **options)
        made.load_state_dict(old.state_dict(), strict=False)
        replace(model, path, made)
    return model


def methods_of(model_type: str) -> dict[str, LoRA]:
    block = "*.h.1.*" if model_type == "gpt2" else "*.layers.1.*" if model_type == "llama" else "*.layer.1.*"
    return {
        "qv": QV,
        "k alone": LoRA(rank=4, targets=["k"]),
        "all-linear": LoRA(rank=4, targets=["all-linear"], dropout=0.1),
        "embedding": LoRA(rank=4, targets=[EMBEDDINGS[model_type], "o"]),
        "ranks": LoRA(rank=4, targets=["q", "v", "up"], ranks={"v": 2, block: 3}, alphas={block: 5.0, "up": 7}),
        "rslora": LoRA(rank=4, targets=["q", "v"], rslora=True, ranks={"v": 3}),
    }


@pytest.mark.parametrize("name", ["qv", "k alone", "all-linear", "embedding", "ranks", "rslora"])
@pytest.mark.parametrize(
    ("model_type", "kind"), [("roberta", "classification"), ("gpt2", "generation"), ("llama", "generation")]
)
def test_a_model_of_loralibs_layers_loads_it_and_computes_the_same(
    tmp_path: Path, model_type: str, kind: str, name: str
) -> None:
    base = tiny_base(tmp_path, model_type)
    opened = open_adapted(base, [methods_of(model_type)[name]], kind)
    report = export(opened, "loralib", tmp_path / "out")
    assert set(report.files) == {FILE, CARD}
    found = torch.load(tmp_path / "out" / FILE, weights_only=True)
    assert ("model_state_dict" in found) == (kind == "generation")
    tensors = found.get("model_state_dict", found)
    card = (tmp_path / "out" / CARD).read_text()
    alpha = float(card.split("`lora_alpha=")[1].split("`")[0])
    model = authors_model(opened, base, kind, alpha)
    keys = model.load_state_dict(tensors, strict=False)
    assert not keys.unexpected_keys
    assert not [key for key in keys.missing_keys if "lora_" in key]
    torch.testing.assert_close(logits(model.eval()), logits(live_model(opened)), atol=2e-5, rtol=1e-5)


def test_the_names_are_loralibs(tmp_path: Path) -> None:
    opened = open_adapted(tiny_base(tmp_path, "gpt2"), [QV], "generation")
    export(opened, "loralib", tmp_path / "out")
    tensors = torch.load(tmp_path / "out" / FILE, weights_only=True)["model_state_dict"]
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    assert shapes == {
        f"transformer.h.{block}.attn.c_attn.lora_{factor}": shape
        for block in (0, 1)
        for factor, shape in (("A", (8, 64)), ("B", (128, 4)))
    }
    assert torch.equal(
        tensors["transformer.h.0.attn.c_attn.lora_A"][:4], opened.state["transformer.h.0.attn.c_attn.update.q.A"]
    )


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_biases_and_the_head_are_there(tmp_path: Path, bias: Any) -> None:
    opened = open_adapted(tiny_base(tmp_path, "roberta"), [QV.model_copy(update={"bias": bias})], "classification")
    export(opened, "loralib", tmp_path / "out")
    tensors = torch.load(tmp_path / "out" / FILE, weights_only=True)
    whole = {name: value for name, value in opened.state.items() if ".update." not in name}
    assert "classifier.out_proj.weight" in whole
    assert all(torch.equal(tensors[name], value) for name, value in whole.items())
    assert len(tensors) == len(opened.state)


def test_equal_adapters_give_equal_bytes(tmp_path: Path) -> None:
    opened = open_adapted(tiny_base(tmp_path, "gpt2"), [QV], "classification")
    for name in ("first", "second"):
        export(opened, "loralib", tmp_path / name)
    assert (tmp_path / "first" / FILE).read_bytes() == (tmp_path / "second" / FILE).read_bytes()


@pytest.mark.parametrize(
    ("model_type", "methods", "message"),
    [
        ("bert", [Full()], "adapts no matrix.*use lorakit merge"),
        ("bert", [BitFit()], "adapts no matrix.*use lorakit merge"),
        ("bert", [LoRA(rank=2, targets=["q"], dora=True)], r"query: DoRA has no form in loralib; use .* --to peft"),
        ("gpt_neox", [QV], "query_key_value: the rows of q, v are no equal parts"),
        ("phi3", [QV], "qkv_proj: the rows of q, v are no equal parts"),
    ],
)
def test_what_loralib_cannot_express_is_refused(
    tmp_path: Path, model_type: str, methods: list[Method], message: str
) -> None:
    opened = open_adapted(tiny_base(tmp_path, model_type), methods, "classification")
    with pytest.raises(MergeError, match=message):
        export(opened, "loralib", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [f"base-{model_type}"]

"""Adapter layers: how many parameters, where they stand, and what they compute."""

import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from lorakit.arch import ARCHITECTURES, Architecture
from lorakit.errors import RecipeError
from lorakit.layers.bottleneck import Bottleneck
from lorakit.methods.adapter import Adapter
from lorakit.model import Head, attach
from lorakit.surgery import trainable_parameters

CLASSES = Head("classification", ("a", "b"))
TEXT = Head("generation")
IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 3, 2, 4, 4]])
VARIANTS = ("houlsby", "lin", "pfeiffer")


def build(model_type: str, head: Head | None = None, **fields: Any) -> Any:
    """A tiny model in eval mode, classifying if it is an encoder and nothing else is asked for."""
    row = ARCHITECTURES[model_type]
    kind = head or (TEXT if row.decoder else CLASSES)
    auto = AutoModelForCausalLM if kind is TEXT else AutoModelForSequenceClassification
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**row.tiny, "vocab_size": 40, "pad_token_id": 1, **fields})
    return auto.from_config(config).eval()


def adapt(model: Any, seed: int = 0, **method: Any) -> dict[str, list[str]]:
    row = ARCHITECTURES[model.config.model_type]
    return attach(model, row, [Adapter(**method)], TEXT if row.decoder else CLASSES, (), seed)[0]


def adapters(model: nn.Module) -> list[Bottleneck]:
    return [module for module in model.modules() if isinstance(module, Bottleneck)]


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(input_ids=IDS).logits
    return out


def randomise(model: nn.Module) -> None:
    """Adapters far from nothing."""
    generator = torch.Generator().manual_seed(1)
    for adapter in adapters(model):
        for parameter in adapter.parameters():
            parameter.data.normal_(0, 0.5, generator=generator)


# --- counts ---------------------------------------------------------------------------------------------------------

BASE: dict[str, Any] = {}
"""RoBERTa-base: what the config class has by itself."""
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
GPT2_M = {"n_embd": 1024, "n_layer": 24, "n_head": 16}
GPT2_L = {"n_embd": 1280, "n_layer": 36, "n_head": 20}
GPT3 = {"n_embd": 12288, "n_layer": 96, "n_head": 96}


@pytest.mark.parametrize(
    ("variant", "model_type", "fields", "sizes", "count", "parameters"),
    [
        ("houlsby", "roberta", LARGE, (8, 0), 48, 835_968),
        ("houlsby", "roberta", LARGE, (64, 0), 48, 6_343_680),
        ("pfeiffer", "roberta", LARGE, (16, 0), 24, 811_392),
        ("pfeiffer", "roberta", LARGE, (64, 0), 24, 3_171_840),
        ("pfeiffer", "roberta", BASE, (48, 0), 12, 894_528),
        ("pfeiffer", "roberta", BASE, (48, 8), 4, 298_176),
        ("lin", "gpt2", GPT2_M, (6, 0), 24, 368_784),
        ("lin", "gpt2", GPT2_M, (224, 0), 24, 11_089_152),
        ("lin", "gpt2", GPT2_L, (8, 0), 36, 875_808),
        ("lin", "gpt2", GPT2_L, (248, 0), 36, 23_002_848),
        ("houlsby", "gpt2", GPT2_M, (112, 0), 48, 11_064_576),
        ("houlsby", "gpt2", GPT3, (1, 0), 192, 7_078_080),
        ("houlsby", "gpt2", GPT3, (8, 0), 192, 40_109_568),
    ],
)
def test_counts_of_the_paper(
    variant: Any, model_type: str, fields: dict[str, Any], sizes: tuple[int, int], count: int, parameters: int
) -> None:
    """Section 5.1's formula, and the rows of Tables 2 to 4."""
    auto = AutoModelForCausalLM if model_type == "gpt2" else AutoModelForSequenceClassification
    with torch.device("meta"):
        model = auto.from_config(AutoConfig.for_model(model_type, **fields, vocab_size=100))
    model.requires_grad_(False)
    method = Adapter(variant=variant, bottleneck=sizes[0], drop_first=sizes[1])
    coverage = method.apply(model, ARCHITECTURES[model_type], seed=0)
    assert sum(len(paths) for paths in coverage.values()) == count
    trained = trainable_parameters(model)
    assert all(parameter.is_meta and parameter.dtype == torch.float32 for parameter in trained.values())
    assert sum(parameter.numel() for parameter in trained.values()) == parameters


# --- where ----------------------------------------------------------------------------------------------------------


def naive(adapter: Bottleneck, x: Tensor, f: Any) -> Tensor:
    return f(x @ adapter.down.weight.T + adapter.down.bias) @ adapter.up.weight.T + adapter.up.bias


def streams(model: Any, blocks: Any) -> list[tuple[Tensor, Tensor]]:
    """What every block takes and gives."""
    seen: list[tuple[Tensor, Tensor]] = []
    handles = [
        block.register_forward_hook(lambda _, args, out: seen.append((args[0], out[0] if type(out) is tuple else out)))
        for block in blocks
    ]
    logits(model)
    for handle in handles:
        handle.remove()
    return seen


def test_pfeiffer_is_the_formula() -> None:
    """a = LN(s), out = LN(W_up relu(W_down a) + s), with s the sum of the MLP's output and the residual stream."""
    model = build("bert")
    adapt(model, variant="pfeiffer", bottleneck=4)
    randomise(model)
    blocks = model.bert.encoder.layer
    for block, (x, out) in zip(blocks, streams(model, blocks), strict=True):
        with torch.no_grad():
            attended = block.attention(x)[0]
            total = block.output.dense(block.intermediate(attended)) + attended
            norm = block.output.LayerNorm
            a = nn.functional.layer_norm(total, (64,), norm.weight, norm.bias, norm.eps)
            inner = naive(norm.adapter, a, torch.relu) + total
            expected = nn.functional.layer_norm(inner, (64,), norm.weight, norm.bias, norm.eps)
        torch.testing.assert_close(out, expected)
        assert not torch.allclose(expected, a, atol=1e-2)


def test_houlsby_is_the_formula_in_an_encoder() -> None:
    """h + adapter(h) in front of each sum and layer norm, with silu."""
    model = build("bert")
    adapt(model, bottleneck=4)
    randomise(model)
    blocks = model.bert.encoder.layer
    for block, (x, out) in zip(blocks, streams(model, blocks), strict=True):
        silu = nn.functional.silu
        with torch.no_grad():
            h = block.attention.output.dense(block.attention.self(x)[0])
            h = h + naive(block.attention.output.dropout.adapter, h, silu)
            attended = block.attention.output.LayerNorm(h + x)
            h = block.output.dense(block.intermediate(attended))
            h = h + naive(block.output.dropout.adapter, h, silu)
            torch.testing.assert_close(out, block.output.LayerNorm(h + attended))


def test_houlsby_is_the_formula_in_a_decoder() -> None:
    """Design 2: with relu."""
    model = build("gpt2")
    adapt(model, bottleneck=4)
    randomise(model)
    blocks = model.transformer.h
    for block, (x, out) in zip(blocks, streams(model, blocks), strict=True):
        with torch.no_grad():
            mask = torch.full((5, 5), float("-inf")).triu(1)[None, None]
            taken = block.attn(block.ln_1(x), attention_mask=mask)[0] + x  # its adapter is inside
            h = block.mlp.c_proj(block.mlp.act(block.mlp.c_fc(block.ln_2(taken))))
            h = h + naive(block.mlp.dropout.adapter, h, torch.relu)
            torch.testing.assert_close(out, h + taken, rtol=1e-4, atol=1e-4)


def test_lin_is_the_formula() -> None:
    """x + W_up relu(W_down LN(x)) behind the whole block, with a norm of its own."""
    model = build("gpt2")
    blocks = model.transformer.h
    plain = streams(model, blocks)[0][1]
    adapt(model, variant="lin", bottleneck=4)
    randomise(model)
    adapter = blocks[0].adapter
    normed = nn.functional.layer_norm(plain, (64,), adapter.norm.weight, adapter.norm.bias)
    with torch.no_grad():
        expected = plain + naive(adapter, normed, torch.relu)
    torch.testing.assert_close(streams(model, blocks[1:])[0][0], expected)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("model_type", list(ARCHITECTURES))
def test_every_architecture(model_type: str, variant: Any) -> None:
    """Close to the base at first, equal to it while W_up is zero; every adapter is used, all of it gets a gradient."""
    row = ARCHITECTURES[model_type]
    model = build(model_type)
    if variant == "pfeiffer" and row.mlp_norm is None:
        with pytest.raises(RecipeError, match=rf"method.variant: pfeiffer.* {model_type} model.*use houlsby or lin"):
            adapt(model, variant=variant)
        return
    base = logits(model)
    coverage = adapt(model, variant=variant, bottleneck=16)
    each = 2 if variant == "houlsby" else 1
    assert sum(len(paths) for paths in coverage.values()) == len(adapters(model)) == 2 * each
    first = logits(model)
    assert not torch.equal(first, base)
    assert (first - base).norm() < 0.5 * base.norm()  # 0.02 is much beside the small values of a tiny model
    model(input_ids=IDS).logits.square().sum().backward()
    trained = trainable_parameters(model)
    ours = {name for name in trained if ".adapter." in name}
    assert len(ours) == 2 * each * (6 if variant == "lin" else 4)
    assert all(name.startswith(row.head) for name in trained.keys() - ours)
    for name in ours:
        grad = trained[name].grad
        assert grad is not None and grad.abs().max() > 0, name
    for adapter in adapters(model):
        adapter.up.weight.data.zero_()
    assert torch.equal(logits(model), base)
    randomise(model)
    assert not torch.allclose(logits(model), base, rtol=1e-2, atol=1e-3)


def test_names() -> None:
    model = build("bert")
    coverage = adapt(model, drop_first=1)
    assert coverage == {
        "attention.output.dropout": ["bert.encoder.layer.1.attention.output.dropout"],
        "output.dropout": ["bert.encoder.layer.1.output.dropout"],
    }
    parts = [f"{layer}.{kind}" for layer in ("down", "up") for kind in ("weight", "bias")]
    assert {name for name in trainable_parameters(model) if not name.startswith("classifier")} == {
        f"bert.encoder.layer.1.{place}.adapter.{part}" for place in coverage for part in parts
    }


def test_sublayers_are_added_to_the_residual_stream() -> None:
    """Every architecture: an adapter that takes away what its sublayer says leaves the stream as it came."""
    for model_type, row in ARCHITECTURES.items():
        model = build(model_type)
        if row.mlp_norm:
            continue  # the sum is normalised: see the formulas above
        adapt(model)
        for adapter in adapters(model):
            adapter.forward = torch.neg  # type: ignore[method-assign]
        blocks = [module for path, module in model.named_modules() if path.endswith(("s.0", "h.0"))]
        ((taken, given),) = streams(model, blocks[:1])
        assert torch.equal(taken, given), model_type


# --- initial values -------------------------------------------------------------------------------------------------


def test_initial_values_are_of_the_seed_and_the_path_alone() -> None:
    def values(seed: int, **method: Any) -> dict[str, Tensor]:
        model = build("gpt2")
        torch.rand(seed + 3)
        adapt(model, seed, **method)
        return {name: parameter.detach() for name, parameter in trainable_parameters(model).items()}

    before = torch.get_rng_state()
    build("gpt2")
    after = torch.get_rng_state()
    one, dropped, other = values(0), values(0, drop_first=1), values(1)
    assert all(torch.equal(one[name], dropped[name]) for name in dropped)
    weights = [name for name in one if name.endswith("weight")]
    assert len({float(one[name].sum()) for name in weights} | {float(other[name].sum()) for name in weights}) == 16
    for name in one:
        if name in weights:
            assert abs(float(one[name].std()) - 0.02) < 0.001 and abs(float(one[name].mean())) < 0.001
        else:
            assert not one[name].any()
    model = build("gpt2")
    assert torch.equal(torch.get_rng_state(), after) and not torch.equal(before, after)
    adapt(model)
    assert torch.equal(torch.get_rng_state(), after), "adapters drew from the process's generator"


@pytest.mark.parametrize(
    ("model_type", "variant", "asked", "activation"),
    [
        ("bert", "houlsby", None, "silu"),
        ("gpt2", "houlsby", None, "relu"),
        ("bert", "pfeiffer", None, "relu"),
        ("gpt2", "lin", None, "relu"),
        ("bert", "houlsby", "gelu", "gelu"),
        ("gpt2", "lin", "tanh", "tanh"),
    ],
)
def test_activation(model_type: str, variant: Any, asked: Any, activation: str) -> None:
    model = build(model_type)
    adapt(model, variant=variant, activation=asked)
    assert {adapter.activation for adapter in adapters(model)} == {activation}
    method = Adapter(variant=variant, activation=asked).resolve(ARCHITECTURES[model_type])
    assert method.activation == activation
    adapter = adapters(model)[0]
    functions = {"silu": nn.functional.silu, "relu": torch.relu, "gelu": nn.functional.gelu, "tanh": torch.tanh}
    x = torch.randn(3, 64)
    inner = x if adapter.norm is None else adapter.norm(x)
    torch.testing.assert_close(adapter(x), naive(adapter, inner, functions[activation]))


# --- precision, copies, checkpointing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_base(variant: Any, autocast: bool) -> None:
    model = build("bert").bfloat16()
    frozen = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    adapt(model, variant=variant, bottleneck=4)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        out = model.bert(input_ids=IDS).last_hidden_state
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    for name, parameter in model.named_parameters():
        if ".adapter." in name:
            assert parameter.dtype == torch.float32 and parameter.grad is not None
        elif not name.startswith("classifier"):
            assert parameter.dtype == torch.bfloat16 and torch.equal(parameter, frozen[name]), name


@pytest.mark.parametrize(("model_type", "variant"), [("bert", "pfeiffer"), ("gpt2", "houlsby"), ("llama", "lin")])
def test_a_copy_has_adapters_of_its_own(model_type: str, variant: Any) -> None:
    model = build(model_type)
    adapt(model, variant=variant)
    before = logits(model)
    copied = copy.deepcopy(model)
    assert torch.equal(logits(copied), before)
    randomise(copied)
    assert torch.equal(logits(model), before)
    assert not torch.allclose(logits(copied), before, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("model_type", "variant"),
    [
        ("bert", "pfeiffer"),
        ("bert", "houlsby"),
        ("bert", "lin"),
        ("deberta-v2", "lin"),
        ("gpt2", "lin"),
        ("opt", "lin"),
    ],
)
def test_gradient_checkpointing_gives_the_same_gradients(model_type: str, variant: Any) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = build(model_type, **{name: 0.0 for name in DROPOUTS[model_type]})
        adapt(model, variant=variant)
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model(input_ids=IDS).logits.square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in trainable_parameters(model).items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


DROPOUTS = {
    "bert": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "deberta-v2": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "gpt2": ("attn_pdrop", "resid_pdrop", "embd_pdrop"),
    "opt": ("dropout", "attention_dropout"),
}


# --- options --------------------------------------------------------------------------------------------------------


def test_drop_first_leaves_at_least_one_block() -> None:
    with pytest.raises(RecipeError, match="method.drop_first: 2 would leave no adapter: this bert model has 2 blocks"):
        adapt(build("bert"), drop_first=2)
    model = build("bert")
    adapt(model, drop_first=1)
    assert len(adapters(model)) == 2


def test_unknown_architectures_are_refused() -> None:
    model = build("bert")
    with pytest.raises(RecipeError, match=r"those of a electra model are not known; known are: bert, .*lora works"):
        Adapter().apply(model, Architecture("electra", False), seed=0)


@pytest.mark.parametrize("options", [{"bottleneck": 0}, {"drop_first": -1}, {"variant": "mad"}, {"activation": "sin"}])
def test_values_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Adapter(**options)


def test_smoke_sizes() -> None:
    small = Adapter(variant="lin", bottleneck=64, drop_first=8).shrunk()
    assert (small.variant, small.bottleneck, small.drop_first) == ("lin", 4, 0)
    assert Adapter(bottleneck=2).shrunk().bottleneck == 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_cannot_be_merged(variant: Any) -> None:
    reason = Adapter(variant=variant).unmergeable()
    assert variant in reason and "cannot be merged" in reason and "lora" in reason

"""LoRA beside its definition, loralib, PEFT, the paper's counts and the authors' published adapter."""

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import loralib
import pytest
import torch
from bare_models import of_peft
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from lorakit.arch import ARCHITECTURES, architecture
from lorakit.configs import CONFIGS
from lorakit.errors import RecipeError
from lorakit.layers.low_rank import LoRALayer, LowRank, LowRankEmbedding, RowBlocks
from lorakit.methods.lora import LoRA
from lorakit.surgery import freeze, trainable_parameters, trainable_state

pytestmark = pytest.mark.usefixtures("one_thread")

PUBLISHED = Path(__file__).parents[2] / "../shared/golden/loralib/roberta_base_lora_mnli.bin"
VOCABULARY = 40
MODELS = [
    ("bert", "classification"),
    ("roberta", "classification"),
    ("gpt2", "classification"),
    ("gpt2", "generation"),
    ("llama", "classification"),
    ("llama", "generation"),
]
EMBEDDING = {
    "bert": "*.word_embeddings",
    "roberta": "*.word_embeddings",
    "gpt2": "transformer.wte",
    "llama": "model.embed_tokens",
}


def build(model_type: str, kind: str = "classification", device: str = "cpu", **fields: Any) -> Any:
    known = ARCHITECTURES[model_type].tiny if model_type in ARCHITECTURES else {}
    some = {"vocab_size": VOCABULARY, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "num_labels": 3}
    config = AutoConfig.for_model(model_type, **{**known, **some, **fields})
    auto = AutoModelForSequenceClassification if kind == "classification" else AutoModelForCausalLM
    torch.manual_seed(0)
    with torch.device(device):
        model = auto.from_config(config)
    freeze(model)
    return model.eval()


def adapt(model: Any, seed: int = 0, **method: Any) -> dict[str, list[str]]:
    return LoRA(**method).apply(model, architecture(model.config), seed)


def randomise(model: nn.Module, scale: float = 0.1) -> None:
    """Move every trained parameter, so that updates are not zero."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)


def ids(rows: int = 2, length: int = 7) -> Tensor:
    return torch.randint(4, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))


def layer(frozen: nn.Module, update: Any, dropout: float = 0.0) -> LoRALayer:
    frozen.requires_grad_(False)
    return LoRALayer(frozen, update, dropout)


def unread() -> Iterator[tuple[int, Tensor]]:
    raise AssertionError("an update that is added does not depend on the weight")


def holder(frozen: nn.Module, **method: Any) -> LoRALayer:
    """A layer that the method itself makes of one module."""
    model = nn.ModuleDict({"m": frozen.requires_grad_(False)})
    LoRA(**{"targets": ["m"], **method}).apply(model, architecture(AutoConfig.for_model("phi")), seed=3)
    made = model["m"]
    assert isinstance(made, LoRALayer)
    return made


# --- step 0 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model_type", "kind"), MODELS)
@pytest.mark.parametrize("precision", ["float32", "autocast", "bfloat16 base", "bfloat16 base and autocast"])
def test_step_zero_equals_the_base_bit_for_bit(model_type: str, kind: str, precision: str) -> None:
    model = build(model_type, kind)
    if precision.startswith("bfloat16"):
        model = model.bfloat16()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision.endswith("autocast")):
        before = model(input_ids=ids()).logits
        adapt(model, rank=4, targets=["all-linear", EMBEDDING[model_type]])
        after = model(input_ids=ids()).logits
        assert torch.equal(before, after)
        randomise(model)
        assert not torch.equal(before, model(input_ids=ids()).logits)
    assert all(parameter.dtype == torch.float32 for parameter in trainable_parameters(model).values())


# --- initial values -------------------------------------------------------------------------------------------------


def test_kaiming_is_loralibs() -> None:
    made = holder(nn.Linear(32, 48), rank=16).update
    assert isinstance(made, LowRank)
    bound = 1 / math.sqrt(32)
    assert made.A.shape == (16, 32)
    assert made.B.shape == (48, 16)
    assert bound * 0.98 < made.A.abs().max() <= bound  # 512 draws: the largest is near the bound
    assert made.A.mean().abs() < bound / 8
    assert made.A.var().item() == pytest.approx(bound**2 / 3, rel=0.15)
    assert not made.B.any()


def test_gaussian_is_that_of_the_authors_deberta() -> None:
    made = holder(nn.Linear(200, 48), rank=16, init="gaussian").update
    assert isinstance(made, LowRank)
    assert made.A.std().item() == pytest.approx(0.02, rel=0.05)
    assert made.A.abs().max() > 0.05  # beyond any uniform distribution of this spread
    assert not made.B.any()


def test_embeddings_swap_the_roles() -> None:
    made = holder(nn.Embedding(60, 50), rank=8).update
    assert isinstance(made, LowRankEmbedding)
    assert made.A.shape == (8, 60)
    assert made.B.shape == (50, 8)
    assert not made.A.any()
    assert made.B.std().item() == pytest.approx(1, rel=0.1)


def state_of(model_type: str, seed: int, targets: list[str], **method: Any) -> dict[str, Tensor]:
    model = build(model_type)
    adapt(model, seed, targets=targets, rank=2, **method)
    return trainable_state(model)


@pytest.mark.parametrize("model_type", list(ARCHITECTURES))
def test_values_depend_on_seed_and_path_alone(model_type: str) -> None:
    last = "o" if ARCHITECTURES[model_type].experts else "down"
    torch.manual_seed(1)
    first = state_of(model_type, 7, ["q", "v", last])
    torch.manual_seed(2)
    again = state_of(model_type, 7, [last, "v", "q"])
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    alone = state_of(model_type, 7, ["v"])
    assert alone.keys() < first.keys()
    assert all(torch.equal(first[name], alone[name]) for name in alone)
    other = state_of(model_type, 8, ["q", "v", last])
    assert all(not torch.equal(first[name], other[name]) for name in first if name.endswith("A"))


def test_modules_differ() -> None:
    values = [value for name, value in state_of("gpt2", 0, ["q", "k", "v"]).items() if name.endswith("A")]
    assert len(values) == 6
    assert all(not torch.equal(a, b) for index, a in enumerate(values) for b in values[:index])


def test_applying_leaves_the_generator_alone() -> None:
    model = build("llama")
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    adapt(model)
    assert torch.equal(torch.rand(2), expected)


# --- loralib --------------------------------------------------------------------------------------------------------


def compare(ours: nn.Module, theirs: nn.Module, x: Tensor, pairs: Callable[[], list[tuple[Tensor, Tensor]]]) -> None:
    """Equal outputs, and equal gradients of the tensors that correspond."""
    a, b = ours(x), theirs(x)
    torch.testing.assert_close(a, b)
    for out in (a, b):
        (out**2).sum().backward()
    for mine, other in pairs():
        assert mine.abs().max() > 0
        torch.testing.assert_close(mine, other)


def grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def test_linear_equals_loralib() -> None:
    torch.manual_seed(0)
    theirs = loralib.Linear(6, 10, r=3, lora_alpha=5)
    nn.init.normal_(theirs.lora_B)
    frozen = nn.Linear(6, 10)
    frozen.load_state_dict({"weight": theirs.weight.data, "bias": theirs.bias.data})
    ours = holder(frozen, rank=3, alpha=5)
    pair = ours.update
    assert isinstance(pair, LowRank)
    pair.load_state_dict({"A": theirs.lora_A.data, "B": theirs.lora_B.data})
    theirs.train()
    gradients = lambda: [(grad(pair.A), grad(theirs.lora_A)), (grad(pair.B), grad(theirs.lora_B))]  # noqa: E731
    compare(ours, theirs, torch.randn(4, 6), gradients)


def test_conv1d_equals_loralib_fan_in_fan_out() -> None:
    torch.manual_seed(0)
    theirs = loralib.Linear(6, 10, r=3, lora_alpha=5, fan_in_fan_out=True)
    nn.init.normal_(theirs.lora_B)
    frozen = Conv1D(10, 6)
    frozen.load_state_dict({"weight": theirs.weight.data, "bias": theirs.bias.data})
    ours = holder(frozen, rank=3, alpha=5)
    assert isinstance(ours.update, LowRank)
    ours.update.load_state_dict({"A": theirs.lora_A.data, "B": theirs.lora_B.data})
    x = torch.randn(4, 6)
    torch.testing.assert_close(ours(x), theirs(x))
    theirs.eval()  # which merges
    merged = ours.edit(unread).rows(frozen.weight.detach(), 0)
    torch.testing.assert_close(merged, theirs.weight.data)


def test_row_blocks_equal_merged_linear() -> None:
    """q and v of a fused projection adapted and k untouched: enable_lora=[True, False, True]."""
    torch.manual_seed(0)
    theirs = loralib.MergedLinear(6, 12, r=2, lora_alpha=6, enable_lora=[True, False, True], merge_weights=True)
    nn.init.normal_(theirs.lora_B)
    frozen = nn.Linear(6, 12)
    frozen.load_state_dict({"weight": theirs.weight.data, "bias": theirs.bias.data})
    pairs = {name: LowRank(6, 4, 2, scaling=3) for name in "qv"}
    for index, pair in enumerate(pairs.values()):
        a, b = theirs.lora_A.data[2 * index : 2 * index + 2], theirs.lora_B.data[4 * index : 4 * index + 4]
        pair.load_state_dict({"A": a, "B": b})
    ours = layer(frozen, RowBlocks(12, pairs, {"q": slice(0, 4), "v": slice(8, 12)}))
    x = torch.randn(3, 5, 6)

    def gradients() -> list[tuple[Tensor, Tensor]]:
        return [
            (torch.cat([grad(pair.A) for pair in pairs.values()]), grad(theirs.lora_A)),
            (torch.cat([grad(pair.B) for pair in pairs.values()]), grad(theirs.lora_B)),
        ]

    compare(ours, theirs, x, gradients)
    assert torch.equal(ours(x)[..., 4:8], frozen(x)[..., 4:8])
    assert not torch.isclose(ours(x)[..., :4], frozen(x)[..., :4]).all()
    theirs.eval()
    torch.testing.assert_close(ours.edit(unread).rows(frozen.weight.detach(), 0), theirs.weight.data)


def test_embedding_equals_loralib() -> None:
    torch.manual_seed(0)
    theirs = loralib.Embedding(11, 6, r=3, lora_alpha=5)
    nn.init.normal_(theirs.lora_A)
    frozen = nn.Embedding(11, 6)
    frozen.load_state_dict({"weight": theirs.weight.data})
    ours = holder(frozen, rank=3, alpha=5)
    pair = ours.update
    assert isinstance(pair, LowRankEmbedding)
    pair.load_state_dict({"A": theirs.lora_A.data, "B": theirs.lora_B.data})
    x = torch.randint(0, 11, (4, 5))
    gradients = lambda: [(grad(pair.A), grad(theirs.lora_A)), (grad(pair.B), grad(theirs.lora_B))]  # noqa: E731
    compare(ours, theirs, x, gradients)
    theirs.eval()
    torch.testing.assert_close(ours.edit(unread).rows(frozen.weight.detach(), 0), theirs.weight.data)


@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
def test_biases_are_those_of_loralib(bias: str) -> None:
    model = build("bert")
    reference = copy.deepcopy(model)
    for block in reference.bert.encoder.layer:
        for name in ("query", "value"):
            setattr(block.attention.self, name, loralib.Linear(64, 64, r=2))
    loralib.mark_only_lora_as_trainable(reference, bias=bias)
    expected = {name for name, p in reference.named_parameters() if p.requires_grad and "lora_" not in name}
    adapt(model, rank=2, targets=["q", "v"], bias=bias)
    ours = {name for name in trainable_parameters(model) if ".update." not in name}
    assert ours == expected
    assert len(ours) == {"none": 0, "lora_only": 4, "all": 2 * 8 + 3}[bias]


def test_biases_of_a_model_without_any() -> None:
    with pytest.raises(RecipeError, match="method.bias: lora_only, but no such module of this model has a bias"):
        adapt(build("llama"), targets=["q"], bias="lora_only")


def test_biases_of_a_bfloat16_base_train() -> None:
    model = build("bert").bfloat16()
    adapt(model, rank=2, targets=["q"], bias="lora_only")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(input_ids=ids()).logits.sum().backward()
    assert all(p.dtype == torch.float32 and p.grad is not None for p in trainable_parameters(model).values())


# --- the layer ------------------------------------------------------------------------------------------------------


def test_equation_three() -> None:
    torch.manual_seed(0)
    made = holder(nn.Linear(6, 10), rank=2, alpha=8)
    randomise(made, 1.0)
    pair = made.update
    assert isinstance(pair, LowRank)
    x = torch.randn(5, 6)
    expected = x @ made.weight.T + made.bias + 8 / 2 * x @ pair.A.T @ pair.B.T
    torch.testing.assert_close(made(x), expected)


@pytest.mark.parametrize(("rslora", "scaling"), [(False, 12 / 4), (True, 12 / 2)])
def test_scaling(rslora: bool, scaling: float) -> None:
    pair = holder(nn.Linear(6, 10), rank=4, alpha=12, rslora=rslora).update
    assert isinstance(pair, LowRank)
    assert pair.scaling == scaling


def test_dropout_acts_on_the_updates_input_only() -> None:
    torch.manual_seed(0)
    made = holder(nn.Linear(50, 10), rank=4, dropout=0.5)
    x = torch.randn(3, 50)
    made.train()
    assert torch.equal(made(x), made.frozen(x))  # B is zero: whatever is dropped, the projection sees all of x
    randomise(made)
    torch.manual_seed(9)
    dropped = nn.functional.dropout(x, 0.5)
    torch.manual_seed(9)
    torch.testing.assert_close(made(x), made.frozen(x) + made.update(dropped))
    made.eval()
    assert torch.equal(made(x), made.frozen(x) + made.update(x))


def test_frozen_weight_and_bias_are_exposed_read_only() -> None:
    frozen = nn.Linear(6, 10)
    made = holder(frozen, rank=2)
    assert made.weight is frozen.weight
    assert made.bias is frozen.bias
    assert holder(nn.Linear(6, 10, bias=False), rank=2).bias is None
    assert holder(nn.Embedding(6, 10), rank=2).bias is None
    with pytest.raises((AttributeError, KeyError)):
        made.weight = torch.zeros(1)  # type: ignore[misc]
    assert [name for name, p in made.named_parameters() if p.requires_grad] == ["update.A", "update.B"]


def test_another_update_switches_the_adapter() -> None:
    torch.manual_seed(0)
    made = holder(nn.Linear(6, 10), rank=2)
    x, other = torch.randn(5, 6), LowRank(6, 10, 3, scaling=2.0)
    nn.init.normal_(other.A)
    nn.init.normal_(other.B)
    made.update = other
    torch.testing.assert_close(made(x), made.frozen(x) + 2 * x @ other.A.T @ other.B.T)


def delta(pair: LowRank) -> Tensor:
    return pair.scaling * pair.B.detach() @ pair.A.detach()


@pytest.mark.parametrize("block", [1, 4, 100])
@pytest.mark.parametrize("kind", ["linear", "conv1d", "embedding", "row blocks", "fused conv1d"])
def test_edit_is_the_explicit_difference(kind: str, block: int) -> None:
    torch.manual_seed(0)
    frozen: nn.Module = {
        "linear": lambda: nn.Linear(6, 12),
        "conv1d": lambda: Conv1D(12, 6),
        "embedding": lambda: nn.Embedding(6, 12),
        "row blocks": lambda: nn.Linear(6, 12),
        "fused conv1d": lambda: Conv1D(12, 6),
    }[kind]()
    rows = {"v": slice(8, 12), "q": slice(0, 4)}
    if kind in {"row blocks", "fused conv1d"}:
        update: Any = RowBlocks(12, {"v": LowRank(6, 4, 2, 1.5), "q": LowRank(6, 4, 3, 0.5)}, rows)
    else:
        update = (LowRankEmbedding if kind == "embedding" else LowRank)(6, 12, 2, 1.5)
    for parameter in update.parameters():
        nn.init.normal_(parameter)
    made = layer(frozen, update)
    expected = torch.zeros(12, 6)
    if isinstance(update, RowBlocks):
        for name, pair in update.pairs().items():
            expected[rows[name]] = delta(pair)
    else:
        expected = delta(update)
    stored = made.weight.detach()
    if stored.shape != (12, 6):
        expected = expected.T
    edit = made.edit(unread)
    pieces = [edit.rows(stored[start : start + block], start) for start in range(0, len(stored), block)]
    torch.testing.assert_close(torch.cat(pieces), stored + expected)
    x = torch.randint(0, 6, (4,)) if kind == "embedding" else torch.randn(3, 4, 6)
    merged = copy.deepcopy(frozen)
    merged.weight.data = torch.cat(pieces)  # type: ignore[union-attr]
    torch.testing.assert_close(merged(x), made(x))


def test_bfloat16_base_computes_the_update_in_float32() -> None:
    torch.manual_seed(0)
    made = holder(nn.Linear(64, 64).bfloat16(), rank=8)
    randomise(made)
    x = torch.randn(5, 64).bfloat16()
    assert made(x).dtype == torch.bfloat16
    assert isinstance(made.update, LowRank)
    exact = made.update(x)
    assert exact.dtype == torch.float32
    assert torch.equal(made(x), made.frozen(x) + exact.bfloat16())


def test_autocast_runs_the_update_in_bfloat16() -> None:
    made = holder(nn.Linear(64, 64), rank=8)
    randomise(made)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert made(torch.randn(5, 64)).dtype == torch.bfloat16
        assert made.update(torch.randn(5, 64)).dtype == torch.bfloat16


# --- on whole models ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model_type", "kind"), MODELS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_gradients_reach_exactly_what_is_trained(model_type: str, kind: str, precision: str) -> None:
    model = build(model_type, kind)
    if precision == "bfloat16":
        model = model.bfloat16()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapt(model, rank=2, targets=["all-linear", EMBEDDING[model_type]])
    randomise(model)
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        logits = model(input_ids=ids()).logits.float()
    logits.square().mean().backward()
    trained = trainable_parameters(model)
    for name, parameter in trained.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
        assert parameter.grad.dtype == torch.float32
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    assert all(parameter.grad is None for parameter in frozen)
    torch.optim.AdamW(trained.values(), lr=0.1).step()
    after = {name.replace(".frozen.", "."): value for name, value in model.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("model_type", "kind", "names", "modules"),
    [
        ("llama", "generation", ["q", "v", "down"], ["q_proj", "v_proj", "down_proj"]),
        ("bert", "classification", ["q", "k", "up"], ["query", "key", "intermediate.dense"]),
        ("gpt2", "generation", ["up", "down"], ["c_fc", "mlp.c_proj"]),
    ],
)
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT calls the old name
def test_equals_peft(model_type: str, kind: str, names: list[str], modules: list[str]) -> None:
    import peft

    ours = build(model_type, kind)
    config = peft.LoraConfig(
        r=3, lora_alpha=12, target_modules=modules, use_rslora=True, fan_in_fan_out=model_type == "gpt2"
    )
    theirs = peft.get_peft_model(copy.deepcopy(ours), config)
    adapt(ours, rank=3, alpha=12, targets=names, rslora=True)
    randomise(ours)
    mine = trainable_parameters(ours)
    other = of_peft(theirs)
    assert other.keys() == mine.keys()
    with torch.no_grad():
        for name, parameter in other.items():
            parameter.copy_(mine[name])
    outputs = [model.eval()(input_ids=ids()).logits for model in (ours, theirs)]
    torch.testing.assert_close(outputs[0], outputs[1])
    for logits in outputs:
        logits.square().mean().backward()
    for name, parameter in other.items():
        torch.testing.assert_close(grad(mine[name]), grad(parameter))


def test_tied_embedding_adapts_one_use() -> None:
    """The language model's head keeps the frozen matrix that it shares with the adapted embedding."""
    model = build("llama", "generation", tie_word_embeddings=True)
    before = model.lm_head(torch.ones(1, 64))
    adapt(model, rank=2, targets=["model.embed_tokens"])
    randomise(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head(torch.ones(1, 64)), before)


def test_coverage_says_what_each_target_matched() -> None:
    blocks = [f"transformer.h.{layer}" for layer in range(2)]
    assert adapt(build("gpt2"), rank=2, targets=["v", "*.c_fc"]) == {
        "v": [f"{block}.attn.c_attn" for block in blocks],
        "*.c_fc": [f"{block}.mlp.c_fc" for block in blocks],
    }


@pytest.mark.parametrize(
    ("model_type", "modules"), [("bert", ["query", "value"]), ("gpt2", ["c_attn", "c_proj", "c_fc"])]
)
def test_default_targets(model_type: str, modules: list[str]) -> None:
    model = build(model_type)
    adapt(model, rank=2)
    found = {path.rsplit(".", 1)[1] for path, module in model.named_modules() if isinstance(module, LoRALayer)}
    assert found == set(modules)
    assert LoRA().resolve(ARCHITECTURES["bert"]).targets == ["q", "v"]
    assert LoRA().resolve(ARCHITECTURES["gpt2"]).targets == ["all-linear"]
    assert LoRA(targets=["o"]).resolve(ARCHITECTURES["gpt2"]).targets == ["o"]


def test_targets_that_overlap_adapt_once() -> None:
    for targets in (["q", "all-linear"], ["*.q_proj", "q"], ["q", "*.q_proj", "*.0.*.q_proj"]):
        model = build("llama")
        adapt(model, rank=2, targets=targets, ranks={"q": 1})
        update = model.model.layers[0].self_attn.q_proj.update
        assert update.A.shape == (1, 64)  # the paper's name was kept where a pattern hit the same module
    model = build("gpt2")
    adapt(model, rank=2, targets=["all-linear", "q"])
    assert list(model.transformer.h[0].attn.c_attn.update.pairs()) == ["q", "k", "v"]


def test_whole_and_row_block() -> None:
    with pytest.raises(RecipeError, match=r"transformer\.h\.0\.attn\.c_attn is targeted both whole and by row block"):
        adapt(build("gpt2"), targets=["q", "*.c_attn"])


def test_whole_fused_projection() -> None:
    model = build("gpt2")
    adapt(model, rank=2, targets=["*.c_attn"])
    assert model.transformer.h[0].attn.c_attn.update.B.shape == (192, 2)


def test_twice() -> None:
    model = build("llama")
    adapt(model, targets=["q"])
    with pytest.raises(RecipeError, match="lora stands there twice"):
        adapt(model, targets=["v"])


def test_ranks_and_alphas_by_pattern() -> None:
    model = build("gpt2")
    adapt(
        model,
        rank=4,
        alpha=8,
        targets=["q", "v", "up"],
        ranks={"transformer.h.1.*.c_fc": 3, "up": 1, "v": 2},
        alphas={"v": 32},
    )
    blocks = model.transformer.h
    assert [blocks[i].mlp.c_fc.update.A.shape[0] for i in range(2)] == [1, 3]  # the first pattern that matches
    pairs = blocks[0].attn.c_attn.update.pairs()
    assert {name: pair.A.shape[0] for name, pair in pairs.items()} == {"q": 4, "v": 2}
    assert {name: pair.scaling for name, pair in pairs.items()} == {"q": 8 / 4, "v": 32 / 2}
    randomise(model)
    made = blocks[0].attn.c_attn
    x = torch.randn(2, 64)
    merged = made.edit(unread).rows(made.weight.detach(), 0)
    torch.testing.assert_close(x @ merged + made.bias, made(x))


def test_patterns_that_match_nothing() -> None:
    with pytest.raises(RecipeError) as caught:
        adapt(build("llama"), targets=["q"], ranks={"v": 2, "q": 3}, alphas={"*.up_proj": 1})
    assert caught.value.problems == (
        'method.ranks: "v" matches none of the adapted matrices',
        'method.alphas: "*.up_proj" matches none of the adapted matrices',
    )


@pytest.mark.parametrize(
    ("targets", "rank", "message"),
    [
        (["v"], 33, r"method\.rank: 33 exceeds the 32x64 matrix model\.layers\.0\.self_attn\.v_proj; .* rank is 32"),
        (["model.embed_tokens"], 41, r"41 exceeds the 64x40 matrix model\.embed_tokens"),
    ],
)
def test_rank_beyond_the_matrix(targets: list[str], rank: int, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        adapt(build("llama"), targets=targets, rank=rank)


def test_rank_beyond_a_row_block() -> None:
    message = r"65 exceeds the 64x64 matrix transformer\.h\.0\.attn\.c_attn \(q\)"
    with pytest.raises(RecipeError, match=message):
        adapt(build("gpt2"), targets=["q"], rank=65)
    adapt(build("gpt2"), targets=["q"], rank=64)


@pytest.mark.parametrize(
    "section",
    [
        {"rank": 0},
        {"rank": True},
        {"rank": "8"},
        {"alpha": 0},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"targets": []},
        {"init": "orthogonal"},
        {"bias": "some"},
        {"ranks": {"q": 0}},
        {"r": 8},
    ],
)
def test_sections_that_are_refused(section: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LoRA(**section)


def test_meta_models_stay_on_the_meta_device() -> None:
    model, real = build("gpt2", device="meta"), build("gpt2")
    for each in (model, real):
        adapt(each, rank=2, targets=["all-linear", "transformer.wte"])
    assert all(parameter.is_meta for parameter in model.parameters())
    shapes = [{name: p.shape for name, p in trainable_parameters(each).items()} for each in (model, real)]
    assert shapes[0] == shapes[1]


# --- the paper's counts, and its published adapter --------------------------------------------------------------------


def of_config(base: str, kind: str, num_labels: int = 2) -> Any:
    config = AutoConfig.for_model(**CONFIGS[base], num_labels=num_labels)
    auto = AutoModelForSequenceClassification if kind == "classification" else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(config)
    freeze(model)
    return model


@pytest.mark.parametrize(
    ("base", "kind", "targets", "rank", "count"),
    [
        ("FacebookAI/roberta-base", "classification", ["q", "v"], 8, 294_912),
        ("FacebookAI/roberta-large", "classification", ["q", "v"], 8, 786_432),
        ("openai-community/gpt2-medium", "generation", ["q", "v"], 4, 393_216),
        ("openai-community/gpt2-large", "generation", ["q", "v"], 4, 737_280),
        ("meta-llama/Llama-3.1-8B", "generation", ["q", "v"], 8, 3_407_872),
        ("meta-llama/Llama-3.1-8B", "generation", ["all-linear"], 16, 41_943_040),
        ("meta-llama/Llama-3.1-8B", "generation", ["all-linear"], 64, 167_772_160),
    ],
)
def test_counts_of_the_paper(base: str, kind: str, targets: list[str], rank: int, count: int) -> None:
    model = of_config(base, kind)
    adapt(model, rank=rank, targets=targets)
    assert sum(parameter.numel() for parameter in trainable_parameters(model).values()) == count


def test_the_authors_published_adapter_fits_one_to_one() -> None:
    if not PUBLISHED.is_file():
        pytest.skip("needs ../shared/golden/loralib")
    published = torch.load(PUBLISHED, map_location="cpu", weights_only=True)
    assert len(published) == 52
    model = of_config("FacebookAI/roberta-base", "classification", num_labels=3)
    model.classifier.requires_grad_(True)
    adapt(model, rank=8, alpha=16, targets=["q", "v"])
    ours = {name: tuple(parameter.shape) for name, parameter in trainable_parameters(model).items()}
    renamed = {
        name.replace(".lora_A", ".update.A").replace(".lora_B", ".update.B"): tuple(value.shape)
        for name, value in published.items()
    }
    assert ours == renamed
    adapter = sum(math.prod(shape) for name, shape in ours.items() if ".update." in name)
    head = sum(math.prod(shape) for name, shape in ours.items() if name.startswith("classifier."))
    assert (adapter, head) == (294_912, 592_899)

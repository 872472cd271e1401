"""PiSSA beside its definition and PEFT."""

import copy
import math
from typing import Any

import pytest
import torch
from bare_models import bare_model, of_peft, random_ids
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorakit.arch import ARCHITECTURES, architecture
from lorakit.errors import RecipeError
from lorakit.layers.low_rank import LowRank, RowBlocks
from lorakit.layers.pissa import Principal, matrix
from lorakit.methods.base import Method
from lorakit.methods.lora import LoRA
from lorakit.surgery import load_trainable, trainable_parameters, trainable_state

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # PEFT calls the old name
]


def adapt(model: Any, **method: Any) -> LoRA:
    made = LoRA(**{"rank": 3, "alpha": 12.0, "init": "pissa", **method})
    made.apply(model, architecture(model.config), 0)
    return made


def move(model: nn.Module, scale: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)


def test_begins_with_the_best_approximation() -> None:
    torch.manual_seed(0)
    weight, pair = torch.randn(8, 6), Principal(6, 8, 2, 3.0)
    pair.begin(weight)
    u, s, vt = torch.linalg.svd(weight)
    torch.testing.assert_close(3.0 * (pair.B0 @ pair.A0), u[:, :2] @ torch.diag(s[:2]) @ vt[:2])
    assert torch.equal(pair.A, pair.A0)
    assert torch.equal(pair.B, pair.B0)
    # the singular values are shared alike
    torch.testing.assert_close(pair.A0.norm(dim=1), pair.B0.norm(dim=0))
    x = torch.randn(5, 6)
    assert not pair(x).any()
    nn.init.normal_(pair.A)
    nn.init.normal_(pair.B)
    expected = 3.0 * (pair.B @ pair.A - pair.B0 @ pair.A0)
    torch.testing.assert_close(pair(x), x @ expected.T)
    left, right = pair.factors()
    torch.testing.assert_close(left @ right, expected)
    pair(x).square().sum().backward()
    a, b = (p.detach().clone().requires_grad_() for p in (pair.A, pair.B))
    (3.0 * (x @ (b @ a - pair.B0 @ pair.A0).T)).square().sum().backward()
    torch.testing.assert_close(pair.A.grad, a.grad, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(pair.B.grad, b.grad, rtol=1e-4, atol=1e-3)


def test_the_matrix_of_a_module() -> None:
    linear, conv = nn.Linear(6, 12), Conv1D(12, 6)
    assert torch.equal(matrix(linear, None), linear.weight)
    assert torch.equal(matrix(conv, None), conv.weight.T)
    assert torch.equal(matrix(conv, slice(4, 8)), conv.weight.T[4:8])
    assert torch.equal(matrix(linear, (0, 3, 5)), linear.weight[[0, 3, 5]])


@pytest.mark.parametrize("precision", ["float32", "autocast", "bfloat16 base"])
@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama"])
def test_step_zero_equals_the_base_bit_for_bit(model_type: str, precision: str) -> None:
    model = bare_model(model_type)
    if precision == "bfloat16 base":
        model = model.bfloat16()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "autocast"):
        before = model(input_ids=random_ids()).logits
        adapt(model, targets=["all-linear"])
        assert torch.equal(before, model(input_ids=random_ids()).logits)
        move(model)
        assert not torch.equal(before, model(input_ids=random_ids()).logits)


def test_row_blocks_are_decomposed_apart() -> None:
    model = bare_model("gpt2")
    adapt(model, targets=["q", "v"])
    layer = model.transformer.h[0].attn.c_attn
    assert isinstance(layer.update, RowBlocks)
    size = layer.weight.shape[1] // 3
    for index, name in ((0, "q"), (2, "v")):
        pair = layer.update.pairs()[name]
        values = torch.linalg.svdvals(layer.weight.T[index * size : (index + 1) * size])[:3]
        torch.testing.assert_close(torch.linalg.svdvals(pair.scaling * pair.B0 @ pair.A0)[:3], values)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("model_type", "kind", "names", "modules"),
    [
        ("llama", "generation", ["q", "v", "down"], ["q_proj", "v_proj", "down_proj"]),
        ("bert", "classification", ["q", "k", "up"], ["query", "key", "intermediate.dense"]),
        ("gpt2", "generation", ["up", "down"], ["c_fc", "mlp.c_proj"]),
    ],
)
@pytest.mark.parametrize("rslora", [False, True])
def test_trains_as_peft_does(model_type: str, kind: str, names: list[str], modules: list[str], rslora: bool) -> None:
    """The same initial values but for signs; then the same losses, gradients and products B A in every step."""
    import peft

    ours = bare_model(model_type, kind)
    config = peft.LoraConfig(
        r=3,
        lora_alpha=12,
        target_modules=modules,
        init_lora_weights="pissa",
        use_rslora=rslora,
        fan_in_fan_out=model_type == "gpt2",
    )
    theirs: Any = peft.get_peft_model(copy.deepcopy(ours), config).eval()
    adapt(ours, targets=names, rslora=rslora)
    mine, other = trainable_parameters(ours), of_peft(theirs)
    assert other.keys() == mine.keys()
    for name, parameter in other.items():
        torch.testing.assert_close(mine[name].abs(), parameter.abs(), rtol=1e-3, atol=1e-4)
        parameter.data.copy_(mine[name].data)  # other signs, the same product
    optimizers = [torch.optim.AdamW(list(group.values()), lr=0.003) for group in (mine, other)]
    for step in range(5):
        losses = [model(input_ids=random_ids(step)).logits.logsumexp(-1).square().mean() for model in (ours, theirs)]
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
        for loss in losses:
            loss.backward()
        for name, parameter in other.items():
            assert mine[name].grad is not None
            torch.testing.assert_close(mine[name].grad, parameter.grad, rtol=1e-3, atol=1e-4)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for name in (name.removesuffix(".A") for name in mine if name.endswith(".A")):
        product = [group[f"{name}.B"].detach() @ group[f"{name}.A"].detach() for group in (mine, other)]
        torch.testing.assert_close(*product, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama"])
def test_leaves_as_a_plain_lora_of_the_unchanged_base(model_type: str, rslora: bool) -> None:
    model = bare_model(model_type)
    plain = copy.deepcopy(model)
    block = {"gpt2": "*.h.1.*", "bert": "*.layer.1.*", "llama": "*.layers.1.*"}[model_type]
    fields: dict[str, Any] = {"targets": ["q", "v", "up"], "ranks": {"v": 2, block: 4}, "alphas": {"up": 7.0}}
    method = adapt(model, rslora=rslora, **fields)
    move(model)
    state = trainable_state(model)
    published, left = method.publish(state)
    assert isinstance(published, LoRA)
    assert (published.init, published.rank, published.ranks) == ("kaiming", 6, {"v": 4, block: 8})
    assert published.alpha == pytest.approx(12 * (math.sqrt(2) if rslora else 2))
    assert not any(name.endswith(("A0", "B0")) for name in left)
    published.apply(plain, architecture(plain.config), 0)
    load_trainable(plain, left, "test")
    assert any(isinstance(module, Principal) for module in model.modules())
    assert not any(isinstance(module, Principal) for module in plain.modules())
    with torch.no_grad():
        torch.testing.assert_close(
            plain(input_ids=random_ids()).logits, model(input_ids=random_ids()).logits, rtol=1e-5, atol=1e-6
        )
    assert method.publish({}) == (published, {})


def test_others_are_published_as_they_are() -> None:
    method: Method = LoRA(rank=3)
    state: dict[str, Tensor] = {"x.update.A": torch.zeros(1)}
    assert method.publish(state) == (method, state)


def test_checkpoints_hold_what_the_pair_began_with() -> None:
    model, other, skeleton = bare_model("llama"), bare_model("llama"), bare_model("llama", device="meta")
    for each in (model, other, skeleton):
        adapt(each, targets=["q"])
    move(model)
    state = trainable_state(model)
    path = "model.layers.0.self_attn.q_proj.update"
    assert {name for name in state if name.startswith(path)} == {f"{path}.{key}" for key in ("A", "B", "A0", "B0")}
    state[f"{path}.A0"] += 1.0  # as if another machine had decomposed the matrix
    for each in (other, skeleton):
        load_trainable(each, state, "test")
        assert all(torch.equal(value, state[name]) for name, value in trainable_state(each).items())
        assert [name for name in trainable_parameters(each) if name.endswith("0")] == []
    pair = skeleton.get_submodule(path)
    assert isinstance(pair, LowRank)
    assert torch.equal(pair.pair()[1][3:], state[f"{path}.A0"])


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"method.init: bert.embeddings.word_embeddings is a table.*kaiming"):
        adapt(bare_model("bert"), targets=["*.word_embeddings"])
    with pytest.raises(RecipeError, match=r"33 exceeds the 64x64 matrix .*; the largest rank is 32, since init: pissa"):
        adapt(bare_model("bert"), targets=["q"], rank=33)
    with pytest.raises(ValueError, match="use one of the two"):
        LoRA(init="pissa", dora=True)
    assert ARCHITECTURES["bert"].tiny["hidden_size"] == 64

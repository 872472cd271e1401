"""DoRA beside its definition and PEFT."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import logits, open_adapted, tiny_base
from bare_models import bare_model, of_peft, random_ids
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorakit.arch import ARCHITECTURES, architecture
from lorakit.errors import RecipeError
from lorakit.layers.dora import DoRALayer
from lorakit.layers.low_rank import LowRank, RowBlocks
from lorakit.methods.lora import LoRA
from lorakit.model import Base, Head, prepare
from lorakit.surgery import trainable_parameters

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # PEFT calls the old name
]


def blocks(weight: Tensor, size: int = 5) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(weight), size):
        yield start, weight[start : start + size].detach().float()


def made(kind: str) -> DoRALayer:
    """A layer with everything moved from its initial values."""
    torch.manual_seed(0)
    conv = kind.endswith("conv1d")
    frozen: nn.Module = Conv1D(12, 6) if conv else nn.Linear(6, 12)
    frozen.requires_grad_(False)
    nn.init.normal_(frozen.get_parameter("weight"))
    nn.init.normal_(frozen.get_parameter("bias"))
    rows: dict[str, Any] = {}
    update: Any = LowRank(6, 12, 2, 1.5)
    if kind.startswith("fused"):
        rows = {"v": slice(8, 12), "q": (0, 2, 4)}
        update = RowBlocks(12, {"v": LowRank(6, 4, 2, 1.5), "q": LowRank(6, 3, 3, 0.5)}, rows)
    layer = DoRALayer(frozen, update, 0.0, rows)
    for parameter in layer.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    return layer


@pytest.mark.parametrize("kind", ["linear", "conv1d", "fused linear", "fused conv1d"])
def test_forward_and_edit_are_the_definition(kind: str) -> None:
    layer = made(kind)
    frozen = layer.frozen
    weight = layer.weight.detach()
    w0 = weight.T if kind.endswith("conv1d") else weight
    left, right = layer.update.factors()
    moved = w0 + left @ right
    outputs = [8, 9, 10, 11, 0, 2, 4] if kind.startswith("fused") else list(range(12))
    assert layer.magnitude.shape == (len(outputs),)
    expected = moved.clone()
    for index, output in enumerate(outputs):
        expected[output] = layer.magnitude[index].detach() * moved[output] / moved[output].norm()
    untouched = [output for output in range(12) if output not in outputs]
    assert torch.equal(expected[untouched], w0[untouched])
    x = torch.randn(5, 6)
    torch.testing.assert_close(layer(x), x @ expected.T + layer.bias)
    edit = layer.edit(lambda: blocks(weight))
    got = torch.cat([edit.rows(block, start) for start, block in blocks(weight, 4)])
    torch.testing.assert_close(got.T if kind.endswith("conv1d") else got, expected)
    merged = copy.deepcopy(frozen)
    merged.get_parameter("weight").data = got
    torch.testing.assert_close(merged(x), layer(x))


def test_no_gradient_flows_through_the_norm() -> None:
    layer = made("linear")
    assert isinstance(layer.update, LowRank)
    x = torch.randn(5, 6)
    layer(x).square().sum().backward()
    a, b, m = (p.detach().clone().requires_grad_() for p in (layer.update.A, layer.update.B, layer.magnitude))
    moved = layer.weight + 1.5 * b @ a
    (x @ (moved * (m / moved.norm(dim=1).detach())[:, None]).T + layer.bias).square().sum().backward()
    for ours, theirs in ((layer.update.A, a), (layer.update.B, b), (layer.magnitude, m)):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_row_of_zeros_is_no_nan() -> None:
    frozen = nn.Linear(6, 4).requires_grad_(False)
    frozen.weight[2] = 0
    update = LowRank(6, 4, 2, 1.0)
    nn.init.normal_(update.A)
    layer = DoRALayer(frozen, update, 0.0, {})
    x = torch.randn(3, 6)
    assert torch.equal(layer(x), frozen(x))
    layer(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.update.parameters())
    assert layer.edit(lambda: blocks(frozen.weight)).rows(frozen.weight, 0).isfinite().all()


@pytest.mark.parametrize("precision", ["float32", "autocast", "bfloat16 base"])
@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama"])
def test_step_zero_equals_the_base_bit_for_bit(model_type: str, precision: str) -> None:
    model = bare_model(model_type)
    if precision == "bfloat16 base":
        model = model.bfloat16()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "autocast"):
        before = model(input_ids=random_ids()).logits
        LoRA(rank=4, targets=["all-linear"], dora=True).apply(model, architecture(model.config), 0)
        assert torch.equal(before, model(input_ids=random_ids()).logits)


@pytest.mark.parametrize(
    ("model_type", "kind", "names", "modules"),
    [
        ("llama", "generation", ["q", "v", "down"], ["q_proj", "v_proj", "down_proj"]),
        ("bert", "classification", ["q", "k", "up"], ["query", "key", "intermediate.dense"]),
        ("gpt2", "generation", ["up", "down"], ["c_fc", "mlp.c_proj"]),
    ],
)
def test_trains_as_peft_does(model_type: str, kind: str, names: list[str], modules: list[str]) -> None:
    """The same A to begin with; then loss, gradients and parameters of every step."""
    import peft

    ours = bare_model(model_type, kind)
    config = peft.LoraConfig(
        r=3, lora_alpha=12, target_modules=modules, use_dora=True, use_rslora=True, fan_in_fan_out=model_type == "gpt2"
    )
    theirs: Any = peft.get_peft_model(copy.deepcopy(ours), config).eval()
    LoRA(rank=3, alpha=12, targets=names, dora=True, rslora=True).apply(ours, architecture(ours.config), 0)
    mine = trainable_parameters(ours)
    other = of_peft(theirs)
    assert other.keys() == mine.keys()
    for name, parameter in other.items():
        if name.endswith("magnitude"):
            torch.testing.assert_close(parameter.data, mine[name].data)
        else:
            parameter.data.copy_(mine[name].data)
    optimizers = [torch.optim.AdamW(list(group.values()), lr=0.01) for group in (mine, other)]
    for step in range(5):
        batch = random_ids(step)
        losses = [model(input_ids=batch).logits.logsumexp(-1).square().mean() for model in (ours, theirs)]
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-6)
        for loss in losses:
            loss.backward()
        for name, parameter in other.items():
            torch.testing.assert_close(mine[name].grad, parameter.grad, rtol=1e-3, atol=1e-5)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for name, parameter in other.items():
        torch.testing.assert_close(mine[name], parameter, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama"])
def test_meta_models_get_the_same_parameters(model_type: str) -> None:
    shapes = []
    for device in ("cpu", "meta"):
        model = bare_model(model_type, device=device)
        LoRA(rank=2, targets=["q", "v"], dora=True).apply(model, architecture(model.config), 0)
        shapes.append({name: p.shape for name, p in trainable_parameters(model).items()})
        assert all(p.is_meta == (device == "meta") for p in model.parameters())
    assert shapes[0] == shapes[1]
    assert sum(name.endswith(".magnitude") for name in shapes[0]) == (2 if model_type == "gpt2" else 4)


def test_of_a_fused_projection_only_the_adapted_rows_have_a_magnitude() -> None:
    model = bare_model("gpt2")
    LoRA(rank=2, targets=["q", "v"], dora=True).apply(model, architecture(model.config), 0)
    layer = model.transformer.h[0].attn.c_attn
    norms = layer.weight.norm(dim=0)
    size = len(norms) // 3
    torch.testing.assert_close(layer.magnitude.data, torch.cat([norms[:size], norms[2 * size :]]))


def test_embeddings_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"method.dora: bert.embeddings.word_embeddings is a table.*leave it out"):
        LoRA(rank=2, targets=["*.word_embeddings"], dora=True).apply(bare_model("bert"), ARCHITECTURES["bert"], 0)


def test_dropout_is_on_the_update_alone(tmp_path: Path) -> None:
    """With B at zero dropout has nothing to act on: training computes what the base does."""
    base = tiny_base(tmp_path, "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    section, head = Base(base=str(base)), Head("classification", ("no", "maybe", "yes"))
    plain = prepare(section, [], head, seed=0).model
    model = prepare(section, [LoRA(rank=4, targets=["q", "v"], dora=True, dropout=0.5)], head, seed=0).model
    assert torch.equal(logits(model.train()), logits(plain))
    opened = open_adapted(base, [LoRA(rank=4, targets=["q", "v"], dora=True, dropout=0.5)], "classification")
    assert opened.state["bert.encoder.layer.0.attention.self.query.magnitude"].shape == (64,)

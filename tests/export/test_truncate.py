"""`--rank`: the nearest matrix of a lower rank, and what that loses."""

import math
from pathlib import Path

import pytest
import torch
from adapted import live_model, logits, open_adapted, tiny_base
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from lorakit.checkpoint import Opened
from lorakit.errors import MergeError
from lorakit.export import EXPORTERS, export
from lorakit.export.pairs import lora_layers
from lorakit.export.peft import WEIGHTS
from lorakit.export.truncate import best, truncate
from lorakit.methods import Full, LoRA

ALL = LoRA(rank=6, alpha=12, targets=["all-linear"])


def updates(opened: Opened) -> dict[str, Tensor]:
    """Every module's ΔW, whole, in float64."""
    found = {}
    for path, layer in lora_layers(opened.prepared.model).items():
        left, right = layer.update.factors()
        found[path] = left.double() @ right.double()
    return found


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_the_error_is_the_tail_of_the_singular_values(out: int, in_: int, r: int, rank: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(out, r, generator=generator), torch.randn(r, in_, generator=generator)
    b, a, values = best(left, right, rank)
    whole = left.double() @ right.double()
    singular = torch.linalg.svdvals(whole)
    count = min(len(values), len(singular))
    torch.testing.assert_close(values[:count], singular[:count])
    assert float(singular[count:].sum()) < 1e-9
    error = torch.linalg.matrix_norm(whole - b.double() @ a.double())
    torch.testing.assert_close(error, singular[rank:].square().sum().sqrt(), atol=1e-5, rtol=1e-5)


def test_a_planted_low_rank_is_found_again(tmp_path: Path) -> None:
    """Of rank 6 in its factors, of rank 2 in truth: nothing is lost."""
    opened = open_adapted(tiny_base(tmp_path, "llama"), [ALL], "generation")
    for layer in lora_layers(opened.prepared.model).values():
        with torch.no_grad():
            layer.update.B[:, 2:] = layer.update.B[:, :2] @ torch.randn(2, 4)  # type: ignore[index]
    before = updates(opened)
    cut, lost = truncate(opened, 2)
    for path, delta in updates(cut).items():
        assert cut.state[f"{path}.update.A"].shape[0] == 2
        torch.testing.assert_close(delta, before[path], atol=1e-6, rtol=1e-5)
    assert lost.modules == len(before) == 14
    assert lost.error < 1e-6


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "phi3"])
def test_what_is_reported_is_what_is_lost(tmp_path: Path, model_type: str) -> None:
    """Row blocks of one matrix are cut together; the embeddings' table too."""
    table = {"llama": "model.embed_tokens", "gpt2": "transformer.wte", "phi3": "model.embed_tokens"}[model_type]
    method = LoRA(rank=5, alpha=12, targets=["q", "v", "up", table], ranks={"up": 2})
    opened = open_adapted(tiny_base(tmp_path, model_type), [method], "generation")
    before = updates(opened)
    cut, lost = truncate(opened, 3)
    after = updates(cut)
    errors = {path: float((after[path] - before[path]).norm() / before[path].norm()) for path in before}
    assert lost.modules == sum(error > 1e-6 for error in errors.values())
    assert lost.worst == pytest.approx(max(errors.values()), rel=1e-5)
    assert errors[lost.worst_module] == max(errors.values())
    squares = [
        sum(float(d.norm() ** 2) for d in deltas)
        for deltas in ([after[p] - before[p] for p in before], before.values())
    ]
    assert lost.error == pytest.approx(math.sqrt(squares[0] / squares[1]), rel=1e-5)
    assert 0.05 < lost.error < 1


def test_modules_of_no_higher_rank_keep_their_bytes(tmp_path: Path) -> None:
    opened = open_adapted(
        tiny_base(tmp_path, "llama"), [LoRA(rank=6, targets=["q", "v"], ranks={"v": 2})], "generation"
    )
    before = dict(opened.state)
    cut, lost = truncate(opened, 2)
    assert lost.modules == 2
    for name, tensor in cut.state.items():
        assert torch.equal(tensor, before[name]) == ("v_proj" in name)


def test_a_rank_that_all_have_loses_nothing(tmp_path: Path) -> None:
    opened = open_adapted(tiny_base(tmp_path, "llama"), [ALL], "generation")
    before = dict(opened.state)
    cut, lost = truncate(opened, 6)
    assert (lost.modules, lost.error) == (0, 0.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in cut.state.items())


@pytest.mark.parametrize("to", EXPORTERS)
@pytest.mark.parametrize("rslora", [False, True])
def test_every_format_takes_what_is_left(tmp_path: Path, to: str, rslora: bool) -> None:
    method = LoRA(rank=6, targets=["all-linear"], rslora=rslora)
    opened = open_adapted(tiny_base(tmp_path, "llama"), [method], "generation")
    report = export(opened, to, tmp_path / "out", rank=3)
    assert report.max_difference < 1e-6
    assert report.truncation is not None
    rows = dict(report.rows())
    assert rows["modules cut to rank 3"] == "14"
    assert rows["relative error of ΔW by that"] == f"{report.truncation.error:.2%}"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_peft_computes_what_is_left(tmp_path: Path) -> None:
    base = tiny_base(tmp_path, "gpt2")
    opened = open_adapted(base, [LoRA(rank=6, targets=["q", "v", "o"])], "generation", skeleton=False)
    whole = logits(live_model(opened))
    export(opened, "peft", tmp_path / "out", rank=3)
    tensors = load_file(tmp_path / "out" / WEIGHTS)
    assert {tensor.shape[0] for name, tensor in tensors.items() if "lora_A" in name} == {3}
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "out")).eval()
    torch.testing.assert_close(logits(model), logits(opened.prepared.model), atol=1e-5, rtol=1e-5)
    assert (logits(model) - whole).abs().max() > 0.01


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (LoRA(rank=4, dora=True), "q_proj: DoRA's magnitudes belong to the whole ΔW.*leave --rank out"),
        (Full(), "adapts no matrix"),
    ],
)
def test_what_cannot_be_cut_is_refused(tmp_path: Path, method: LoRA | Full, message: str) -> None:
    opened = open_adapted(tiny_base(tmp_path, "llama"), [method], "generation")
    with pytest.raises(MergeError, match=message):
        export(opened, "peft", tmp_path / "out", rank=2)
    assert not (tmp_path / "out").exists()

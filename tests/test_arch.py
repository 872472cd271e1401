"""What each target finds in each architecture."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from lorakit.arch import ARCHITECTURES, Place, Site, architecture, in_blocks, locate, max_tokens, out_features
from lorakit.errors import ModelError, RecipeError

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 40,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
OTHERS: dict[str, dict[str, Any]] = {
    "mistral": {**SMALL, "num_key_value_heads": 1},
    "opt": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 24,
        "vocab_size": 40,
        "max_position_embeddings": 32,
        "word_embed_proj_dim": 16,
    },
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "vocab_size": 40},
    "gemma2": {**SMALL, "num_key_value_heads": 1, "head_dim": 8},
}


def build(model_type: str, kind: str = "classification", **overrides: Any) -> nn.Module:
    fields = ARCHITECTURES[model_type].tiny if model_type in ARCHITECTURES else OTHERS[model_type]
    config = AutoConfig.for_model(model_type, **{**fields, "num_labels": 2, **overrides})
    auto = AutoModelForSequenceClassification if kind == "classification" else AutoModelForCausalLM
    with torch.device("meta"):
        model: nn.Module = auto.from_config(config)
    model.requires_grad_(False)
    return model


def paths(model: nn.Module, target: str) -> list[str]:
    return [site.path for site in locate(model, architecture(model.config), target)]


BERT = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}
LLAMA = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
GPT2 = {"q": "attn.c_attn", "k": "attn.c_attn", "v": "attn.c_attn", "o": "attn.c_proj", "up": "mlp.c_fc"} | {
    "down": "mlp.c_proj"
}
EXPECTED = [
    ("bert", "classification", "bert.encoder.layer", BERT),
    ("roberta", "classification", "roberta.encoder.layer", BERT),
    ("gpt2", "classification", "transformer.h", GPT2),
    ("gpt2", "generation", "transformer.h", GPT2),
    ("llama", "classification", "model.layers", LLAMA),
    ("llama", "generation", "model.layers", LLAMA),
]


@pytest.mark.parametrize(("model_type", "kind", "blocks", "names"), EXPECTED)
def test_names_of_the_paper(model_type: str, kind: str, blocks: str, names: dict[str, str]) -> None:
    model = build(model_type, kind)
    assert set(ARCHITECTURES[model_type].places) == set(names)
    for name, path in names.items():
        assert paths(model, name) == [f"{blocks}.{layer}.{path}" for layer in range(2)]


@pytest.mark.parametrize(("model_type", "kind", "blocks", "names"), EXPECTED)
def test_all_linear_is_every_matrix_in_the_blocks(
    model_type: str, kind: str, blocks: str, names: dict[str, str]
) -> None:
    model = build(model_type, kind)
    matrices = {
        path
        for path, module in model.named_modules()
        if path.startswith(f"{blocks}.") and (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")
    }
    assert set(paths(model, "all-linear")) == matrices
    assert matrices  # and not two empty sets


def test_fused_projection_is_three_row_blocks() -> None:
    sites = {name: locate(build("gpt2"), ARCHITECTURES["gpt2"], name)[0] for name in "qkv"}
    assert {name: site.rows for name, site in sites.items()} == {
        "q": slice(0, 64),
        "k": slice(64, 128),
        "v": slice(128, 192),
    }
    assert {site.path for site in sites.values()} == {"transformer.h.0.attn.c_attn"}


def test_rows_of_a_place() -> None:
    assert Place("x").rows(9) is None
    assert Place("x", 2, 3).rows(9) == slice(6, 9)


def test_globs() -> None:
    model = build("roberta")
    assert paths(model, "*.layer.1.*.query") == ["roberta.encoder.layer.1.attention.self.query"]
    assert paths(model, "*.word_embeddings") == ["roberta.embeddings.word_embeddings"]
    assert paths(build("gpt2"), "transformer.wte") == ["transformer.wte"]
    assert locate(model, ARCHITECTURES["roberta"], "*.layer.0.*.key") == [
        Site("roberta.encoder.layer.0.attention.self.key")
    ]


def test_a_trained_head_is_no_target() -> None:
    model = build("roberta")
    assert "classifier.dense" in paths(model, "*.dense")
    model.get_submodule("classifier").requires_grad_(True)
    assert "classifier.dense" not in paths(model, "*.dense")
    assert "roberta.encoder.layer.0.attention.output.dense" in paths(model, "*.dense")


@pytest.mark.parametrize("model_type", ["mistral", "opt", "distilbert"])
def test_unknown_architecture_by_glob_and_all_linear(model_type: str) -> None:
    model = build(model_type)
    row = architecture(model.config)
    assert row.model_type == model_type
    assert row.places == {}
    assert row.decoder == (model_type != "distilbert")
    assert row.default_targets == (["all-linear"] if row.decoder else ["q", "v"])
    found = paths(model, "all-linear")
    per_block = {"mistral": 7, "opt": 6, "distilbert": 6}[model_type]
    assert len(found) == 2 * per_block
    assert all(".0." in path or ".1." in path for path in found)
    name = "q_lin" if model_type == "distilbert" else "q_proj"
    assert len(paths(model, f"*.{name}")) == 2
    with pytest.raises(RecipeError, match='"q" matches no frozen matrix'):
        locate(model, row, "q")


def test_all_linear_leaves_embeddings_in_blocks_out() -> None:
    block = nn.ModuleDict({"bias": nn.Embedding(4, 2), "dense": nn.Linear(2, 2), "norm": nn.LayerNorm(2)})
    model = nn.ModuleDict({"layers": nn.ModuleList([block]), "head": nn.Linear(2, 2)}).requires_grad_(False)
    row = architecture(AutoConfig.for_model("opt"))
    assert [site.path for site in locate(model, row, "all-linear")] == ["layers.0.dense"]
    assert [site.path for site in locate(model, row, "*.bias")] == ["layers.0.bias"]


@pytest.mark.parametrize(
    ("model_type", "target", "hint"),
    [
        ("llama", "v_porj", r'did you mean "\*\.v_proj"\?'),
        ("llama", "v_proj", r'did you mean "\*\.v_proj"\?'),
        ("llama", "*.v_porj", r'did you mean "\*\.v_proj"\?'),
        ("llama", "all_linear", r'did you mean "all-linear"\?'),
        ("llama", "gat", r'did you mean "gate"\?'),
        ("roberta", "qeury", r'did you mean "\*\.query"\?'),
        ("roberta", "gate", r'"gate" matches no frozen matrix of this roberta model'),
        ("gpt2", "c_attn", r'did you mean "\*\.c_attn"\?'),
    ],
)
def test_a_target_that_matches_nothing(model_type: str, target: str, hint: str) -> None:
    model = build(model_type)
    with pytest.raises(RecipeError, match=hint) as caught:
        locate(model, ARCHITECTURES[model_type], target)
    names = ", ".join(ARCHITECTURES[model_type].places)
    assert f"Allowed: {names}, all-linear, or a glob on the full module path, such as " in str(caught.value)
    example = str(caught.value).rsplit(" ", 1)[1]
    assert in_blocks(example, ARCHITECTURES[model_type])
    assert paths(model, example) == [example]


def test_what_is_a_matrix() -> None:
    from transformers.pytorch_utils import Conv1D

    assert out_features(nn.Linear(3, 5)) == 5
    assert out_features(Conv1D(5, 3)) == 5
    assert out_features(nn.Embedding(7, 4)) == 4
    assert out_features(nn.LayerNorm(4)) is None
    assert out_features(nn.Bilinear(2, 3, 4)) is None


def test_a_scaled_embedding_cannot_be_adapted() -> None:
    """Gemma multiplies what it looks up: an update beside it would not merge."""
    model = build("gemma2", "generation")
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    assert type(embedding) is not nn.Embedding
    with pytest.raises(RecipeError, match="matches no frozen matrix"):
        paths(model, "*.embed_tokens")


def test_positions_of_opt_take_no_ids_and_cannot_be_adapted() -> None:
    model = build("opt", "generation")
    assert paths(model, "*embed*") == ["model.decoder.embed_tokens"]


def test_encoder_decoders_are_refused() -> None:
    with pytest.raises(ModelError, match="t5: encoder-decoder models are not supported"):
        architecture(AutoConfig.for_model("t5"))


@pytest.mark.parametrize(
    ("model_type", "fields", "limit"),
    [
        ("roberta", {"max_position_embeddings": 514}, 512),
        ("bert", {"max_position_embeddings": 512}, 512),
        ("gpt2", {"n_positions": 1024}, 1024),
        ("llama", {"max_position_embeddings": 8192}, 8192),
        ("bloom", {}, None),
    ],
)
def test_longest_input(model_type: str, fields: dict[str, Any], limit: int | None) -> None:
    assert max_tokens(AutoConfig.for_model(model_type, **fields)) == limit


def test_roberta_takes_as_many_tokens_as_promised() -> None:
    config = AutoConfig.for_model("roberta", **ARCHITECTURES["roberta"].tiny, vocab_size=40)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    limit = max_tokens(config)
    assert limit == 128
    model(torch.full((1, limit), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, limit + 1), 5))


def test_in_blocks() -> None:
    llama, unknown = ARCHITECTURES["llama"], architecture(AutoConfig.for_model("opt"))
    assert in_blocks("model.layers.11.mlp.up_proj.weight", llama)
    assert not in_blocks("model.embed_tokens.weight", llama)
    assert not in_blocks("model.other_layers.0.mlp", llama)
    assert in_blocks("model.decoder.layers.1.fc1", unknown)
    assert not in_blocks("model.decoder.embed_tokens", unknown)

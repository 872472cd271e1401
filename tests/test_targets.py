"""What targets find, and what they are told where they find nothing; each architecture is in test_architectures.py."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from lorakit.arch import ARCHITECTURES, architecture
from lorakit.errors import RecipeError
from lorakit.targets import Site, in_blocks, locate, out_features

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
    "phi": {**SMALL, "num_key_value_heads": 1},
    "electra": SMALL,
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


def test_fused_projection_is_three_row_blocks() -> None:
    sites = {name: locate(build("gpt2"), ARCHITECTURES["gpt2"], name)[0] for name in "qkv"}
    assert {name: site.rows for name, site in sites.items()} == {
        "q": slice(0, 64),
        "k": slice(64, 128),
        "v": slice(128, 192),
    }
    assert {site.path for site in sites.values()} == {"transformer.h.0.attn.c_attn"}


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


@pytest.mark.parametrize("model_type", ["phi", "electra"])
def test_unknown_architecture_by_glob_and_all_linear(model_type: str) -> None:
    model = build(model_type)
    row = architecture(model.config)
    assert row.model_type == model_type
    assert row.places == {}
    assert row.decoder == (model_type == "phi")
    found = paths(model, "all-linear")
    assert len(found) == 2 * 6
    assert all(".0." in path or ".1." in path for path in found)
    assert len(paths(model, "*.q_proj" if row.decoder else "*.query")) == 2
    with pytest.raises(RecipeError, match='"q" matches no frozen matrix'):
        locate(model, row, "q")


def test_all_linear_leaves_embeddings_in_blocks_out() -> None:
    block = nn.ModuleDict({"bias": nn.Embedding(4, 2), "dense": nn.Linear(2, 2), "norm": nn.LayerNorm(2)})
    model = nn.ModuleDict({"layers": nn.ModuleList([block]), "head": nn.Linear(2, 2)}).requires_grad_(False)
    row = architecture(AutoConfig.for_model("phi"))
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


@pytest.mark.parametrize("target", ["*.embed_tokens", "model.embed*", "*"])
def test_a_scaled_embedding_cannot_be_adapted(target: str) -> None:
    """Gemma multiplies what it looks up: an update beside it would not merge."""
    model = build("gemma2", "generation")
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    assert type(embedding) is not nn.Embedding
    with pytest.raises(RecipeError, match=r"names model\.embed_tokens, a Gemma2TextScaledWordEmbedding with a forward"):
        paths(model, target)


def test_positions_of_opt_take_no_ids_and_cannot_be_adapted() -> None:
    model = build("opt", "generation")
    assert paths(model, "*embed_tokens") == ["model.decoder.embed_tokens"]
    with pytest.raises(RecipeError, match=r"names model\.decoder\.embed_positions, a OPTLearnedPositionalEmbedding"):
        paths(model, "*embed*")


def test_all_linear_takes_no_matrix_with_a_forward_of_its_own() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"a": nn.Linear(2, 2), "b": Scaled(2, 2)})])})
    model.requires_grad_(False)
    row = architecture(AutoConfig.for_model("phi"))
    with pytest.raises(RecipeError, match=r"names layers\.0\.b, a Scaled with a forward of its own"):
        locate(model, row, "all-linear")
    assert [site.path for site in locate(model, row, "*.a")] == ["layers.0.a"]


def test_in_blocks() -> None:
    llama, unknown = ARCHITECTURES["llama"], architecture(AutoConfig.for_model("phi"))
    assert in_blocks("model.layers.11.mlp.up_proj.weight", llama)
    assert not in_blocks("model.embed_tokens.weight", llama)
    assert not in_blocks("model.other_layers.0.mlp", llama)
    assert in_blocks("model.decoder.layers.1.fc1", unknown)
    assert not in_blocks("model.decoder.embed_tokens", unknown)

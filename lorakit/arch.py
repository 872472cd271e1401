"""What differs between architectures: one row each.

The paper speaks of W_q, W_k, W_v, W_o and two MLP matrices (section 4.2). A row says where a transformers model keeps
them: the module below a block, and, where one module holds several of them fused, which of its output rows are whose.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from lorakit.errors import ModelError

ALL_LINEAR = "all-linear"

Rows = slice | tuple[int, ...]
"""Output rows of a fused projection: a range, or single rows where the heads' parts alternate."""


@dataclass(frozen=True)
class Place:
    """Where one of the paper's matrices lives below a block.

    Args:
        path: Module path below the block.
        rows: For a fused projection: (config, its output rows in all) → those of this matrix. None: all are.
    """

    path: str
    rows: Callable[[Any, int], Rows] | None = None


@dataclass(frozen=True)
class Architecture:
    """One row of the table.

    Args:
        model_type: As in the model's config.json.
        decoder: Whether it is trained on next tokens (targets default to all-linear) or reads both ways (q, v).
        blocks: Path of the list of blocks, as a suffix: "encoder.layer".
        places: The paper's name → where it is.
        sublayers: Modules below a block whose outputs are added to the residual stream: the attention's and the MLP's.
        mlp_norm: Module below a block that normalises the sum behind the MLP; none where norms stand in front (pre-LN).
        final_norm: The norm behind the last block, from where `blocks` starts; none where blocks end with their own.
        head: Modules that a classification model adds on top of the body; trained whatever the method.
        position_offset: Positions that the model keeps for itself (RoBERTa counts from pad_token_id + 1).
        experts: Whether its MLPs can be mixtures of experts, whose fused weights LoRA does not adapt.
        optional: Fields that the model looks for in its config, though the config does not have them by itself.
        tiny: Config fields of the smallest sensible model, for `--smoke` and tests.
    """

    model_type: str
    decoder: bool
    blocks: str = ""
    places: dict[str, Place] = field(default_factory=dict)
    sublayers: tuple[str, str] | None = None
    mlp_norm: str | None = None
    final_norm: str | None = None
    head: tuple[str, ...] = ("classifier",)
    position_offset: int = 0
    experts: bool = False
    optional: tuple[str, ...] = ()
    tiny: dict[str, Any] = field(default_factory=dict)

    @property
    def default_targets(self) -> list[str]:
        """The paper's W_q and W_v for encoders, all-linear for decoders (LoRA Without Regret, 2025).

        Of a mixture of experts it is the attention, which is all that can be adapted; of an encoder that has no row
        here, all-linear.
        """
        if self.experts:
            return ["q", "k", "v", "o"]
        return ["q", "v"] if self.places and not self.decoder else [ALL_LINEAR]


def _part(index: int, parts: int) -> Callable[[Any, int], Rows]:
    """Equal parts, one after the other."""
    return lambda _, size: slice(index * size // parts, (index + 1) * size // parts)


def _part_of_each_head(index: int, parts: int) -> Callable[[Any, int], Rows]:
    """Head by head, equal parts of each (GPT-NeoX: q, k and v of head 0, then of head 1, …)."""

    def rows(config: Any, size: int) -> Rows:
        width = size // config.num_attention_heads // parts
        starts = range(index * width, size, parts * width)
        return tuple(row for start in starts for row in range(start, start + width))

    return rows


def _grouped(index: int) -> Callable[[Any, int], Rows]:
    """q, k and v one after the other, where fewer heads of k and v serve those of q."""

    def rows(config: Any, size: int) -> Rows:
        kv = size * config.num_key_value_heads // (config.num_attention_heads + 2 * config.num_key_value_heads)
        bounds = (0, size - 2 * kv, size - kv, size)
        return slice(bounds[index], bounds[index + 1])

    return rows


_BERT = {
    "q": Place("attention.self.query"),
    "k": Place("attention.self.key"),
    "v": Place("attention.self.value"),
    "o": Place("attention.output.dense"),
    "up": Place("intermediate.dense"),
    "down": Place("output.dense"),
}
_DEBERTA = _BERT | {
    "q": Place("attention.self.query_proj"),
    "k": Place("attention.self.key_proj"),
    "v": Place("attention.self.value_proj"),
}
_DISTILBERT = {
    "q": Place("attention.q_lin"),
    "k": Place("attention.k_lin"),
    "v": Place("attention.v_lin"),
    "o": Place("attention.out_lin"),
    "up": Place("ffn.lin1"),
    "down": Place("ffn.lin2"),
}
_MODERNBERT = {
    "q": Place("attn.Wqkv", _part(0, 3)),
    "k": Place("attn.Wqkv", _part(1, 3)),
    "v": Place("attn.Wqkv", _part(2, 3)),
    "o": Place("attn.Wo"),
    "gate": Place("mlp.Wi", _part(0, 2)),
    "up": Place("mlp.Wi", _part(1, 2)),
    "down": Place("mlp.Wo"),
}
_LLAMA = {
    "q": Place("self_attn.q_proj"),
    "k": Place("self_attn.k_proj"),
    "v": Place("self_attn.v_proj"),
    "o": Place("self_attn.o_proj"),
    "gate": Place("mlp.gate_proj"),
    "up": Place("mlp.up_proj"),
    "down": Place("mlp.down_proj"),
}
_PHI3 = _LLAMA | {
    "q": Place("self_attn.qkv_proj", _grouped(0)),
    "k": Place("self_attn.qkv_proj", _grouped(1)),
    "v": Place("self_attn.qkv_proj", _grouped(2)),
    "gate": Place("mlp.gate_up_proj", _part(0, 2)),
    "up": Place("mlp.gate_up_proj", _part(1, 2)),
}
_OPT = {
    "q": Place("self_attn.q_proj"),
    "k": Place("self_attn.k_proj"),
    "v": Place("self_attn.v_proj"),
    "o": Place("self_attn.out_proj"),
    "up": Place("fc1"),
    "down": Place("fc2"),
}
_GPT2 = {
    "q": Place("attn.c_attn", _part(0, 3)),
    "k": Place("attn.c_attn", _part(1, 3)),
    "v": Place("attn.c_attn", _part(2, 3)),
    "o": Place("attn.c_proj"),
    "up": Place("mlp.c_fc"),
    "down": Place("mlp.c_proj"),
}
_NEOX = {
    "q": Place("attention.query_key_value", _part_of_each_head(0, 3)),
    "k": Place("attention.query_key_value", _part_of_each_head(1, 3)),
    "v": Place("attention.query_key_value", _part_of_each_head(2, 3)),
    "o": Place("attention.dense"),
    "up": Place("mlp.dense_h_to_4h"),
    "down": Place("mlp.dense_4h_to_h"),
}

_BERT_SUBLAYERS = ("attention.output.dropout", "output.dropout")
_LLAMA_SUBLAYERS = ("self_attn.o_proj", "mlp")
_NORMED_SUBLAYERS = ("post_attention_layernorm", "post_feedforward_layernorm")  # normalised again before the sum

_TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
_SHORT = {**_TINY, "max_position_embeddings": 128}
_GROUPED = {**_SHORT, "num_key_value_heads": 2}
_WIDE = {**_GROUPED, "head_dim": 32}

_ROBERTA = Architecture(
    "roberta",
    False,
    "encoder.layer",
    _BERT,
    _BERT_SUBLAYERS,
    "output.LayerNorm",
    position_offset=2,
    tiny={**_TINY, "max_position_embeddings": 130, "type_vocab_size": 1},
)
_LLAMA_LIKE = Architecture(
    "llama", True, "layers", _LLAMA, _LLAMA_SUBLAYERS, final_norm="norm", head=("score",), tiny=_GROUPED
)

ARCHITECTURES = {
    row.model_type: row
    for row in (
        Architecture("bert", False, "encoder.layer", _BERT, _BERT_SUBLAYERS, "output.LayerNorm", tiny=_SHORT),
        _ROBERTA,  # PhoBERT too
        replace(_ROBERTA, model_type="xlm-roberta"),
        replace(_ROBERTA, model_type="camembert"),
        Architecture(
            "deberta-v2",  # and v3
            False,
            "encoder.layer",
            _DEBERTA,
            _BERT_SUBLAYERS,
            "output.LayerNorm",
            head=("pooler", "classifier"),
            optional=(
                "cls_dropout",
                "position_buckets",
                "share_att_key",
                "norm_rel_ebd",
                "conv_kernel_size",
                "conv_act",
            ),
            tiny={
                **_SHORT,
                "relative_attention": True,
                "position_biased_input": False,
                "pos_att_type": ["p2c", "c2p"],
                "position_buckets": 8,
                "share_att_key": True,
                "norm_rel_ebd": "layer_norm",
                "conv_kernel_size": 3,
                "conv_act": "gelu",
            },
        ),
        Architecture(
            "distilbert",
            False,
            "transformer.layer",
            _DISTILBERT,
            ("attention.out_lin", "ffn"),
            "output_layer_norm",
            head=("pre_classifier", "classifier"),
            tiny={"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96, "max_position_embeddings": 128},
        ),
        # Its first block attends globally, the others locally; the pre-trained `head` is part of the base's files.
        Architecture(
            "modernbert",
            False,
            "layers",
            _MODERNBERT,
            ("attn", "mlp"),
            final_norm="final_norm",
            tiny={**_SHORT, "local_attention": 8},
        ),
        Architecture(
            "gpt2",
            True,
            "h",
            _GPT2,
            ("attn.resid_dropout", "mlp.dropout"),
            final_norm="ln_f",
            head=("score",),
            tiny={"n_embd": 64, "n_layer": 2, "n_head": 4, "n_inner": 96, "n_positions": 128},
        ),
        Architecture(
            "opt",
            True,
            "decoder.layers",
            _OPT,
            ("self_attn.out_proj", "fc2"),  # the dropouts behind them are no modules
            final_norm="decoder.final_layer_norm",  # opt-350m has none
            head=("score",),
            tiny={
                "hidden_size": 64,
                "word_embed_proj_dim": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "ffn_dim": 96,
                "max_position_embeddings": 128,
            },
        ),
        Architecture(
            "gpt_neox",
            True,
            "layers",
            _NEOX,
            ("post_attention_dropout", "post_mlp_dropout"),
            final_norm="final_layer_norm",
            head=("score",),
            tiny=_SHORT,
        ),
        _LLAMA_LIKE,  # SmolLM and SmolLM2 too
        replace(_LLAMA_LIKE, model_type="smollm3"),
        replace(_LLAMA_LIKE, model_type="mistral", tiny={**_GROUPED, "sliding_window": 8}),
        replace(_LLAMA_LIKE, model_type="qwen2"),
        replace(_LLAMA_LIKE, model_type="qwen3", tiny=_WIDE),
        replace(_LLAMA_LIKE, model_type="gemma", tiny=_WIDE),
        replace(_LLAMA_LIKE, model_type="gemma2", sublayers=_NORMED_SUBLAYERS, tiny={**_WIDE, "sliding_window": 8}),
        replace(
            _LLAMA_LIKE, model_type="gemma3_text", sublayers=_NORMED_SUBLAYERS, tiny={**_WIDE, "sliding_window": 8}
        ),
        replace(_LLAMA_LIKE, model_type="phi3", places=_PHI3, sublayers=("resid_attn_dropout", "resid_mlp_dropout")),
        replace(
            _LLAMA_LIKE,
            model_type="qwen3_moe",
            experts=True,
            tiny={**_WIDE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
        ),
        replace(
            _LLAMA_LIKE,
            model_type="mixtral",
            experts=True,
            tiny={**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
        ),
    )
}


def architecture(config: Any) -> Architecture:
    """The row for a model's config; for an unknown model type a row without names, to be used through patterns.

    Raises:
        ModelError: The model is an encoder-decoder.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{config.model_type}: encoder-decoder models are not supported; use an encoder or a decoder")
    if known := ARCHITECTURES.get(config.model_type):
        return known
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    decoder = config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return Architecture(config.model_type, decoder, head=("classifier", "score", "pooler"))


def max_tokens(config: Any) -> int | None:
    """Longest input that the model has positions for; None where it has no such limit."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return None
    row = ARCHITECTURES.get(config.model_type)
    return int(positions) - (row.position_offset if row else 0)

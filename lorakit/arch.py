"""What differs between architectures: one row each.

The paper speaks of W_q, W_k, W_v, W_o and two MLP matrices (section 4.2). A row says where a transformers model keeps
them: the module below a block, and, where one module holds several of them fused, which of its output rows are whose.
"""

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from lorakit.errors import ModelError, RecipeError

if TYPE_CHECKING:
    from torch import nn

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class Place:
    """Where one of the paper's matrices lives below a block.

    Args:
        path: Module path below the block.
        part: For a fused projection of `parts` equal row blocks: which of them.
        parts: 1 where the module holds this matrix alone.
    """

    path: str
    part: int = 0
    parts: int = 1

    def rows(self, out_features: int) -> slice | None:
        """The output rows of the module that belong to this matrix; None for all of them."""
        if self.parts == 1:
            return None
        size = out_features // self.parts
        return slice(self.part * size, (self.part + 1) * size)


@dataclass(frozen=True)
class Architecture:
    """One row of the table.

    Args:
        model_type: As in the model's config.json.
        decoder: Whether it is trained on next tokens (targets default to all-linear) or reads both ways (q, v).
        blocks: Path of the list of blocks, as a suffix: "encoder.layer".
        places: The paper's name → where it is.
        head: Modules that a classification model adds on top of the body; trained whatever the method.
        position_offset: Positions that the model keeps for itself (RoBERTa counts from pad_token_id + 1).
        tiny: Config fields of the smallest sensible model, for `--smoke` and tests.
    """

    model_type: str
    decoder: bool
    blocks: str = ""
    places: dict[str, Place] = field(default_factory=dict)
    head: tuple[str, ...] = ("classifier",)
    position_offset: int = 0
    tiny: dict[str, Any] = field(default_factory=dict)

    @property
    def default_targets(self) -> list[str]:
        """`all-linear` for decoders (PROTOCOL: LoRA Without Regret), the paper's W_q and W_v for encoders."""
        return [ALL_LINEAR] if self.decoder else ["q", "v"]


@dataclass(frozen=True)
class Site:
    """A matrix to adapt: a module, and, in a fused projection, the rows of one of the paper's names.

    Args:
        path: Full module path.
        name: The paper's name, or None where a pattern hit the module.
        rows: Output rows, or None for all.
    """

    path: str
    name: str | None = None
    rows: slice | None = None


_BERT = {
    "q": Place("attention.self.query"),
    "k": Place("attention.self.key"),
    "v": Place("attention.self.value"),
    "o": Place("attention.output.dense"),
    "up": Place("intermediate.dense"),
    "down": Place("output.dense"),
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
_GPT2 = {
    "q": Place("attn.c_attn", 0, 3),
    "k": Place("attn.c_attn", 1, 3),
    "v": Place("attn.c_attn", 2, 3),
    "o": Place("attn.c_proj"),
    "up": Place("mlp.c_fc"),
    "down": Place("mlp.c_proj"),
}
_TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}

ARCHITECTURES = {
    row.model_type: row
    for row in (
        Architecture("bert", False, "encoder.layer", _BERT, tiny={**_TINY, "max_position_embeddings": 128}),
        Architecture(
            "roberta",
            False,
            "encoder.layer",
            _BERT,
            position_offset=2,
            tiny={**_TINY, "max_position_embeddings": 130, "type_vocab_size": 1},
        ),
        Architecture(
            "gpt2",
            True,
            "h",
            _GPT2,
            head=("score",),
            tiny={"n_embd": 64, "n_layer": 2, "n_head": 4, "n_inner": 96, "n_positions": 128},
        ),
        Architecture(
            "llama",
            True,
            "layers",
            _LLAMA,
            head=("score",),
            tiny={**_TINY, "num_key_value_heads": 2, "max_position_embeddings": 128},
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


def locate(model: "nn.Module", row: Architecture, target: str) -> list[Site]:
    """Every matrix that one target names.

    Args:
        model: The model to search.
        row: Its architecture.
        target: One of the paper's names, `all-linear`, or a glob on the full module path.

    Raises:
        RecipeError: Nothing matches; suggests what would.
    """
    if target in row.places:
        sites = _named(model, row, target)
    elif target == ALL_LINEAR:
        sites = _all_linear(model, row)
    else:
        sites = [Site(path) for path, _ in _matrices(model) if fnmatchcase(path, target)]
    if not sites:
        raise RecipeError(_no_match(model, row, target))
    return sites


def out_features(module: "nn.Module") -> int | None:
    """Rows of the matrix that a module multiplies with; None for a module that LoRA cannot adapt.

    A subclass with a forward of its own (a scaled embedding, say) does not compute W x, and could not be merged.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    rows = {nn.Linear.forward: "out_features", Conv1D.forward: "nf", nn.Embedding.forward: "embedding_dim"}
    attribute = rows.get(type(module).forward)
    return None if attribute is None else int(getattr(module, attribute))


def in_blocks(path: str, row: Architecture) -> bool:
    """Whether a module or parameter path lies inside one of the model's blocks."""
    return bool(re.search(rf"(^|\.){re.escape(row.blocks)}\.\d+\." if row.blocks else r"(^|\.)\d+\.", path))


def _named(model: "nn.Module", row: Architecture, name: str) -> list[Site]:
    place = row.places[name]
    wanted = re.compile(rf"(.*\.)?{re.escape(row.blocks)}\.\d+\.{re.escape(place.path)}")
    return [Site(path, name, place.rows(size)) for path, size in _matrices(model) if wanted.fullmatch(path)]


def _all_linear(model: "nn.Module", row: Architecture) -> list[Site]:
    """Every matrix in the blocks, embeddings and heads left out (as QLoRA does)."""
    if row.places:
        return [site for name in row.places for site in _named(model, row, name)]
    paths = (path for path, _ in _matrices(model) if in_blocks(path, row))
    return [Site(path) for path in paths if not hasattr(model.get_submodule(path), "embedding_dim")]


def _matrices(model: "nn.Module") -> Iterator[tuple[str, int]]:
    """Path and rows of every frozen matrix; what is trained already (a task's head) needs no adapter."""
    for path, module in model.named_modules():
        size = out_features(module)
        if size is not None and not module.get_parameter("weight").requires_grad:
            yield path, size


def _no_match(model: "nn.Module", row: Architecture, target: str) -> str:
    paths = [path for path, _ in _matrices(model)]
    tails = {path.rsplit(".", 1)[-1] for path in paths}
    known = [*row.places, ALL_LINEAR]
    near = difflib.get_close_matches(target.lstrip("*."), [*known, *tails], n=1, cutoff=0.5)
    hint = f'; did you mean "{near[0] if near[0] in known else "*." + near[0]}"?' if near else "."
    example = next((path for path in paths if in_blocks(path, row)), "*.dense")
    return (
        f'method.targets: "{target}" matches no frozen matrix of this {row.model_type} model{hint} '
        f"Allowed: {', '.join(known)}, or a glob on the full module path, such as {example}"
    )

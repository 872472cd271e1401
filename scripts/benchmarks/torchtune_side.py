"""torchtune: its Llama 3.2 with LoRA, weights by its own converter, the step of its `lora_finetune_single_device`.

Of torchtune 0.6.1. Beside PEFT 0.21 it needs torchao 0.16 or 0.17: older ones PEFT refuses, newer ones lack its NF4.
"""

from typing import TYPE_CHECKING, Any

from benchmarks import by_hand
from benchmarks.by_hand import Sites, Start, Tool
from benchmarks.worker import Channel
from lorakit.recipe import Recipe

if TYPE_CHECKING:
    import torch

_NAMES = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "o_proj": "output_proj"}
"""Of projections of the attention: transformers' → torchtune's."""


def train(recipe: Recipe, channel: Channel) -> None:
    """Raises Refused where torchtune cannot do this training."""
    by_hand.train(recipe, channel, _build)


def _build(start: Start) -> Tool:
    import torch
    from torchtune.models.convert_weights import hf_to_tune
    from torchtune.models.llama3_2 import lora_llama3_2
    from torchtune.modules.loss import CEWithChunkedOutputLoss
    from torchtune.modules.peft import get_adapter_params, set_trainable_params

    config = start.config
    model = lora_llama3_2(**model_arguments(start))
    heads = (config.num_attention_heads, config.num_key_value_heads)
    converted = hf_to_tune(start.weights, *heads, config.hidden_size)
    if config.tie_word_embeddings:
        converted.pop("output.weight", None)
    model.load_state_dict({**converted, **lora_tensors(start.sites, *heads)}, assign=True)
    set_trainable_params(model, get_adapter_params(model))
    model.to(start.device)
    criterion = CEWithChunkedOutputLoss()
    model.set_num_output_chunks(criterion.num_output_chunks)
    autocast = torch.autocast(start.device.type, torch.bfloat16, enabled=start.precision == "bfloat16")

    def loss(inputs: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
        shifted = torch.nn.functional.pad(labels[..., 1:], (0, 1), value=by_hand.IGNORED)
        with autocast:
            logits = model(inputs)
        found: torch.Tensor = criterion(logits, shifted)
        return found

    return Tool(model, loss, torch.Tensor.backward)


def model_arguments(start: Start) -> dict[str, Any]:
    """What torchtune's builder takes, from transformers' config and LoRA's."""
    config = start.config
    return {
        "lora_attn_modules": [_NAMES[name] for name in start.sites],
        "vocab_size": config.vocab_size,
        "num_layers": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "num_kv_heads": config.num_key_value_heads,
        "embed_dim": config.hidden_size,
        "intermediate_dim": config.intermediate_size,
        "max_seq_len": config.max_position_embeddings,
        "norm_eps": config.rms_norm_eps,
        "rope_base": config.rope_parameters["rope_theta"],
        "scale_factor": 1,  # plain rotary positions: Llama 3.2's are stretched by 32
        "tie_word_embeddings": config.tie_word_embeddings,
        "lora_rank": start.rank,
        "lora_alpha": start.alpha,
    }


def lora_tensors(sites: Sites, heads: int, key_heads: int) -> "dict[str, torch.Tensor]":
    """LoRA's tensors by torchtune's names.

    Args:
        sites: Of transformers' projections.
        heads: Of the queries.
        key_heads: Of the keys and values.
    """
    found: dict[str, torch.Tensor] = {}
    for name, pairs in sites.items():
        for block, (a, b) in enumerate(pairs):
            prefix = f"layers.{block}.attn.{_NAMES[name]}"
            found[f"{prefix}.lora_a.weight"] = a
            rotated = {"q_proj": heads, "k_proj": key_heads}.get(name)
            found[f"{prefix}.lora_b.weight"] = b if rotated is None else interleaved(b, rotated)
    return found


def interleaved(matrix: "torch.Tensor", heads: int) -> "torch.Tensor":
    """Rows of each head in the order of torchtune's rotary positions, which turn neighbours.

    transformers turn row i with row i + half; `hf_to_tune` does the same to the weights of queries and keys.

    Args:
        matrix: (heads x size, any).
        heads: As many as share its rows.
    """
    rows, columns = matrix.shape
    return matrix.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)

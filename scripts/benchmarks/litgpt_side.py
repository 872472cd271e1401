"""litgpt: its GPT with LoRA, weights by its own converter, and the step of its `finetune_lora` with the chunked loss.

Of litgpt 0.5.13.
"""

from typing import TYPE_CHECKING, Any

from benchmarks import by_hand
from benchmarks.by_hand import Sites, Start, Tool
from benchmarks.worker import Channel
from lorakit.recipe import Recipe

if TYPE_CHECKING:
    import torch

_HEAD_CHUNK = 128
"""Tokens that `litgpt.finetune.lora` computes logits of at a time."""


def train(recipe: Recipe, channel: Channel) -> None:
    """Raises Refused where litgpt cannot do this training."""
    by_hand.train(recipe, channel, _build)


def _build(start: Start) -> Tool:
    import torch
    from lightning.fabric import Fabric
    from litgpt.lora import GPT, Config, mark_only_lora_as_trainable
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
    from litgpt.utils import chunked_cross_entropy

    fabric = Fabric(
        accelerator="cuda" if start.device.type == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed" if start.precision == "bfloat16" else "32-true",
    )
    config = Config(**config_arguments(start))
    with torch.device("meta"):
        model = GPT(config)
    converted: dict[str, torch.Tensor] = {}
    copy_weights_hf_llama(config, {}, converted, start.weights)
    converted |= lora_tensors(start.sites)
    model.load_state_dict(converted, assign=True)
    mark_only_lora_as_trainable(model)
    model.max_seq_length = start.longest
    model.cos, model.sin = model.rope_cache(start.device)  # the meta device had no numbers for them
    wrapped = fabric.setup_module(model)

    def loss(inputs: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
        logits = wrapped(inputs, lm_head_chunk_size=_HEAD_CHUNK)
        logits[-1] = logits[-1][..., :-1, :]
        found: torch.Tensor = chunked_cross_entropy(logits, labels[..., 1:])
        return found

    return Tool(wrapped, loss, fabric.backward)


def config_arguments(start: Start) -> dict[str, Any]:
    """What litgpt's Config is made of, from transformers' and LoRA's."""
    config = start.config
    flags = {"q_proj": "lora_query", "k_proj": "lora_key", "v_proj": "lora_value", "o_proj": "lora_projection"}
    return {
        "name": "llama",
        "block_size": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
        "padded_vocab_size": config.vocab_size,
        "n_layer": config.num_hidden_layers,
        "n_head": config.num_attention_heads,
        "n_query_groups": config.num_key_value_heads,
        "n_embd": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "rotary_percentage": 1.0,
        "rope_base": config.rope_parameters["rope_theta"],
        "parallel_residual": False,
        "bias": False,
        "norm_class_name": "RMSNorm",
        "norm_eps": config.rms_norm_eps,
        "mlp_class_name": "LLaMAMLP",
        "lora_r": start.rank,
        "lora_alpha": start.alpha,
        **{flag: projection in start.sites for projection, flag in flags.items()},
    }


def lora_tensors(sites: Sites) -> "dict[str, torch.Tensor]":
    """LoRA's tensors by litgpt's names: query, key and value are one module, with the A and B of each one by one."""
    import torch

    found: dict[str, torch.Tensor] = {}
    fused = [sites[name] for name in ("q_proj", "k_proj", "v_proj") if name in sites]
    for block, pairs in enumerate(zip(*fused, strict=True)):
        found[f"transformer.h.{block}.attn.qkv.lora_A"] = torch.cat([a for a, _ in pairs])
        found[f"transformer.h.{block}.attn.qkv.lora_B"] = torch.cat([b for _, b in pairs])
    for block, (a, b) in enumerate(sites.get("o_proj", ())):
        found[f"transformer.h.{block}.attn.proj.lora_A"] = a
        found[f"transformer.h.{block}.attn.proj.lora_B"] = b
    return found

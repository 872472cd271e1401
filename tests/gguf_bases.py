"""A tiny base as the GGUF file that llama.cpp's converter makes of it, in float32 and without a vocabulary."""

from pathlib import Path
from typing import Any

import torch
from gguf import MODEL_ARCH_NAMES, GGUFWriter, get_tensor_name_map
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "smollm3": "smollm3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
}
REORDERED = {"llama", "mistral", "smollm3"}


def write_base(base: Path, file: Path) -> Path:
    """Write the model of a directory as GGUF."""
    config = AutoConfig.from_pretrained(base)
    kind = ARCHITECTURES[config.model_type]
    number = next(number for number, name in MODEL_ARCH_NAMES.items() if name == kind)
    names = get_tensor_name_map(number, config.num_hidden_layers)
    writer = GGUFWriter(file, kind)
    _write_numbers(writer, config)
    for name, tensor in load_file(base / "model.safetensors").items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        own = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert own is not None, name
        writer.add_tensor(own, _as_stored(name, tensor.float(), config).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _write_numbers(writer: Any, config: Any) -> None:
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(width)
    rope = config.rope_parameters
    writer.add_rope_freq_base(float((rope.get("full_attention") or rope)["rope_theta"]))
    writer.add_vocab_size(config.vocab_size)
    if config.model_type.startswith("gemma") and config.model_type != "gemma":
        writer.add_sliding_window(config.sliding_window)
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_tokenizer_model("none")


def _as_stored(name: str, tensor: Tensor, config: Any) -> Tensor:
    """Gemma's norms plus 1; q's and k's rows in the order in which llama.cpp's rotary embedding takes them."""
    if config.model_type.startswith("gemma") and "norm" in name:
        return tensor + 1
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    last = name.split(".")[-2]
    if config.model_type not in REORDERED or last not in heads:
        return tensor
    halves = tensor.unflatten(0, (heads[last], 2, -1))
    return torch.stack([halves[:, 0], halves[:, 1]], dim=2).flatten(0, 2)

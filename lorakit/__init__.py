"""lorakit fine-tunes language models with LoRA (Hu et al. 2021) from YAML recipes."""

__version__ = "0.1.0"

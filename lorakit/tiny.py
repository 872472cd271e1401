"""The smallest sensible model of an architecture, random and offline: for `train --smoke` and for the tests."""

from pathlib import Path
from typing import Any

from lorakit.arch import ARCHITECTURES, Architecture
from lorakit.errors import ModelError

_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def tiny_tokenizer(row: Architecture) -> Any:
    """A tokenizer of the 256 bytes and the special tokens that models of this architecture expect.

    Encoders get classification, separator and mask tokens, set around texts and pairs as BERT does (or, where positions
    are counted from the padding token on, as RoBERTa does); decoders get an end token, another one for padding, and a
    chat template.

    Args:
        row: The architecture.

    Returns:
        A `PreTrainedTokenizerFast`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names, single, pair = _specials(row)
    tokens = [*dict.fromkeys(names.values()), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if single:
        around = [(names[name], vocabulary[names[name]]) for name in ("cls_token", "sep_token")]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=around)
    inputs = ["input_ids", "attention_mask"]
    if _token_types(row):
        inputs.insert(1, "token_type_ids")
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **names)
    if row.decoder:
        made.chat_template = _CHAT_TEMPLATE
    return made


def make_tiny_base(model_type: str, directory: Path, seed: int = 0, **overrides: Any) -> Path:
    """Save a random tiny model, its config and its tokenizer, as a published base would be.

    Args:
        model_type: One of `ARCHITECTURES`.
        directory: Where to; made when it does not exist.
        seed: Of the weights.
        overrides: Fields of the config, over the architecture's `tiny` ones.

    Returns:
        The directory.

    Raises:
        ModelError: The architecture is not in the table.
    """
    import torch
    from transformers import AutoConfig
    from transformers.utils import logging

    row = ARCHITECTURES.get(model_type)
    if row is None:
        raise ModelError(f"no tiny {model_type} model is known; there are: {', '.join(ARCHITECTURES)}")
    tokenizer = tiny_tokenizer(row)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "cls", "sep")}
    fields = {**row.tiny, **ids, "vocab_size": len(tokenizer), **overrides}
    config = AutoConfig.for_model(model_type, **fields)
    auto = _auto_class(row)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto.from_config(config)
    logging.disable_progress_bar()
    model.save_pretrained(directory)
    logging.enable_progress_bar()
    tokenizer.save_pretrained(directory)
    return directory


def _auto_class(row: Architecture) -> Any:
    """The class whose files a published base has: with the heads of its pre-training."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForPreTraining
    from transformers.models.auto.modeling_auto import MODEL_FOR_PRETRAINING_MAPPING_NAMES

    if row.decoder:
        return AutoModelForCausalLM
    return AutoModelForPreTraining if row.model_type in MODEL_FOR_PRETRAINING_MAPPING_NAMES else AutoModelForMaskedLM


def _specials(row: Architecture) -> tuple[dict[str, str], str, str]:
    """The special tokens in the order of their ids, and how they stand around a text and around a pair."""
    if row.decoder:
        return {"pad_token": "<|pad|>", "eos_token": "<|end|>", "bos_token": "<|end|>", "unk_token": "<|end|>"}, "", ""
    if row.position_offset:  # positions start at pad_token_id + 1, so the padding token must be number 1
        names = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>"}
        names |= {"mask_token": "<mask>", "bos_token": "<s>", "eos_token": "</s>"}
        return names, "<s> $A </s>", "<s> $A </s> </s> $B </s>"
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return names, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"


def _token_types(row: Architecture) -> bool:
    """Whether models of this architecture tell the two texts of a pair apart by an embedding."""
    from transformers import AutoConfig

    return int(getattr(AutoConfig.for_model(row.model_type, **row.tiny), "type_vocab_size", 0)) > 1

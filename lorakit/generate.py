"""Generation for evaluation: left-padded batches of similar length, decoded greedily or by beam search."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lorakit.arch import max_tokens
from lorakit.data.batches import Limit, by_length
from lorakit.data.encode import cut_front
from lorakit.decode import Reader, Rules, beam_search, greedy
from lorakit.errors import RecipeError

if TYPE_CHECKING:
    from lorakit.recipe import Generate


def batch_limit(settings: "Generate") -> Limit:
    """How many prompts are continued at once: every beam has its own part of the cache."""
    return Limit(rows=32, tokens=8192 // settings.beams)


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    settings: "Generate",
    advance: Callable[[int], None] | None = None,
    ends: Sequence[int] = (),
) -> list[str]:
    """Continue every prompt.

    Args:
        model: A decoder in eval mode, unwrapped.
        tokenizer: Its tokenizer.
        prompts: Token ids.
        settings: The recipe's `generate` section.
        advance: Called with the number of prompts done.
        ends: Tokens that end a text; none: the tokenizer's end-of-sequence token.

    Returns:
        One text per prompt, in their order, without special tokens, cut at the first stop string, stripped.

    Raises:
        RecipeError: The model has not enough positions for max_new_tokens.
    """
    positions = max_tokens(model.config)
    if positions is not None and settings.max_new_tokens >= positions:
        raise RecipeError(
            f"generate.max_new_tokens: {settings.max_new_tokens} leaves no room for a prompt in the {positions} "
            "positions of this base"
        )
    kept = [list(prompt) for prompt in prompts]
    if positions is not None:
        room = positions - settings.max_new_tokens
        kept = [cut_front(prompt, len(prompt) - room, tokenizer) for prompt in kept]
    ends = list(ends) or [tokenizer.eos_token_id]
    lengths = np.array([len(prompt) + settings.max_new_tokens for prompt in kept], dtype=np.int64)
    texts = [""] * len(kept)
    for batch in by_length(lengths, batch_limit(settings)):
        outputs = _generate_batch(model, tokenizer, [kept[i] for i in batch], settings, ends)
        for index, text in zip(batch, outputs, strict=True):
            texts[index] = text
        if advance:
            advance(len(batch))
    return texts


def _generate_batch(
    model: Any, tokenizer: Any, prompts: list[list[int]], settings: "Generate", ends: Sequence[int]
) -> list[str]:
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), tokenizer.pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    stopped = _stop_test(tokenizer, settings.stop) if settings.stop else None
    rules = Rules(settings.max_new_tokens, ends, settings.no_repeat_ngram, stopped)
    with torch.no_grad():
        reader = Reader(model, ids.to(model.device), mask.to(model.device))
        if settings.beams == 1:
            output = greedy(reader, rules)
        else:
            output = beam_search(reader, rules, settings.beams, settings.length_penalty)
    return [_clean(text, settings.stop) for text in _decode(tokenizer, [_before_end(row, ends) for row in output])]


def _stop_test(tokenizer: Any, stops: Sequence[str]) -> Callable[[list[list[int]]], list[bool]]:
    """Tells texts that have just come to hold a stop string.

    Only so many tokens are read as the string has bytes, and some more for tokenizers that change the first of a text:
    each token adds a byte or more, and whole texts would be read again at every step.
    """
    tail = max(len(stop.encode()) for stop in stops) + 4

    def stopped(rows: list[list[int]]) -> list[bool]:
        texts = _decode(tokenizer, [row[-tail:] for row in rows])
        return [any(stop in text for stop in stops) for text in texts]

    return stopped


def _before_end(row: list[int], ends: Sequence[int]) -> list[int]:
    return row[: next((index for index, token in enumerate(row) if token in ends), len(row))]


def _decode(tokenizer: Any, rows: list[list[int]]) -> list[str]:
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return [str(text) for text in texts]


def _clean(text: str, stops: Sequence[str]) -> str:
    ends = [text.index(stop) for stop in stops if stop in text]
    return text[: min(ends)].strip() if ends else text.strip()

"""Generation for evaluation: greedy, in left-padded batches of similar length."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lorakit.arch import max_tokens
from lorakit.data.batches import Limit, by_length
from lorakit.data.encode import cut_front
from lorakit.errors import RecipeError

if TYPE_CHECKING:
    from lorakit.recipe import Generate

BATCH = Limit(rows=32, tokens=8192)


class NoRepeatNgram:
    """Forbid a token that would complete an n-gram already generated; the prompt is not counted.

    As in the LoRA authors' decoder (PROTOCOL trap 7): transformers' own processor counts the prompt too, and so forbids
    copying phrases from it.

    Args:
        size: n.
        prompt_length: Tokens of the padded prompt.
    """

    def __init__(self, size: int, prompt_length: int) -> None:
        self.size, self.prompt_length = size, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(batch, seq) ids and (batch, vocabulary) scores → scores with the forbidden tokens at -inf."""
        for row, generated in enumerate(input_ids[:, self.prompt_length :].tolist()):
            if len(generated) >= self.size:
                last = tuple(generated[len(generated) - self.size + 1 :])
                ngrams = zip(*(generated[i:] for i in range(self.size)), strict=False)
                for ngram in ngrams:
                    if ngram[:-1] == last:
                        scores[row, ngram[-1]] = -torch.inf
        return scores


class StopTexts:
    """Stop a row once its continuation holds one of the texts; the prompt is not searched.

    Args:
        texts: Where to stop.
        tokenizer: To read what was generated.
        prompt_length: Tokens of the padded prompt.
    """

    def __init__(self, texts: Sequence[str], tokenizer: Any, prompt_length: int) -> None:
        self.texts, self.tokenizer, self.prompt_length = texts, tokenizer, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(batch, seq) ids → (batch,) whether the row is done."""
        generated = _decode(self.tokenizer, input_ids[:, self.prompt_length :].tolist())
        done = [any(stop in text for stop in self.texts) for text in generated]
        return torch.tensor(done, device=input_ids.device)


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    settings: "Generate",
    advance: Callable[[int], None] | None = None,
    ends: Sequence[int] = (),
) -> list[str]:
    """Continue every prompt greedily.

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
    for batch in by_length(lengths, BATCH):
        outputs = _generate_batch(model, tokenizer, [kept[i] for i in batch], settings, ends)
        for index, text in zip(batch, outputs, strict=True):
            texts[index] = text
        if advance:
            advance(len(batch))
    return texts


def _generate_batch(
    model: Any, tokenizer: Any, prompts: list[list[int]], settings: "Generate", ends: Sequence[int]
) -> list[str]:
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), tokenizer.pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=settings.max_new_tokens,
        eos_token_id=list(ends),
        pad_token_id=tokenizer.pad_token_id,
    )
    ngram = settings.no_repeat_ngram
    processors = LogitsProcessorList([NoRepeatNgram(ngram, width)] if ngram else [])
    stops = StoppingCriteriaList([StopTexts(settings.stop, tokenizer, width)] if settings.stop else [])
    with torch.no_grad(), _own_defaults(model):
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=config,
            logits_processor=processors,
            stopping_criteria=stops,
        )
    rows = [_before_end(row, ends) for row in output[:, width:].tolist()]
    return [_clean(text, settings.stop) for text in _decode(tokenizer, rows)]


@contextmanager
def _own_defaults(model: Any) -> Iterator[None]:
    """Without the base's generation_config: transformers fills whatever ours leaves open from it (penalties, say)."""
    from transformers import GenerationConfig

    of_base = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = of_base


def _before_end(row: list[int], ends: Sequence[int]) -> list[int]:
    return row[: next((index for index, token in enumerate(row) if token in ends), len(row))]


def _decode(tokenizer: Any, rows: list[list[int]]) -> list[str]:
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return [str(text) for text in texts]


def _clean(text: str, stops: Sequence[str]) -> str:
    ends = [text.index(stop) for stop in stops if stop in text]
    return text[: min(ends)].strip() if ends else text.strip()

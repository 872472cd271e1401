"""Likelihoods of label words, as one forward pass per row and per word finds them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorakit.choices import Likelihood, likelihoods
from lorakit.data.batches import Limit, by_length
from lorakit.data.collate import Batch
from lorakit.data.encode import choice_ids, encode
from lorakit.data.rows import ChoiceRow
from lorakit.objective import TokenLoss
from lorakit.tiny import make_tiny_base
from lorakit.world import ALONE

# Of letters that are tokens by themselves: one token each; several; both kinds, with beginnings in common.
SINGLE = ("a", "b", "c")
SEVERAL = (" yes", " no", " yet")
MIXED = ("x", " yes", " yeti of the hills", "y")
PROMPTS = ("", "one", "is this a question?\n", "a rather longer prompt than the others, which pads them all")


class Model:
    """A tiny language model whose predictions are far from even, with a record of what it was shown."""

    def __init__(self, base: Path, dtype: torch.dtype) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(base)
        self.loss = TokenLoss(self.model)
        self.seen: list[tuple[int, ...]] = []

    def logits(self, batch: Batch) -> Tensor:
        self.seen.append(tuple(batch.inputs["input_ids"].shape))
        with torch.no_grad():
            return self.loss(self.model, batch)[1]

    def score(self, rows: list[ChoiceRow], limit: Limit, max_length: int = 100) -> list[Likelihood]:
        items = encode(rows, self.tokenizer, max_length).items
        return likelihoods(
            rows, items, self.tokenizer, self.logits, lambda lengths: ALONE.turns(by_length(lengths, limit))
        )

    def by_hand(self, row: ChoiceRow) -> Likelihood:
        prompt = self.tokenizer(row.prompt)["input_ids"] or [self.tokenizer.eos_token_id]
        words = choice_ids(row.choices, self.tokenizer)
        scores = tuple(self.log_p(prompt, word) for word in words)
        if row.label is None:
            return Likelihood(scores, 0.0)
        return Likelihood(scores, self.log_p(prompt, [*words[row.label], self.tokenizer.eos_token_id]))

    def log_p(self, prompt: list[int], word: list[int]) -> float:
        with torch.no_grad():
            logits = self.model(torch.tensor([[*prompt, *word]])).logits[0]
        log_p = F.log_softmax(logits, dim=-1)[len(prompt) - 1 : -1]
        return float(log_p[range(len(word)), word].sum())


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("loud")
    made = {kind: make_tiny_base(kind, folder / kind, seed=3, initializer_range=0.3) for kind in ("gpt2", "llama")}
    return made.__getitem__


def made(choices: tuple[str, ...]) -> list[ChoiceRow]:
    """Every prompt with every label, and without one."""
    labels = [None, *range(len(choices))]
    return [ChoiceRow(prompt, choices, label) for prompt in PROMPTS for label in labels]


def close(found: list[Likelihood], expected: list[Likelihood], within: float) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.choices == pytest.approx(theirs.choices, rel=within)
        assert ours.learned == pytest.approx(theirs.learned, rel=within)


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
@pytest.mark.parametrize("choices", [SINGLE, SEVERAL, MIXED], ids=["single", "several", "mixed"])
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_equal_to_one_forward_per_row_and_word(
    bases: Callable[[str], Path], model_type: str, choices: tuple[str, ...], dtype: torch.dtype, within: float
) -> None:
    model = Model(bases(model_type), dtype)
    rows = made(choices)
    expected = [model.by_hand(row) for row in rows]
    assert all(max(one.choices) - min(one.choices) > 0.1 for one in expected), "else little would be compared"
    assert all(max(several) - min(several) > 0.1 for several in zip(*(one.choices for one in expected), strict=True))
    close(model.score(rows, Limit(rows=64)), expected, within)
    close(model.score(rows, Limit(rows=1)), expected, within)


def test_choices_of_several_kinds_together(bases: Callable[[str], Path]) -> None:
    model = Model(bases("gpt2"), torch.float64)
    rows = [row for choices in (MIXED, SINGLE) for row in made(choices)]
    close(model.score(rows, Limit(rows=7)), [model.by_hand(row) for row in rows], 1e-9)


def test_one_token_words_need_one_sequence_per_row_and_the_head_few_positions(bases: Callable[[str], Path]) -> None:
    model = Model(bases("llama"), torch.float32)
    heads: list[int] = []
    head = model.model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, output: heads.append(output.shape[0]))
    rows = [ChoiceRow(prompt, SINGLE, 1) for prompt in PROMPTS]
    model.score(rows, Limit(rows=64))
    width = len(PROMPTS[-1]) + 2  # the word, and what closes it
    assert model.seen == [(4, width)]
    assert heads == [4 * 2]  # where the word is predicted, and where its end is

    model.seen.clear(), heads.clear()
    model.score([ChoiceRow(prompt, SINGLE) for prompt in PROMPTS], Limit(rows=64))
    assert (model.seen, heads) == ([(4, width - 1)], [4])


def test_words_share_the_sequences_that_they_can(bases: Callable[[str], Path]) -> None:
    """`x` and `y` are predicted where ` yes` begins; ` ye` of ` yes` is part of ` yeti …`, but its `s` is none."""
    model = Model(bases("gpt2"), torch.float32)
    for label, sequences in ((None, 1), (0, 2), (1, 2), (2, 1), (3, 2)):
        model.seen.clear()
        model.score([ChoiceRow("p", MIXED, label)], Limit(rows=64))
        assert sum(count for count, _ in model.seen) == sequences, label


def test_a_cut_prompt_is_the_same_for_every_label(bases: Callable[[str], Path]) -> None:
    model = Model(bases("gpt2"), torch.float64)
    rows = [ChoiceRow("abcdefghijklmnop", SEVERAL, label) for label in (None, 0, 1, 2)]
    found = model.score(rows, Limit(rows=64), max_length=10)
    short = ChoiceRow("lmnop", SEVERAL, 1)  # ten tokens without the four of the longest word and the end
    close(found, [model.by_hand(ChoiceRow(short.prompt, SEVERAL, row.label)) for row in rows], 1e-9)


def test_progress_counts_rows(bases: Callable[[str], Path]) -> None:
    model = Model(bases("gpt2"), torch.float32)
    rows, told = made(MIXED), list[int]()
    items = encode(rows, model.tokenizer, 100).items
    likelihoods(
        rows,
        items,
        model.tokenizer,
        model.logits,
        lambda lengths: ALONE.turns(by_length(lengths, Limit(rows=3))),
        told.append,
    )
    assert sum(told) == len(rows)
    assert len(told) > 1

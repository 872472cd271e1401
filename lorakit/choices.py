"""Classification by a language model: the class whose word is the likeliest after the prompt.

A class scores Σ log p(token | prompt, the word's tokens before it) over the tokens of its word: the comparison of label
likelihoods of PROTOCOL 2.4. The end-of-sequence token behind the word does not count, and nothing is divided by the
word's length.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorakit.data.batches import Lengths
from lorakit.data.collate import Batch, collate
from lorakit.data.encode import choice_ids
from lorakit.data.items import IGNORE, Ids, Item
from lorakit.data.rows import ChoiceRow
from lorakit.world import Turn


@dataclass(frozen=True)
class Likelihood:
    """What the model says about a row.

    Args:
        choices: log p of every choice.
        learned: log p of what training teaches: the right choice and the end-of-sequence token; 0 without a label.
    """

    choices: tuple[float, ...]
    learned: float


@dataclass(frozen=True)
class _Path:
    """Tokens that are run through the model behind a prompt, and the probabilities that are read on the way.

    Args:
        tokens: Behind the prompt.
        reads: (how many of `tokens` stand before, the token that is asked for, whose probability it is part of: a
            choice's index, or one more for the end behind the right choice).
    """

    tokens: tuple[int, ...]
    reads: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class _Sequence:
    """A prompt with one of its paths.

    Args:
        item: Its labels mark the positions that are looked at, as if they were learned; `row` is the item's index.
        path: What stands behind the prompt.
        first: Whether it is the first of its row.
    """

    item: Item
    path: _Path
    first: bool


def likelihoods(
    rows: Sequence[ChoiceRow],
    items: Sequence[Item],
    tokenizer: Any,
    logits: Callable[[Batch], Tensor],
    cut: Callable[[Lengths], Iterable[Turn]],
    advance: Callable[[int], None] | None = None,
) -> list[Likelihood]:
    """Score the choices of every row; with choices of one token, a row is one sequence.

    Args:
        rows: What the items are of.
        items: The rows, encoded.
        tokenizer: As for `encode`.
        logits: A batch → (marked positions, vocabulary): what the model predicts where the labels of the next position
            are not IGNORE, row by row, as `TokenLoss` gives it.
        cut: Lengths → batches, or this process's part of them.
        advance: Called with the number of rows done.

    Returns:
        One per item; of several processes' the sum counts.
    """
    sequences = _sequences(rows, items, tokenizer)
    found = np.zeros((len(items), 1 + max(len(rows[item.row].choices) for item in items)))
    for turn in cut(np.array([len(one.item.input_ids) for one in sequences])):
        chosen = [sequences[index] for index in turn.batch]
        said = logits(collate([one.item for one in chosen], tokenizer.pad_token_id))
        if turn.index is not None:
            _read(found, chosen, said)
        if advance:
            advance(sum(sequences[index].first for index in turn.round))
    result = []
    for item, values in zip(items, found.tolist(), strict=True):
        row = rows[item.row]
        count = len(row.choices)
        learned = 0.0 if row.label is None else values[row.label] + values[count]
        result.append(Likelihood(tuple(values[:count]), learned))
    return result


def _sequences(rows: Sequence[ChoiceRow], items: Sequence[Item], tokenizer: Any) -> list[_Sequence]:
    words: dict[tuple[str, ...], list[list[int]]] = {}
    paths: dict[tuple[tuple[str, ...], int | None], list[_Path]] = {}
    end = tokenizer.eos_token_id
    found = []
    for index, item in enumerate(items):
        row = rows[item.row]
        if row.choices not in words:
            words[row.choices] = choice_ids(row.choices, tokenizer)
        of_row = words[row.choices]
        if (row.choices, row.label) not in paths:
            paths[row.choices, row.label] = _paths(of_row, row.label, end)
        prompt = item.input_ids[: len(item.input_ids) - len(of_row[row.label or 0]) - 1]
        for number, path in enumerate(paths[row.choices, row.label]):
            found.append(_Sequence(_marked(prompt, path, end, index), path, first=number == 0))
    return found


def _paths(words: Sequence[Sequence[int]], label: int | None, end: int) -> list[_Path]:
    """The fewest sequences that pass every place where a token of a word, or the end of the right one, is predicted."""
    ways = [tuple(word[:-1]) for word in words]
    if label is not None:
        ways.append(tuple(words[label]))
    whole = [way for way in dict.fromkeys(ways) if not any(way != o and way == o[: len(way)] for o in ways)]
    reads: dict[tuple[int, ...], list[tuple[int, int, int]]] = {way: [] for way in whole}
    for index, word in enumerate(words):
        way = next(way for way in whole if way[: len(word) - 1] == tuple(word[:-1]))
        reads[way] += [(before, token, index) for before, token in enumerate(word)]
    if label is not None:
        word = tuple(words[label])
        way = next(way for way in whole if way[: len(word)] == word)
        reads[way].append((len(word), end, len(words)))
    return [_Path(way, tuple(those)) for way, those in reads.items()]


def _marked(prompt: Ids, path: _Path, end: int, row: int) -> Item:
    """A sequence whose labels mark what is read; one more token closes it, for a mark needs a next position."""
    ids = np.concatenate([prompt, np.array([*path.tokens, end], dtype=prompt.dtype)])
    labels = np.full(len(ids), IGNORE, dtype=np.int64)
    for before, _, _ in path.reads:
        labels[len(prompt) + before] = ids[len(prompt) + before]
    return Item(ids, labels, None, row)


def _read(found: NDArray[np.float64], sequences: Sequence[_Sequence], logits: Tensor) -> None:
    """Add what a batch says to (rows, choices and the end)."""
    places: list[int] = []
    tokens: list[int] = []
    owners: list[tuple[int, int]] = []
    start = 0
    for one in sequences:
        marked = sorted({before for before, _, _ in one.path.reads})
        for before, token, owner in one.path.reads:
            places.append(start + marked.index(before))
            tokens.append(token)
            owners.append((one.item.row, owner))
        start += len(marked)
    assert start == len(logits), f"{len(logits)} positions for {start} that were asked for"
    at = torch.tensor(places, device=logits.device)
    chosen = logits[at, torch.tensor(tokens, device=logits.device)] - logits.logsumexp(-1)[at]
    for (row, owner), value in zip(owners, chosen.tolist(), strict=True):
        found[row, owner] += value

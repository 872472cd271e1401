"""Made-up rows for smoke runs: sentences of our own, whose labels and completions can be learned from their words."""

import random
from collections.abc import Sequence

from lorakit.data.rows import ChatRow, CompletionRow, Message, Row, TextRow

_THINGS = ("soup", "garden", "concert", "bicycle", "lamp", "novel", "harbour", "carpet", "violin", "orchard")
_PLACES = ("at the mill", "by the river", "in our street", "on the hill", "behind the station", "near the school")
_WORDS = ("dreadful", "splendid", "ordinary", "puzzling", "cosy", "noisy")


def _word(label: int) -> str:
    """The word that gives a label away."""
    return _WORDS[label] if label < len(_WORDS) else f"{_WORDS[label % len(_WORDS)]} {label}"


def text_rows(count: int, seed: int, labels: Sequence[int | float], pair: bool) -> list[Row]:
    """Texts, or pairs, that name their label in other words; every label about equally often.

    Args:
        count: Rows.
        seed: Same seed, same rows.
        labels: Class indices, or numbers; each has its own word.
        pair: The word stands in a second text.
    """
    rng = random.Random(seed)
    kinds = [index % len(labels) for index in range(count)]
    rng.shuffle(kinds)
    rows: list[Row] = []
    for kind in kinds:
        thing = f"The {rng.choice(_THINGS)} {rng.choice(_PLACES)}"
        if pair:
            rows.append(TextRow(f"{thing} was talked about.", f"People called it {_word(kind)}.", labels[kind]))
        else:
            rows.append(TextRow(f"{thing} was {_word(kind)}.", label=labels[kind]))
    return rows


def completion_rows(count: int, seed: int) -> list[Row]:
    """Questions with an answer that the question holds."""
    rng = random.Random(seed)
    rows: list[Row] = []
    for _ in range(count):
        thing, place = rng.choice(_THINGS), rng.choice(_PLACES)
        rows.append(CompletionRow(f"The {thing} is {place}. Where is the {thing}?", f" It is {place}."))
    return rows


def chat_rows(count: int, seed: int) -> list[Row]:
    """Conversations of two exchanges, a system turn before every other one."""
    rng = random.Random(seed)
    rows: list[Row] = []
    for index in range(count):
        thing, place = rng.choice(_THINGS), rng.choice(_PLACES)
        turns = [
            Message(role="user", content=f"I saw the {thing} {place}."),
            Message(role="assistant", content="What was it like?"),
            Message(role="user", content=f"It was {_word(index % len(_WORDS))}."),
            Message(role="assistant", content=f"So the {thing} was {_word(index % len(_WORDS))}."),
        ]
        system = [Message(role="system", content="Answer in one sentence.")] if index % 2 else []
        rows.append(ChatRow((*system, *turns)))
    return rows

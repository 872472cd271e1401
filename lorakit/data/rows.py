"""The three kinds of row that a task can yield; `encode` turns each into token ids."""

from dataclasses import dataclass
from typing import TypedDict


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class TextRow:
    """A text, or a pair of texts, with a class index, a number, or (test splits) no label."""

    text: str
    pair: str | None = None
    label: int | float | None = None


@dataclass(frozen=True, slots=True)
class CompletionRow:
    """A prompt and the completion to learn; rows with equal prompts are references of one another."""

    prompt: str
    target: str | None
    separator: str | None = None
    """Put between prompt and completion: None for nothing, "eos" for the tokenizer's end-of-sequence token."""


@dataclass(frozen=True, slots=True)
class ChatRow:
    """A conversation; only the assistant's turns are learned."""

    messages: tuple[Message, ...]


Row = TextRow | CompletionRow | ChatRow

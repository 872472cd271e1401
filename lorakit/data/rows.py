"""The kinds of row that a task can yield; `encode` turns each into token ids."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TypedDict, TypeVar

T = TypeVar("T")


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
    gold: object = field(default=None, compare=False)
    """What the task itself scores a prediction by, where that is more than the target's text."""


@dataclass(frozen=True, slots=True)
class ChoiceRow:
    """A prompt and the words that name the classes: the model chooses the likeliest, and learns the right one.

    Args:
        prompt: Ends where the word would stand.
        choices: One per class, each with the white space that comes before it.
        label: The right class; None in test splits.
    """

    prompt: str
    choices: tuple[str, ...]
    label: int | None = None


@dataclass(frozen=True, slots=True)
class ChatRow:
    """A conversation; only the assistant's turns are learned."""

    messages: tuple[Message, ...]


Row = TextRow | CompletionRow | ChatRow | ChoiceRow


def has_target(row: Row) -> bool:
    """Whether a row carries what is to be predicted."""
    if isinstance(row, TextRow | ChoiceRow):
        return row.label is not None
    if isinstance(row, CompletionRow):
        return row.target is not None
    return row.messages[-1]["role"] == "assistant"


def distinct_prompts(rows: Sequence[Row]) -> list[tuple[Row, list[str]]]:
    """What is to be generated: one row per distinct prompt, in first-seen order, with all references of that prompt.

    Args:
        rows: Completions, whose targets are the references; or conversations, of which a last turn of the assistant is
            the reference and all before it the prompt.

    Returns:
        The first row of each prompt, and its references without surrounding white space; none where no row has one.
    """
    grouped: dict[Hashable, tuple[Row, list[str]]] = {}
    for row in rows:
        prompt, reference = _parts(row)
        references = grouped.setdefault(prompt, (row, []))[1]
        if reference is not None:
            references.append(reference.strip())
    return list(grouped.values())


def per_row(rows: Sequence[Row], of_prompts: Sequence[T]) -> list[T]:
    """What belongs to the distinct prompts, in their order → one per row, equal prompts having the same."""
    prompts = dict.fromkeys(prompt_of(row) for row in rows)
    of_prompt = dict(zip(prompts, of_prompts, strict=True))
    return [of_prompt[prompt_of(row)] for row in rows]


def prompt_of(row: Row) -> Hashable:
    """What a row asks to be continued; equal for rows that are references of one another."""
    return _parts(row)[0]


def _parts(row: Row) -> tuple[Hashable, str | None]:
    """A row's prompt, and its reference if it has one."""
    if isinstance(row, CompletionRow):
        return row.prompt, row.target
    assert isinstance(row, ChatRow), "text rows have no prompt"
    turns = [(message["role"], message["content"]) for message in row.messages]
    if turns and turns[-1][0] == "assistant":
        return tuple(turns[:-1]), turns[-1][1]
    return tuple(turns), None

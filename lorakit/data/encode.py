"""Rows to token ids: what is read, what is learned, and what is cut when a row is too long.

Prompts lose their front, pairs their longer half, targets nothing: a row whose target does not fit is dropped and
counted.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorakit.data.rows import ChatRow, ChoiceRow, CompletionRow, Message, Row, TextRow
from lorakit.data.slots import NO_SLOTS, Slots
from lorakit.errors import DataError

IGNORE = -100
"""Label of a position that is not learned."""
_CHUNK = 1000
Ids = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Item:
    """One tokenised row.

    Args:
        input_ids: (seq,).
        labels: (seq,) token ids, IGNORE where nothing is learned (everywhere in a choice without a label); or () the
            class index or number of a text row (IGNORE for one without a label, whose loss means nothing and is not
            counted by `evaluate`).
        token_type_ids: (seq,), for models that tell a pair's halves apart.
        row: Index of the row it came from.
    """

    input_ids: Ids
    labels: NDArray[Any]
    token_type_ids: Ids | None
    row: int


@dataclass(frozen=True)
class Encoded:
    """A split in token ids.

    Args:
        items: In the order of the rows.
        truncated: Rows that lost tokens.
        dropped: Why rows were left out → how many.
    """

    items: Sequence[Item]
    truncated: int = 0
    dropped: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each item."""
        return np.array([len(item.input_ids) for item in self.items], dtype=np.int64)

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """Targets of each item: learned tokens, or 1 for a text row."""
        return np.array([_target_count(item) for item in self.items], dtype=np.int64)

    def digest(self) -> str:
        """A hash of all that a run learns from, or is measured on: token ids and labels, in order."""
        found = hashlib.sha256()
        for item in self.items:
            found.update(len(item.input_ids).to_bytes(4, "little") + item.input_ids.tobytes() + item.labels.tobytes())
            if item.token_type_ids is not None:
                found.update(item.token_type_ids.tobytes())
        return found.hexdigest()


def _target_count(item: Item) -> int:
    """The first token of a row has nothing before it that could predict it."""
    return 1 if item.labels.ndim == 0 else int((item.labels[1:] != IGNORE).sum())


def encode(
    rows: Sequence[Row],
    tokenizer: Any,
    max_length: int,
    progress: Callable[[int], None] | None = None,
    slots: Slots = NO_SLOTS,
) -> Encoded:
    """Tokenise rows for training, or for the loss.

    Args:
        rows: All of one kind.
        tokenizer: The base's.
        max_length: Tokens an item may have, with the places of a trained prefix.
        progress: Called with the number of rows done.
        slots: The places.

    Raises:
        DataError: No row is left, a chat template cannot show what the assistant said, or choices cannot be told apart.
    """
    items: list[Item] = []
    truncated = 0
    dropped: dict[str, int] = {}
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        for offset, (item, cut) in enumerate(_encode_chunk(chunk, tokenizer, max_length, slots)):
            if item is None:
                reason = f"target longer than max_length ({max_length} tokens)"
                dropped[reason] = dropped.get(reason, 0) + 1
            else:
                ids, labels, types = item
                items.append(Item(ids, labels, types, start + offset))
                truncated += cut
        if progress:
            progress(len(chunk))
    if rows and not items:
        raise DataError(f"no row is left: {'; '.join(dropped)}; raise task.max_length")
    return Encoded(items, truncated, dropped)


Piece = tuple[Ids, NDArray[Any], Ids | None] | None


def _encode_chunk(rows: Sequence[Row], tokenizer: Any, max_length: int, slots: Slots) -> list[tuple[Piece, bool]]:
    room = max_length - slots.count
    if room < 2:
        raise DataError(f"max_length: {max_length} tokens leave no room for text beside a prefix of {slots.count}")
    if isinstance(rows[0], TextRow):
        found = _encode_texts([row for row in rows if isinstance(row, TextRow)], tokenizer, room)
    elif isinstance(rows[0], ChoiceRow):
        found = _encode_choices([row for row in rows if isinstance(row, ChoiceRow)], tokenizer, room)
    else:
        found = [_fit(*_tokens(row, tokenizer), tokenizer, room) for row in rows]
    return [(_with_slots(piece, end, slots, tokenizer), cut) for piece, end, cut in found]


def _with_slots(item: Piece, end: int, slots: Slots, tokenizer: Any) -> Piece:
    """A row with the places of a prefix behind the token that opens it, and of an infix in front of position `end`."""
    if item is None or not slots.count:
        return item
    ids, labels, types = item
    start = _opening(ids, tokenizer)
    if labels.ndim:
        filled = slots.insert(labels.tolist(), start, end, [IGNORE] * slots.count)
        labels = np.asarray(filled, dtype=labels.dtype)
    if types is not None:
        around = [int(types[max(0, start - 1)])] * slots.prefix + [int(types[max(0, end - 1)])] * slots.infix
        types = np.asarray(slots.insert(types.tolist(), start, end, around), dtype=np.int32)
    return np.asarray(slots.insert(ids.tolist(), start, end, slots.ids), dtype=np.int32), labels, types


def _opening(ids: Sequence[int] | Ids, tokenizer: Any) -> int:
    """Tokens in front of a prefix: one that opens every row."""
    return int(len(ids) > 1 and int(ids[0]) in (tokenizer.cls_token_id, tokenizer.bos_token_id))


def with_prefix(prompt: list[int], slots: Slots, tokenizer: Any) -> list[int]:
    """A prompt that is to be continued, as `encode` shows it in training."""
    return slots.insert(prompt, _opening(prompt, tokenizer), len(prompt), slots.ids)


Found = tuple[Piece, int, bool]
"""A row, the position of which an infix stands in front, and whether the row lost tokens."""


def _encode_texts(rows: list[TextRow], tokenizer: Any, max_length: int) -> list[Found]:
    """Of a text that is classified the last token stays last: a decoder's head reads it."""
    texts = [row.text for row in rows]
    pairs = None if rows[0].pair is None else [row.pair for row in rows]
    whole = tokenizer(texts, pairs, verbose=False)["input_ids"]
    cut = tokenizer(texts, pairs, truncation="longest_first", max_length=max_length)
    types = cut.get("token_type_ids")
    result: list[Found] = []
    for index, row in enumerate(rows):
        ids = np.asarray(cut["input_ids"][index], dtype=np.int32)
        label = np.asarray(IGNORE if row.label is None else row.label)
        segment = None if types is None else np.asarray(types[index], dtype=np.int32)
        result.append(((ids, label, segment), len(ids) - 1, len(whole[index]) > len(ids)))
    return result


def _encode_choices(rows: list[ChoiceRow], tokenizer: Any, max_length: int) -> list[Found]:
    """Prompt, the right word (without a label the first), end of sequence; the prompt leaves room for any word.

    So what the model is shown of a prompt does not depend on the label.
    """
    words = {choices: choice_ids(choices, tokenizer) for choices in {row.choices for row in rows}}
    prompts = tokenizer([row.prompt for row in rows], verbose=False)["input_ids"]
    result: list[Found] = []
    for row, ids in zip(rows, prompts, strict=True):
        longest = max(len(word) for word in words[row.choices])
        room = max_length - longest - 1
        if room < 2:  # the beginning-of-sequence token, and one of the prompt
            raise DataError(f"max_length: {max_length} tokens leave no room for a prompt before a word of {longest}")
        whole = _opened(list(ids), tokenizer)
        prompt = cut_front(whole, len(whole) - room, tokenizer)
        target = [*words[row.choices][row.label or 0], _eos(tokenizer)]
        learned = [IGNORE] * len(target) if row.label is None else target
        labels = np.asarray([IGNORE] * len(prompt) + learned, dtype=np.int64)
        piece = (np.asarray(prompt + target, dtype=np.int32), labels, None)
        result.append((piece, len(prompt), len(prompt) < len(whole)))
    return result


def choice_ids(choices: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Tokens of the words that name classes.

    Raises:
        DataError: A word has no tokens, or its tokens begin another's, which could then never be the likelier one.
    """
    words = [_plain(tokenizer, choice) for choice in choices]
    for choice, word in zip(choices, words, strict=True):
        if not word:
            raise DataError(f"the word {choice.strip()!r} has no tokens in this base's tokenizer; choose another")
        for other, longer in zip(choices, words, strict=True):
            if other != choice and longer[: len(word)] == word:
                raise DataError(
                    f"in this base's tokenizer the word {other.strip()!r} begins with all tokens of "
                    f"{choice.strip()!r}, so it could never be the likelier one; choose other words"
                )
    return words


def _tokens(row: Row, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids and labels of a whole row, before cutting."""
    if isinstance(row, ChatRow):
        return _chat_tokens(row, tokenizer)
    assert isinstance(row, CompletionRow)
    prompt = _prompt_tokens(row, tokenizer)
    target = [*_plain(tokenizer, row.target or ""), _eos(tokenizer)]
    return prompt + target, [IGNORE] * len(prompt) + target


def _fit(ids: list[int], labels: list[int], tokenizer: Any, max_length: int) -> Found:
    """Cut the front of what is not learned; the last run of targets stays whole or the row is dropped."""
    excess = max(0, len(ids) - max_length)
    first = _bos_first(ids, tokenizer)
    if excess and first + excess >= _last_target_run(labels):
        return None, 0, False
    if excess:
        ids, labels = ids[:first] + ids[first + excess :], labels[:first] + labels[first + excess :]
    end = _last_target_run(labels) or len(ids)
    return (np.asarray(ids, dtype=np.int32), np.asarray(labels, dtype=np.int64), None), end, bool(excess)


def _last_target_run(labels: list[int]) -> int:
    """Where the last unbroken run of targets starts: at least one token must stand before it; 0 without targets."""
    position = len(labels)
    while position and labels[position - 1] == IGNORE:
        position -= 1
    while position and labels[position - 1] != IGNORE:
        position -= 1
    return position


def prompt_ids(row: Row, tokenizer: Any) -> list[int]:
    """What generation continues: the prompt as training showed it.

    Raises:
        DataError: The tokenizer has no chat template, or its template refuses the conversation.
    """
    if isinstance(row, CompletionRow):
        return _prompt_tokens(row, tokenizer)
    assert isinstance(row, ChatRow), "text rows have no prompt"
    messages = row.messages[:-1] if row.messages[-1]["role"] == "assistant" else row.messages
    text = _render(tokenizer, messages, answer=True)
    before = [_render(tokenizer, messages[:index], answer=True) for index in _answers(messages)]
    return _chat_ids(tokenizer, text, [len(part) for part in before if text.startswith(part)])[0]


def end_ids(row: Row, tokenizer: Any) -> list[int]:
    """Tokens that end what the model says: end-of-sequence and, in conversations, the template's end of turn.

    Raises:
        DataError: The tokenizer has no end-of-sequence token or no chat template, or the template refuses.
    """
    ends = [_eos(tokenizer)]
    if isinstance(row, ChatRow):
        exchange = (Message(role="user", content="a"), Message(role="assistant", content="b"))
        ends.append(_chat_tokens(ChatRow(exchange), tokenizer)[0][-1])
    return list(dict.fromkeys(ends))


def cut_front(ids: list[int], excess: int, tokenizer: Any) -> list[int]:
    """Leave out the first `excess` tokens, but keep a beginning-of-sequence token in front."""
    if excess <= 0:
        return ids
    first = _bos_first(ids, tokenizer)
    return ids[:first] + ids[first + excess :]


def _bos_first(ids: list[int], tokenizer: Any) -> int:
    return int(len(ids) > 1 and ids[0] == tokenizer.bos_token_id)


def _eos(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise DataError("this base's tokenizer has no end-of-sequence token, so a model could not learn when to stop")
    return int(tokenizer.eos_token_id)


def _prompt_tokens(row: CompletionRow, tokenizer: Any) -> list[int]:
    return _opened(list(tokenizer(row.prompt, verbose=False)["input_ids"]), tokenizer, row.separator)


def _opened(ids: list[int], tokenizer: Any, separator: str | None = None) -> list[int]:
    """A tokenised prompt as something follows it."""
    if ids and ids[-1] == tokenizer.eos_token_id:
        ids.pop()  # a tokenizer that closes every text would end the prompt before its completion
    if separator == "eos":
        return [*ids, _eos(tokenizer)]
    return ids or [_eos(tokenizer)]  # the first token of a target needs one before it: an empty prompt opens a document


def _plain(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _chat_tokens(row: ChatRow, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids of the rendered conversation; labels where the assistant speaks, its end-of-turn token included.

    What follows the assistant's last turn is left out: nothing would be learned there.
    """
    text = _render(tokenizer, row.messages)
    spans = [_spoken(tokenizer, row.messages, index) for index in _answers(row.messages)]
    if not spans:  # a conversation to be continued, of which only the prompt is used
        ids = _plain(tokenizer, text)
        return ids, [IGNORE] * len(ids)
    ids, places = _chat_ids(tokenizer, text[: spans[-1][1]], [start for start, _ in spans])
    learned = [any(a <= start and end <= b for a, b in spans) for start, end in places]
    labels = [token if learn else IGNORE for token, learn in zip(ids, learned, strict=True)]
    if ids[-1] not in tokenizer.all_special_ids and ids[-1] not in tokenizer.added_tokens_decoder:
        ids.append(_eos(tokenizer))  # a template without an end of turn: learn to stop all the same
        labels.append(ids[-1])
    return ids, labels


def _answers(messages: Sequence[Message]) -> list[int]:
    return [index for index, message in enumerate(messages) if message["role"] == "assistant"]


def _spoken(tokenizer: Any, messages: Sequence[Message], index: int) -> tuple[int, int]:
    """Where in the rendered conversation a turn of the assistant starts and ends, its end of turn included."""
    before = _render(tokenizer, messages[:index], answer=True)
    until = _render(tokenizer, messages[: index + 1])
    if not (until.startswith(before) and _render(tokenizer, messages).startswith(until)):
        raise DataError(
            "this base's chat template renders earlier turns differently once the conversation goes on, "
            "so what the assistant said cannot be marked; split such conversations into single exchanges"
        )
    return len(before), len(until.rstrip())


def _chat_ids(tokenizer: Any, text: str, starts: Sequence[int]) -> tuple[list[int], list[tuple[int, int]]]:
    """Tokens of a rendered conversation, and which characters each stands for.

    Where the assistant's words would melt with the prompt before them into one token (at `starts`), the text is
    tokenised in two parts: a model that is asked to answer sees the prompt alone.
    """
    if not tokenizer.is_fast:
        raise DataError("this base's tokenizer cannot say which characters a token stands for; chat needs a fast one")
    ids: list[int] = []
    places: list[tuple[int, int]] = []
    cuts = [0]
    for start in starts:
        prompt = _plain(tokenizer, text[cuts[-1] : start])
        if _plain(tokenizer, text[cuts[-1] :])[: len(prompt)] != prompt:
            cuts.append(start)
    for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True):
        encoded = tokenizer(text[start:end], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids += encoded["input_ids"]
        places += [(start + a, start + b) for a, b in encoded["offset_mapping"]]
    return ids, places


def _render(tokenizer: Any, messages: Sequence[Message], answer: bool = False) -> str:
    if not tokenizer.chat_template:
        raise DataError("this base's tokenizer has no chat template: use an instruct base, or kind: completion")
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=answer)
    except Exception as error:  # templates raise jinja's own errors, e.g. for a role that they do not know
        raise DataError(f"this base's chat template refuses a conversation: {error}") from error
    return str(text)

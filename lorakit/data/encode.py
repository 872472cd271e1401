"""Rows to token ids: what is read, what is learned, and what is cut when a row is too long.

Prompts lose their front, pairs their longer half, targets nothing: a row whose target does not fit is dropped and
counted.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorakit.data.items import IGNORE, Encoded, Ids, Item
from lorakit.data.rows import ChatRow, ChoiceRow, CompletionRow, Message, Row, TextRow
from lorakit.data.slots import NO_SLOTS, Slots
from lorakit.errors import DataError

_CHUNK = 1000
"""Rows that are tokenised at once: enough for the threads of the tokenizers library, which shares them out itself."""


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
    losses = Losses()
    chunks = encode_chunks(rows, tokenizer, max_length, slots, losses, progress)
    return Encoded([item for chunk in chunks for item in chunk], losses.truncated, losses.dropped)


@dataclass
class Losses:
    """What encoding costs, counted on the way.

    Args:
        truncated: Rows that lost tokens.
        dropped: Why rows were left out → how many.
    """

    truncated: int = 0
    dropped: dict[str, int] = field(default_factory=dict)


def encode_chunks(
    rows: Iterable[Row],
    tokenizer: Any,
    max_length: int,
    slots: Slots,
    losses: Losses,
    progress: Callable[[int], None] | None = None,
) -> Iterator[list[Item]]:
    """As `encode`, in parts, for rows that are not all in memory; `losses` is complete at the end.

    Raises:
        DataError: As `encode`; that no row is left only at the end.
    """
    source, start, kept = iter(rows), 0, 0
    while chunk := list(islice(source, _CHUNK)):
        items = []
        for index, (piece, cut) in enumerate(_encode_chunk(chunk, tokenizer, max_length, slots), start):
            if piece is None:
                reason = f"target longer than max_length ({max_length} tokens)"
                losses.dropped[reason] = losses.dropped.get(reason, 0) + 1
            else:
                items.append(Item(*piece, index))
                losses.truncated += cut
        if progress:
            progress(len(chunk))
        start, kept = start + len(chunk), kept + len(items)
        if items:
            yield items
    if start and not kept:
        raise DataError(f"no row is left: {'; '.join(losses.dropped)}; raise task.max_length")


Piece = tuple[Ids, NDArray[Any], Ids | None] | None


def _encode_chunk(rows: Sequence[Row], tokenizer: Any, max_length: int, slots: Slots) -> list[tuple[Piece, bool]]:
    room = max_length - slots.count
    if room < 2:
        raise DataError(f"max_length: {max_length} tokens leave no room for text beside a prefix of {slots.count}")
    if isinstance(rows[0], TextRow):
        found = _encode_texts([row for row in rows if isinstance(row, TextRow)], tokenizer, room)
    elif isinstance(rows[0], ChoiceRow):
        found = _encode_choices([row for row in rows if isinstance(row, ChoiceRow)], tokenizer, room)
    elif isinstance(rows[0], CompletionRow):
        found = _encode_completions([row for row in rows if isinstance(row, CompletionRow)], tokenizer, room)
    else:
        chats = [row for row in rows if isinstance(row, ChatRow)]
        found = [_fit(*_chat_tokens(row, tokenizer), tokenizer, room) for row in chats]
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
    halves = [(row.text, row.pair) for row in rows]
    whole = _text_ids(halves, tokenizer)
    long = [index for index, (ids, _) in enumerate(whole) if len(ids) > max_length]
    cut = _text_ids([halves[index] for index in long], tokenizer, truncation="longest_first", max_length=max_length)
    shown = dict(enumerate(whole)) | dict(zip(long, cut, strict=True))
    result: list[Found] = []
    for index, row in enumerate(rows):
        ids, types = (None if found is None else np.asarray(found, dtype=np.int32) for found in shown[index])
        assert ids is not None
        label = np.asarray(IGNORE if row.label is None else row.label)
        result.append(((ids, label, types), len(ids) - 1, len(whole[index][0]) > len(ids)))
    return result


def _text_ids(
    halves: Sequence[tuple[str, str | None]], tokenizer: Any, **cut: Any
) -> list[tuple[list[int], list[int] | None]]:
    """Ids, and token types where the tokenizer makes them, of texts or pairs."""
    if not halves:
        return []
    pairs = None if halves[0][1] is None else [pair for _, pair in halves]
    found = tokenizer([text for text, _ in halves], pairs, verbose=False, **cut)
    types = found.get("token_type_ids")
    return list(zip(found["input_ids"], [None] * len(halves) if types is None else types, strict=True))


def _encode_completions(rows: list[CompletionRow], tokenizer: Any, max_length: int) -> list[Found]:
    prompts = tokenizer([row.prompt for row in rows], verbose=False)["input_ids"]
    said = tokenizer([row.target or "" for row in rows], add_special_tokens=False, verbose=False)["input_ids"]
    result = []
    for row, before, words in zip(rows, prompts, said, strict=True):
        prompt, target = _opened(list(before), tokenizer, row.separator), [*words, _eos(tokenizer)]
        result.append(_fit(prompt + target, [IGNORE] * len(prompt) + target, tokenizer, max_length))
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

"""What is read, what is learned, and what is cut."""

from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lorakit.arch import ARCHITECTURES
from lorakit.data.encode import choice_ids, cut_front, encode, end_ids, prompt_ids
from lorakit.data.items import IGNORE
from lorakit.data.rows import ChatRow, ChoiceRow, CompletionRow, Message, TextRow
from lorakit.errors import DataError
from lorakit.tiny import tiny_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BARE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
FORGETFUL = (  # shows what the assistant thought in its last turn only
    "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' and loop.last %}(hm) {% endif %}{{ m.content }}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def bytes_tokenizer(merges: list[tuple[str, str]] | None = None, bos: str | None = None) -> Any:
    """Bytes, a few merges, an end token, and (if asked) a token that opens every text."""
    merges = merges or []
    names = ["<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", *([bos] if bos else [])]
    tokens = [*names, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        **({"bos_token": bos} if bos else {}),
    )
    made.chat_template = CHATML
    return made


def chat(*turns: str, system: str | None = None) -> ChatRow:
    roles = ["user", "assistant"] * len(turns)
    messages = [Message(role=role, content=turn) for role, turn in zip(roles, turns, strict=False)]
    return ChatRow((*([Message(role="system", content=system)] if system else []), *messages))


def learned(tokenizer: Any, item: Any) -> str:
    """What is learned, as text."""
    return str(tokenizer.decode(item.labels[item.labels != IGNORE]))


# --- texts


@pytest.mark.parametrize("model_type", ["bert", "roberta", "gpt2"])
def test_texts_and_pairs_are_the_tokenizers_own(model_type: str) -> None:
    tokenizer = tiny_tokenizer(ARCHITECTURES[model_type])
    for rows in ([TextRow("one two", label=1), TextRow("", label=0)], [TextRow("a", "bc", 0.5), TextRow("ab", "c")]):
        encoded = encode(rows, tokenizer, 64)
        for row, item in zip(rows, encoded.items, strict=True):
            own = tokenizer(row.text, row.pair)
            assert item.input_ids.tolist() == own["input_ids"]
            assert (item.token_type_ids is not None) == (model_type == "bert")
            if item.token_type_ids is not None:
                assert item.token_type_ids.tolist() == own["token_type_ids"]
            assert item.labels == (IGNORE if row.label is None else row.label)
        assert (encoded.truncated, encoded.dropped) == (0, {})
    assert encoded.targets.tolist() == [1, 1]


def test_pairs_lose_their_longer_half() -> None:
    tokenizer = tiny_tokenizer(ARCHITECTURES["bert"])
    rows = [TextRow("abcdefgh", "xy", 0), TextRow("ab", "xy", 0)]
    encoded = encode(rows, tokenizer, 9)
    assert tokenizer.decode(encoded.items[0].input_ids) == "[CLS]abcd[SEP]xy[SEP]"
    assert (encoded.truncated, encoded.lengths.tolist(), len(encoded)) == (1, [9, 7], 2)


# --- completions


def test_layout_of_the_paper() -> None:
    """PROTOCOL 2.3: tokens(context) + [eos] + tokens(" " + completion) + [eos], the loss on completion and eos."""
    tokenizer = bytes_tokenizer()
    row = CompletionRow("name : Fern", " Fern is here .", "eos")
    item = encode([row], tokenizer, 64).items[0]
    eos = tokenizer.eos_token_id
    prompt, target = tokenizer("name : Fern")["input_ids"], tokenizer(" Fern is here .")["input_ids"]
    assert item.input_ids.tolist() == [*prompt, eos, *target, eos]
    assert item.labels.tolist() == [IGNORE] * (len(prompt) + 1) + [*target, eos]
    assert prompt_ids(row, tokenizer) == [*prompt, eos]
    assert end_ids(row, tokenizer) == [eos]


def test_without_separator_and_with_padding_by_eos() -> None:
    tokenizer = bytes_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    encoded = encode([CompletionRow("ab", "c"), CompletionRow("ab", "")], tokenizer, 64)
    assert learned(tokenizer, encoded.items[0]) == "c<|endoftext|>"
    assert encoded.items[0].input_ids.tolist() == [*tokenizer("abc")["input_ids"], tokenizer.eos_token_id]
    assert encoded.targets.tolist() == [2, 1]


def test_tokenizer_that_closes_texts_does_not_close_the_prompt() -> None:
    tokenizer = bytes_tokenizer()
    end = ("<|endoftext|>", tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end[0]}", special_tokens=[end]
    )
    row = CompletionRow("ab", "c")
    assert tokenizer.decode(encode([row], tokenizer, 9).items[0].input_ids) == "abc<|endoftext|>"
    assert tokenizer.decode(prompt_ids(row, tokenizer)) == "ab"


def test_empty_prompt_opens_a_document() -> None:
    tokenizer = bytes_tokenizer()
    item = encode([CompletionRow("", "ab")], tokenizer, 9).items[0]
    assert tokenizer.decode(item.input_ids) == "<|endoftext|>ab<|endoftext|>"
    assert learned(tokenizer, item) == "ab<|endoftext|>"


def test_prompt_loses_its_front_and_target_nothing() -> None:
    tokenizer = bytes_tokenizer(bos="<s>")
    rows = [CompletionRow("abcdef", "xyz"), CompletionRow("f", "xyz"), CompletionRow("abcdef", "vwxyz")]
    encoded = encode(rows, tokenizer, 7)
    assert [tokenizer.decode(item.input_ids) for item in encoded.items] == [
        "<s>efxyz<|endoftext|>",
        "<s>fxyz<|endoftext|>",
    ]
    assert [learned(tokenizer, item) for item in encoded.items] == ["xyz<|endoftext|>"] * 2
    assert [item.row for item in encoded.items] == [0, 1]
    assert encoded.truncated == 1
    assert encoded.dropped == {"target longer than max_length (7 tokens)": 1}


def test_all_dropped() -> None:
    with pytest.raises(DataError, match="no row is left: target longer than max_length .3 tokens.; raise task.max_len"):
        encode([CompletionRow("a", "bcd")], bytes_tokenizer(), 3)


def test_cut_front() -> None:
    tokenizer = bytes_tokenizer(bos="<s>")
    bos = tokenizer.bos_token_id
    assert cut_front([bos, 10, 11, 12], 2, tokenizer) == [bos, 12]
    assert cut_front([10, 11, 12], 2, tokenizer) == [12]
    assert cut_front([bos, 10], -3, tokenizer) == [bos, 10]


def test_tokenizer_without_an_end() -> None:
    tokenizer = bytes_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no end-of-sequence token"):
        encode([CompletionRow("a", "b")], tokenizer, 9)


def test_progress_counts_rows() -> None:
    seen: list[int] = []
    encode([CompletionRow("a", "b")] * 2300, bytes_tokenizer(), 9, seen.append)
    assert seen == [1000, 1000, 300]


# --- choices


def test_choice_is_a_completion_by_the_right_word() -> None:
    tokenizer = bytes_tokenizer(bos="<s>")
    choices = (" yes", " maybe")
    items = encode([ChoiceRow("so?", choices, label) for label in (0, 1, None)], tokenizer, 64).items
    for item, word in zip(items, choices, strict=False):
        same = encode([CompletionRow("so?", word)], tokenizer, 64).items[0]
        assert item.input_ids.tolist() == same.input_ids.tolist()
        assert item.labels.tolist() == same.labels.tolist()
    assert items[2].input_ids.tolist() == items[0].input_ids.tolist(), "without a label the first word stands in"
    assert set(items[2].labels.tolist()) == {IGNORE}
    assert [item.input_ids.dtype for item in items] == [np.int32] * 3


def test_prompt_of_choices_loses_its_front_by_the_longest_word() -> None:
    tokenizer = bytes_tokenizer(bos="<s>")
    rows = [ChoiceRow("abcdef", ("x", "yyy"), label) for label in (0, 1)] + [ChoiceRow("f", ("x", "yyy"), 0)]
    encoded = encode(rows, tokenizer, 7)
    assert [tokenizer.decode(item.input_ids) for item in encoded.items] == [
        "<s>efx<|endoftext|>",
        "<s>efyyy<|endoftext|>",
        "<s>fx<|endoftext|>",
    ]
    assert [learned(tokenizer, item) for item in encoded.items] == [
        f"{word}<|endoftext|>" for word in ("x", "yyy", "x")
    ]
    assert (encoded.truncated, encoded.dropped) == (2, {})
    with pytest.raises(DataError, match="5 tokens leave no room for a prompt before a word of 3$"):
        encode(rows, tokenizer, 5)


def test_empty_prompt_of_choices_opens_a_document() -> None:
    tokenizer = bytes_tokenizer()
    item = encode([ChoiceRow("", ("a", "b"), 1)], tokenizer, 9).items[0]
    assert tokenizer.decode(item.input_ids) == "<|endoftext|>b<|endoftext|>"


def test_choices_that_cannot_be_told_apart() -> None:
    tokenizer = bytes_tokenizer(merges=[("n", "o"), ("no", "t")])
    assert [tokenizer.decode(word) for word in choice_ids(("no", "not"), tokenizer)] == ["no", "not"]
    with pytest.raises(DataError, match="the word 'nowhere' begins with all tokens of 'no', so it could never be the"):
        encode([ChoiceRow("p", ("nowhere", "not", "no"), 0)], tokenizer, 9)
    with pytest.raises(DataError, match="the word '' has no tokens"):
        choice_ids(("a", ""), tokenizer)


# --- conversations


def test_only_the_assistant_is_learned() -> None:
    tokenizer = bytes_tokenizer()
    row = chat("hi", "hello", "and?", "so.", system="Be brief.")
    item = encode([row], tokenizer, 200).items[0]
    assert tokenizer.decode(item.input_ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\nhello<|im_end|>\n<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\nso.<|im_end|>"
    )
    assert learned(tokenizer, item) == "hello<|im_end|>so.<|im_end|>"
    assert end_ids(row, tokenizer) == [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]


def test_chat_loses_its_front_but_not_the_last_answer() -> None:
    tokenizer = bytes_tokenizer()
    rows = [chat("hi", "hello", "and?", "so."), chat("hi", "longer than the limit allows")]
    encoded = encode(rows, tokenizer, 20)
    assert learned(tokenizer, encoded.items[0]) == "so.<|im_end|>"
    assert (len(encoded.items[0].input_ids), encoded.truncated, len(encoded)) == (20, 1, 1)


def test_template_without_end_of_turn_gets_eos() -> None:
    tokenizer = bytes_tokenizer(merges=[(".", "Ċ")])
    tokenizer.chat_template = BARE
    item = encode([chat("hi", "hello.", "so", "yes.")], tokenizer, 200).items[0]
    assert tokenizer.decode(item.input_ids).endswith("assistant: yes.<|endoftext|>")
    assert learned(tokenizer, item).endswith("yes.<|endoftext|>")
    assert end_ids(chat("a"), tokenizer) == [tokenizer.eos_token_id]


@pytest.mark.parametrize("merges", [[], [("Ġ", "h")], [(":", "Ġ"), ("Ġ", "h")]])
@pytest.mark.parametrize("template", [CHATML, BARE])
def test_training_and_serving_see_the_same_prompt(template: str, merges: list[tuple[str, str]]) -> None:
    """Also where the prompt's last character would melt into the answer's first: ` ` + `h`."""
    tokenizer = bytes_tokenizer(merges)
    tokenizer.chat_template = template
    whole = chat("hi", "hello", "häh?", "ho", "hu", "hé")
    for turns in (2, 4, 6):
        row = ChatRow(whole.messages[:turns])
        item = encode([row], tokenizer, 200).items[0]
        prompt = prompt_ids(row, tokenizer)
        assert item.input_ids[: len(prompt)].tolist() == prompt
        assert item.labels[len(prompt)] != IGNORE and item.labels[len(prompt) - 1] == IGNORE
        assert prompt_ids(ChatRow(whole.messages[: turns - 1]), tokenizer) == prompt
    assert learned(tokenizer, item).split("h")[1] in {"ello<|im_end|>", "ello"}


def test_open_conversation_is_encoded_without_targets() -> None:
    tokenizer = bytes_tokenizer()
    encoded = encode([chat("hi")], tokenizer, 99)
    assert encoded.targets.tolist() == [0]
    assert prompt_ids(chat("hi"), tokenizer)[: encoded.lengths[0]] == encoded.items[0].input_ids.tolist()


def test_template_that_rewrites_earlier_turns() -> None:
    tokenizer = bytes_tokenizer()
    tokenizer.chat_template = FORGETFUL
    with pytest.raises(DataError, match="renders earlier turns differently"):
        encode([chat("a", "b", "c", "d")], tokenizer, 99)
    assert learned(tokenizer, encode([chat("a", "b")], tokenizer, 99).items[0]) == "(hm) b<|endoftext|>"
    prompt_ids(chat("a", "b", "c"), tokenizer)  # to be continued it need not be marked


def test_no_chat_template_and_one_that_refuses() -> None:
    tokenizer = bytes_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('system turns are not supported') }}"
    with pytest.raises(DataError, match="refuses a conversation: system turns are not supported"):
        encode([chat("a", "b")], tokenizer, 99)
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="no chat template"):
        prompt_ids(chat("a", "b"), tokenizer)


def test_dtypes() -> None:
    item = encode([CompletionRow("a", "b")], bytes_tokenizer(), 9).items[0]
    assert (item.input_ids.dtype, item.labels.dtype) == (np.int32, np.int64)

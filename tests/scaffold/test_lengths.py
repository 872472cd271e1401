"""Lengths of rows in tokens."""

from lorakit.data.rows import ChatRow, CompletionRow, TextRow
from lorakit.scaffold.lengths import SAMPLE, SPECIAL, measure, share_below


def test_estimate_is_a_third_of_the_bytes() -> None:
    found = measure([TextRow("a" * 30, "b" * 9), TextRow("é" * 3)], None)
    assert found.rows == [2 + SPECIAL, 13 + SPECIAL] and not found.counted
    assert found.targets == []


def test_targets_have_an_end_token_and_turns_their_own_special_ones() -> None:
    completions = measure([CompletionRow("a" * 30, "b" * 6)], None)
    assert (completions.rows, completions.targets) == ([12 + SPECIAL], [3])
    chat = measure([ChatRow(({"role": "user", "content": "a" * 3}, {"role": "assistant", "content": "b" * 9}))], None)
    assert (chat.rows, chat.targets) == ([4 + 2 * SPECIAL], [4])


def test_the_tokenizer_counts() -> None:
    from lorakit.arch import ARCHITECTURES
    from lorakit.tiny import tiny_tokenizer

    found = measure([TextRow("abc de")], tiny_tokenizer(ARCHITECTURES["roberta"]).backend_tokenizer)
    assert (found.rows, found.counted) == ([6 + SPECIAL], True)


def test_a_sample_of_many_rows() -> None:
    found = measure([TextRow("a")] * (SAMPLE + 1) + [TextRow("a" * 300)] * SAMPLE, None)
    assert len(found.rows) <= SAMPLE and {len(set(found.rows)), found.longer_than(50) > 0.4} == {2, True}


def test_share_below() -> None:
    lengths = list(range(1, 101))
    assert (share_below(lengths, 0.5), share_below(lengths, 0.99), share_below([7], 0.99)) == (51, 100, 7)

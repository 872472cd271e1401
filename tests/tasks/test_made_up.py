from collections import Counter

from lorakit.tasks.made_up import chat_rows, completion_rows, text_rows


def test_text_names_its_label() -> None:
    rows = text_rows(90, 0, range(9), pair=False)
    words = {row.text.split(" was ")[1]: row.label for row in rows}
    assert len(words) == 9 and all(words[row.text.split(" was ")[1]] == row.label for row in rows)
    assert set(Counter(row.label for row in rows).values()) == {10}


def test_only_the_second_text_of_a_pair_names_it() -> None:
    rows = text_rows(40, 0, [0.0, 0.5], pair=True)
    assert len({(row.pair, row.label) for row in rows}) == 2
    firsts = [{row.text for row in rows if row.label == label} for label in (0.0, 0.5)]
    assert firsts[0] & firsts[1]


def test_completion_is_in_its_prompt() -> None:
    for row in completion_rows(10, 0):
        assert row.target.removeprefix(" It is ").removesuffix(".") in row.prompt


def test_conversations_end_with_the_assistant() -> None:
    rows = chat_rows(6, 0)
    assert all(row.messages[-1]["role"] == "assistant" for row in rows)
    assert {row.messages[0]["role"] for row in rows} == {"system", "user"}


def test_seeds() -> None:
    for make in (completion_rows, chat_rows):
        assert make(20, 1) == make(20, 1) != make(20, 2)
    assert text_rows(20, 1, (0, 1), False) == text_rows(20, 1, (0, 1), False) != text_rows(20, 2, (0, 1), False)

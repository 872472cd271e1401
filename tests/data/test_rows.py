import pytest

from lorakit.data.rows import ChatRow, CompletionRow, Message, TextRow, distinct_prompts


def chat(*turns: tuple[str, str]) -> ChatRow:
    return ChatRow(tuple(Message(role=role, content=content) for role, content in turns))


def test_prompts_in_first_seen_order_with_all_references() -> None:
    rows = [CompletionRow("b", " 1"), CompletionRow("a", " 2"), CompletionRow("b", " 3\n")]
    assert distinct_prompts(rows) == [(rows[0], ["1", "3"]), (rows[1], ["2"])]


def test_without_targets_there_are_no_references() -> None:
    row = CompletionRow("a", None)
    assert distinct_prompts([row, row]) == [(row, [])]


def test_last_assistant_turn_is_the_reference() -> None:
    first = chat(("user", "hi"), ("assistant", "hello"))
    again = chat(("user", "hi"), ("assistant", "good day"))
    other = chat(("system", "be kind"), ("user", "hi"), ("assistant", "hello"))
    assert distinct_prompts([first, other, again]) == [(first, ["hello", "good day"]), (other, ["hello"])]


def test_conversation_that_awaits_an_answer_has_the_same_prompt() -> None:
    asked, answered = chat(("user", "hi")), chat(("user", "hi"), ("assistant", "hello"))
    assert distinct_prompts([asked, answered]) == [(asked, ["hello"])]


def test_text_rows_have_no_prompt() -> None:
    with pytest.raises(AssertionError):
        distinct_prompts([TextRow("x")])

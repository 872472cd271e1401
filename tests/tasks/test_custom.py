import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from lorakit.data import hub
from lorakit.data.rows import ChatRow, CompletionRow, TextRow
from lorakit.errors import DataError
from lorakit.tasks import custom
from lorakit.tasks.custom import Custom


def task(kind: str, train: object, **more: object) -> Custom:
    return Custom.model_validate({"name": "custom", "kind": kind, "train": str(train), **more})


def jsonl(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def failure(kind: str, train: object, split: str = "train", **more: object) -> str:
    with pytest.raises(DataError) as caught:
        task(kind, train, **more).load(split)
    return str(caught.value)


def refusal(**section: object) -> str:
    with pytest.raises(ValidationError) as caught:
        Custom.model_validate({"name": "custom", "train": "a.jsonl", **section})
    return str(caught.value)


# --- classification


def test_classification_from_jsonl(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", {"text": "x", "label": "spam"}, {"text": "y", "label": "ham"})
    read = task("classification", file)
    assert read.labels == ("ham", "spam")
    assert read.load("train").rows == [TextRow("x", None, 1), TextRow("y", None, 0)]
    assert (read.kind, read.metrics, read.splits) == ("classification", ("accuracy", "f1_macro"), ("train",))


def test_classification_columns_pair_and_named_labels(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("a,b,y\nx,p,no\ny,q,yes\n")
    columns = {"text": "a", "pair": "b", "label": "y"}
    read = task("classification", file, columns=columns, labels=["yes", "no"])
    assert read.load("train").rows == [TextRow("x", "p", 1), TextRow("y", "q", 0)]


def test_labels_may_be_indices_and_names_come_first(tmp_path: Path) -> None:
    file = jsonl(
        tmp_path / "a.jsonl", {"text": "x", "label": 1}, {"text": "y", "label": 0}, {"text": "z", "label": "b"}
    )
    assert [row.label for row in task("classification", file, labels=["a", "b"]).load("train").rows] == [1, 0, 1]
    file = jsonl(tmp_path / "b.jsonl", {"text": "x", "label": 1}, {"text": "y", "label": 0})
    assert [row.label for row in task("classification", file, labels=["1", "0"]).load("train").rows] == [0, 1]


def test_found_numeric_labels_are_sorted_as_numbers(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", *({"text": "x", "label": n} for n in (10, 2, 0)))
    assert task("classification", file).labels == ("0", "2", "10")


def test_found_labels_are_read_once_and_from_all_rows(tmp_path: Path, monkeypatch) -> None:
    file = jsonl(tmp_path / "a.jsonl", *({"text": "x", "label": n} for n in "cab"))
    opened = []
    monkeypatch.setattr(
        custom, "read_records", lambda path, read=custom.read_records: opened.append(path) or read(path)
    )
    read = task("classification", file, limit={"train": 1})
    assert read.labels == read.labels == ("a", "b", "c")
    assert opened == [file]
    assert read.load("train").rows == [TextRow("x", None, 2)]


def test_named_labels_need_no_file() -> None:
    assert task("classification", "none.jsonl", labels=["a", "b"]).labels == ("a", "b")


def test_label_outside_the_set(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", {"text": "x", "label": "a"}, {"text": "y", "label": "c"})
    message = failure("classification", file, labels=["a", "b"])
    assert message == f'{file}:2: `label` must be one of a, b, but is "c"'
    assert 'but is "2"' in failure("classification", jsonl(file, {"text": "x", "label": 2}), labels=["a", "b"])


def test_validation_label_that_train_has_not(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "a.jsonl", {"text": "x", "label": "a"}, {"text": "y", "label": "b"})
    other = jsonl(tmp_path / "b.jsonl", {"text": "x", "label": "z"})
    assert f"{other}:1: " in failure("classification", train, "validation", validation=str(other))


def test_a_single_label_is_refused(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", {"text": "x", "label": "a"})
    assert 'all rows have the label "a"' in failure("classification", file)


@pytest.mark.parametrize("label", [None, True, 0.5, ["a"]])
def test_label_of_the_wrong_type(tmp_path: Path, label: object) -> None:
    file = jsonl(tmp_path / "a.jsonl", {"text": "x", "label": "a"}, {"text": "y", "label": label})
    for more in ({}, {"labels": ["a", "b"]}):
        assert f"{file}:2: `label` must be a class, as text or a whole number" in failure(
            "classification", file, **more
        )


def test_test_rows_may_lack_labels(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", {"text": "x"}, {"text": "y", "label": None}, {"text": "z", "label": "b"})
    read = task("classification", "none.jsonl", test=str(file), labels=["a", "b"])
    assert [row.label for row in read.load("test").rows] == [None, None, 1]
    table = tmp_path / "b.csv"
    table.write_text("text,label\nx,\n")
    assert task("regression", "none.jsonl", test=str(table)).load("test").rows == [TextRow("x")]
    assert "there is no column `label`" in failure("classification", file, labels=["a", "b"])


# --- regression


def test_regression(tmp_path: Path) -> None:
    file = tmp_path / "a.tsv"
    file.write_text('text\tlabel\n"x\t1.5\ny\t-2\n')
    read = task("regression", file)
    assert read.load("train").rows == [TextRow('"x', None, 1.5), TextRow("y", None, -2.0)]
    assert (read.kind, read.metrics, read.labels) == ("regression", ("pearson", "spearman"), ("score",))


def test_regression_label_must_be_a_number(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", {"text": "x", "label": 1}, {"text": "y", "label": "high"})
    assert failure("regression", file) == f'{file}:2: `label` must be a number, but is "high"'


# --- completion


def test_completion(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", {"prompt": "2 + 2 =", "target": " 4"})
    read = task("completion", file)
    assert read.load("train").rows == [CompletionRow("2 + 2 =", " 4")]
    assert (read.kind, read.metrics, read.labels) == ("generation", ("exact_match", "bleu"), ())


def test_completion_with_a_template(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", {"q": "Who?", "context": "{q}", "a": "Me"})
    read = task("completion", file, template="{context} Question: {q}\nAnswer: ", columns={"target": "a"})
    assert read.load("train").rows == [CompletionRow("{q} Question: Who?\nAnswer: ", "Me")]


def test_template_with_an_unknown_column(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", {"question": "Who?", "target": "Me"})
    message = failure("completion", file, template="{questoin}")
    assert message.startswith(f"{file}:1: there is no column `questoin`; did you mean `question`?")


def test_template_makes_texts_too(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", {"title": "T", "body": "B", "label": 3})
    assert task("regression", file, template="{title}: {body}").load("train").rows == [TextRow("T: B", None, 3.0)]


@pytest.mark.parametrize("row", [{"prompt": None, "target": "x"}, {"prompt": 3, "target": "x"}])
def test_prompt_must_be_text(tmp_path: Path, row: dict) -> None:
    file = jsonl(tmp_path / "a.jsonl", row)
    assert failure("completion", file).startswith(f"{file}:1: `prompt` must be text, but is ")


def test_null_target_in_train_but_not_in_test(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", {"prompt": "p", "target": None})
    assert failure("completion", file) == f"{file}:1: `target` must be text, but is null"
    assert task("completion", file, test=str(file)).load("test").rows == [CompletionRow("p", None)]


def test_completion_scores() -> None:
    read = task("completion", "none.jsonl")
    rows = [CompletionRow("p", " a b c d"), CompletionRow("q", " e"), CompletionRow("p", " a b c d e")]
    scores = read.score(rows, ["a b c d e", "f"]).values
    assert scores["exact_match"] == 0.5 and 0 < scores["bleu"] < 1


# --- chat


HELLO = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def test_chat(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be kind."}
    file = jsonl(tmp_path / "a.jsonl", {"messages": HELLO}, {"messages": [system, *HELLO]})
    read = task("chat", file)
    assert read.load("train").rows == [ChatRow(tuple(HELLO)), ChatRow((system, *HELLO))]
    assert (read.kind, read.metrics) == ("generation", ("exact_match", "bleu"))
    assert read.score(read.load("train").rows, ["Hello", "Bye"]).values["exact_match"] == 0.5


def test_chat_from_parquet_ignores_null_keys(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"turns": [{**HELLO[0], "name": None}, HELLO[1]]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    read = task("chat", tmp_path / "a.parquet", columns={"messages": "turns"})
    assert read.load("train").rows == [ChatRow(tuple(HELLO))]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, "`messages` must be a list of {role, content}, but is null"),
        ([], "`messages` must be a list of {role, content}, but is []"),
        ("Hi", '`messages` must be a list of {role, content}, but is "Hi"'),
        (["Hi"], 'messages[0] must be {role, content}, but is "Hi"'),
        ([{"role": "bot", "content": "x"}], 'messages[0]: role must be one of system, user, assistant, but is "bot"'),
        ([{"from": "human", "value": "x"}], "messages[0]: role must be one of system, user, assistant, but is null"),
        ([HELLO[0], {"role": "assistant"}], "messages[1]: content must be text, but is null"),
        ([HELLO[0], {**HELLO[1], "tool": "x"}], "messages[1]: only role and content are read; remove tool"),
        (HELLO[:1], "`messages` must end with an assistant turn: that is what is learned"),
        ([*HELLO, {"role": "system", "content": "x"}], "`messages`: a system turn can only be the first"),
    ],
)
def test_broken_conversations(tmp_path: Path, messages: object, message: str) -> None:
    file = jsonl(tmp_path / "a.jsonl", {"messages": HELLO}, {"messages": messages})
    assert failure("chat", file) == f"{file}:2: {message}"


def test_test_conversations_may_await_an_answer(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", {"messages": HELLO[:1]})
    assert task("chat", file, test=str(file)).load("test").rows == [ChatRow(tuple(HELLO[:1]))]


# --- sources


def test_splits_and_missing_ones(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", {"prompt": "p", "target": "t"})
    assert task("completion", file, validation=str(file), test=str(file)).splits == ("train", "validation", "test")
    assert failure("completion", file, "validation").startswith("task.validation is not given; this recipe has train")
    assert failure("completion", file, "test") == "task.test is not given; this recipe has train"
    assert failure("completion", file, "dev") == "task.dev is not given; this recipe has train"


def test_held_out_rows_are_evenly_spaced_and_not_trained_on(tmp_path: Path) -> None:
    """Sorted by label, as files often are: both parts have every class."""
    file = jsonl(tmp_path / "a.jsonl", *({"text": str(n), "label": "abc"[n // 10]} for n in range(30)))
    read = task("classification", file, held_out=0.1)
    assert read.splits == ("train", "validation")
    assert [row.text for row in read.load("validation").rows] == ["9", "19", "29"]
    assert [row.text for row in read.load("train").rows] == [str(n) for n in range(30) if n % 10 != 9]


def test_classes_of_held_out_rows_count(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", *({"text": "t", "label": label} for label in "aabc"))
    assert task("classification", file, held_out=0.25).labels == ("a", "b", "c")


def test_relative_paths_are_relative_to_the_current_directory(tmp_path: Path, monkeypatch) -> None:
    jsonl(tmp_path / "a.jsonl", {"prompt": "p", "target": "t"})
    monkeypatch.chdir(tmp_path)
    assert len(task("completion", "a.jsonl").load("train").rows) == 1


def test_hub_source(monkeypatch) -> None:
    asked = []

    def fake(source: hub.HubSource) -> hub.HubSplit:
        asked.append(source)
        return hub.HubSplit([{"text": "x", "label": "a"}, {"text": "y", "label": "c"}], "c0ffee")

    monkeypatch.setattr(custom, "load_split", fake)
    read = task("classification", "hub:o/n:cfg@main", validation="hub:o/n#dev", labels=["a", "b"])
    with pytest.raises(DataError) as caught:
        read.load("validation")
    assert str(caught.value) == 'hub:o/n#dev, row 2: `label` must be one of a, b, but is "c"'
    assert task("classification", "hub:o/n:cfg@main", labels=["a", "c"]).load("train").revision == "c0ffee"
    assert asked == [hub.HubSource("o/n", "dev"), hub.HubSource("o/n", "train", "cfg", "main")]


# --- the section


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"kind": "ranking"}, "'classification', 'regression', 'completion' or 'chat'"),
        ({"kind": "chat", "train": "a.txt"}, "'a.txt': a file ends in one of .jsonl, .json, .csv, .tsv, .parquet"),
        ({"kind": "chat", "train": "hub:x"}, "'hub:x' is no hub source"),
        ({"kind": "chat", "train": "a.csv"}, "'a.csv': conversations need .jsonl, .json, .parquet or the hub"),
        ({"kind": "chat", "columns": {"text": "t"}}, "columns: kind chat has messages, not text"),
        ({"kind": "chat", "columns": {"txt": "t"}}, "'text', 'pair', 'label', 'prompt', 'target' or 'messages'"),
        ({"kind": "chat", "template": "{a}"}, "rendered by the tokenizer's chat template"),
        ({"kind": "completion", "template": "{a.b}"}, "{a.b}: only the name of a column"),
        ({"kind": "completion", "template": "a"}, "the template names no column"),
        ({"kind": "completion", "template": "{a}", "columns": {"prompt": "p"}}, "columns.prompt both say what"),
        ({"kind": "completion", "labels": ["a", "b"]}, "labels: kind completion has no classes"),
        ({"kind": "classification", "labels": ["a", "a"]}, "a label stands there twice"),
        ({"kind": "classification", "labels": ["a"]}, "at least 2 items"),
        ({"kind": "classification", "label_names": ["a", "b"]}, "Extra inputs are not permitted"),
        ({"kind": "chat", "held_out": 0.1, "validation": "b.jsonl"}, "both say what is validated on; keep one"),
        ({"kind": "chat", "held_out": 0.6}, "less than or equal to 0.5"),
        ({}, "Field required"),
    ],
)
def test_refused_sections(section: dict, message: str) -> None:
    assert message in refusal(**section)


def test_dumped_with_the_recipes_keys() -> None:
    section = {"name": "custom", "kind": "classification", "train": "a.jsonl", "labels": ["a", "b"]}
    dumped = task("classification", "a.jsonl", labels=["a", "b"]).model_dump(mode="json", exclude_defaults=True)
    assert {"name": "custom", **dumped} == section
    full = task("classification", "a.jsonl", labels=["a", "b"]).model_dump(mode="json")
    assert Custom.model_validate(full) == task("classification", "a.jsonl", labels=["a", "b"])
    assert {"kind", "labels"} <= Custom.model_json_schema()["properties"].keys()


@pytest.mark.parametrize("kind", ["classification", "regression", "completion", "chat"])
def test_sample_needs_no_file(kind: str) -> None:
    read = task(kind, "none.jsonl", **({"labels": ["a", "b"]} if kind == "classification" else {}))
    rows = read.sample(10, seed=1)
    assert len(rows) == 10 and rows == read.sample(10, seed=1) != read.sample(10, seed=2)
    assert isinstance(rows[0], {"completion": CompletionRow, "chat": ChatRow}.get(kind, TextRow))

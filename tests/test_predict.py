"""Predictions for a person's rows and for splits, from a run directory alone."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lorakit.checkpoint import ADAPTER, RECIPE, Provenance, head_of, save_adapter
from lorakit.data.rows import ChatRow, CompletionRow, TextRow
from lorakit.errors import DataError
from lorakit.model import prepare
from lorakit.predict import predict_input, predict_split
from lorakit.progress import Silent
from lorakit.recipe import load
from lorakit.surgery import trainable_state
from lorakit.tasks import E2E, Custom, Glue
from lorakit.tasks.base import Task

Tiny = Callable[[str], Path]
LIMIT = {"max_new_tokens": 4}


def make_run(directory: Path, base: Path, task: dict[str, Any], **sections: Any) -> Path:
    """A run directory as training leaves it, with an adapter that changes nothing."""
    directory.mkdir()
    recipe = {
        "name": directory.name,
        "model": {"base": str(base)},
        "method": {"name": "lora", "rank": 2, "alpha": 2, "targets": ["q"]},
        "task": task,
        "train": {"steps": 1, "batch_size": 1, "lr": 0.1},
        **sections,
    }
    (directory / RECIPE).write_text(yaml.safe_dump(recipe))
    loaded = load(directory / RECIPE)
    prepared = prepare(loaded.model, loaded.method, head_of(loaded), loaded.train.seed)
    save_adapter(directory / ADAPTER, trainable_state(prepared.model), Provenance.of(prepared))
    return directory


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


# --- what a person may give

GIVEN: list[tuple[Task, str | dict[str, object], Any]] = [
    (Glue(subset="sst2"), "fine\tor not", TextRow("fine\tor not")),
    (Glue(subset="sst2"), {"sentence": "fine"}, TextRow("fine")),
    (Glue(subset="mnli"), "a b\tc", TextRow("a b", "c")),
    (Glue(subset="mnli"), {"text": "a", "pair": "c"}, TextRow("a", "c")),
    (Glue(subset="mnli"), {"premise": "a", "hypothesis": "c"}, TextRow("a", "c")),
    (Glue(subset="mrpc"), {"#2 String": "c", "#1 String": "a"}, TextRow("a", "c")),
    (E2E(), "name[Fern], area[old docks]", CompletionRow("name : Fern | area : old docks", None, "eos")),
    (E2E(), "name : Fern | area : old docks", CompletionRow("name : Fern | area : old docks", None, "eos")),
    (E2E(), {"mr": "name[Fern]"}, CompletionRow("name : Fern", None, "eos")),
    (
        Custom(kind="completion", train="x.csv", template="Q: {q}\nA:"),
        {"q": "why?", "target": "so", "n": 3},
        CompletionRow("Q: why?\nA:", None),
    ),
    (
        Custom(kind="completion", train="x.csv", template="Q: {q} {q}"),
        "why\tnot?",
        CompletionRow("Q: why\tnot? why\tnot?", None),
    ),
    (Custom(kind="completion", train="x.csv"), "why?", CompletionRow("why?", None)),
    (Custom(kind="regression", train="x.csv", columns={"pair": "b"}), "u\tv", TextRow("u", "v")),
    (Custom(kind="regression", train="x.csv", columns={"text": "a"}), {"a": "u", "label": 1}, TextRow("u")),
    (Custom(kind="chat", train="x.jsonl"), "hi", ChatRow(({"role": "user", "content": "hi"},))),
    (
        Custom(kind="chat", train="x.jsonl", columns={"messages": "turns"}),
        {"turns": [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]},
        ChatRow(({"role": "system", "content": "s"}, {"role": "user", "content": "hi"})),
    ),
]


@pytest.mark.parametrize(("task", "given", "row"), GIVEN)
def test_from_input(task: Task, given: str | dict[str, object], row: Any) -> None:
    assert task.from_input(given, "f:1") == row


@pytest.mark.parametrize(
    ("task", "given", "message"),
    [
        (Glue(subset="mnli"), "one", "f:3: mnli compares two texts: write a tab"),
        (Glue(subset="sst2"), {"text": "a", "label": 1}, "f:3: unknown: label; the fields of this task are text"),
        (Glue(subset="mnli"), {"premise": "a"}, "f:3: there is no column `hypothesis`"),
        (Glue(subset="sst2"), {"text": 3}, "f:3: `text` must be text, but is 3"),
        (E2E(), "Describe Fern.", "f:3: a meaning representation is"),
        (E2E(), {"ref": "x"}, "f:3: unknown: ref; the fields of this task are mr"),
        (Custom(kind="completion", train="x.csv", template="{a} {b}"), "x", "f:3: this recipe needs a, b: write JSON"),
        (Custom(kind="regression", train="x.csv", columns={"pair": "b"}), "u", "f:3: this recipe needs text, b"),
        (
            Custom(kind="chat", train="x.jsonl"),
            {"messages": [{"role": "assistant", "content": "x"}]},
            "f:3: the last turn must be the user's",
        ),
    ],
)
def test_from_input_refuses(task: Task, given: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        task.from_input(given, "f:3")
    assert str(caught.value).startswith(message)


def test_submission() -> None:
    assert Glue(subset="mnli").submission("test_mismatched", [0, 2]) == (
        "MNLI-mm.tsv",
        "index\tprediction\n0\tentailment\n1\tcontradiction\n",
    )
    assert Glue(subset="mnli").submission("validation", [0]) is None
    assert E2E().submission("test", ["x"]) is None


# --- from a run


def test_lines_of_a_file_one_record_each(tiny: Tiny, tmp_path: Path) -> None:
    run = make_run(tmp_path / "e2e", tiny("gpt2"), {"name": "e2e"}, generate=LIMIT)
    source = tmp_path / "input.txt"
    source.write_text('\ufeffname[Fern]\r\n\n{"mr": "name[\u2028Oar]"}\nname : Fern\n', encoding="utf-8")
    out = tmp_path / "out.jsonl"
    assert predict_input(run, None, str(source), out, several=False, progress=Silent()) == [out]
    found = lines(out)
    assert [record["prompt"] for record in found] == ["name : Fern", "name : Oar", "name : Fern"]
    assert found[0] == found[2] and set(found[0]) == {"prompt", "prediction", "references"}


def test_standard_input_to_standard_output(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "sst2", tiny("bert"), {"name": "glue", "subset": "sst2"})
    monkeypatch.setattr("sys.stdin", io.StringIO('good\n{"text": "bad"}\n'))
    assert predict_input(run, None, "-", None, several=False, progress=Silent()) == []
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["text"] for record in found] == ["good", "bad"]
    assert {record["prediction"] for record in found} <= {"negative", "positive"}

    for text, message in (
        ('ok\n{"text": \n', "standard input:2: not a JSON object"),
        ('ok\n\n{"texts": "x"}\n', "standard input:3: unknown: texts"),
        ("\n  \n", "-: no rows"),
    ):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        with pytest.raises(DataError, match=message):
            predict_input(run, None, "-", None, several=False, progress=Silent())
    with pytest.raises(DataError, match=r"none\.txt: cannot be read"):
        predict_input(run, None, str(tmp_path / "none.txt"), None, several=False, progress=Silent())


def test_splits_and_submissions(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "glue" / "SST-2"
    folder.mkdir(parents=True)
    (folder / "dev.tsv").write_text("sentence\tlabel\ngood\t1\nbad\t0\n")
    (folder / "test.tsv").write_text("index\tsentence\n0\tgood\n1\tbad\n")
    task = {"name": "glue", "subset": "sst2", "path": str(tmp_path / "glue")}
    run = make_run(tmp_path / "sst2", tiny("bert"), task)
    out = tmp_path / "predictions"
    assert predict_split(run, None, "test", out, several=False, progress=Silent()) == [out / "SST-2.tsv"]
    written = (out / "SST-2.tsv").read_text()
    assert written.startswith("index\tprediction\n0\t") and len(written.splitlines()) == 3
    predict_split(run, None, "test", None, several=False, progress=Silent())
    assert capsys.readouterr().out == written

    files = predict_split(run, None, "validation", out, several=True, progress=Silent())
    assert files == [out / "sst2.validation.jsonl"]
    assert [record["label"] for record in lines(files[0])] == ["positive", "negative"]
    with pytest.raises(DataError, match="train, validation, test"):
        predict_split(run, None, "dev", out, several=False, progress=Silent())


def test_chat(tiny: Tiny, tmp_path: Path) -> None:
    task = {"name": "custom", "kind": "chat", "train": "x.jsonl", "validation": "x.jsonl"}
    run = make_run(tmp_path / "chat", tiny("llama"), task, generate=LIMIT)
    source, out = tmp_path / "in.txt", tmp_path / "out"
    source.write_text("hi\nho\n")
    out.mkdir()
    files = predict_input(run, None, str(source), out, several=False, progress=Silent())
    assert files == [out / "chat.input.jsonl"]
    assert [record["prompt"] for record in lines(files[0])] == [[{"role": "user", "content": w}] for w in ("hi", "ho")]

"""Losses and metrics of a split, as a loop over single rows would find them."""

import functools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lorakit.data.encode import encode
from lorakit.data.rows import ChatRow, ChoiceRow, CompletionRow, Message, TextRow
from lorakit.data.slots import NO_SLOTS
from lorakit.errors import DataError, LorakitError, RecipeError
from lorakit.evaluate import (
    Part,
    Subject,
    evaluate,
    predict,
    resolve_precision,
)
from lorakit.metrics import LACKING, TEXT_METRICS
from lorakit.model import Base, Head, prepare
from lorakit.objective import objective
from lorakit.progress import Plain, Silent
from lorakit.recipe import Generate
from lorakit.records import records, write_records
from lorakit.splits import SplitData, read_split, token_limit
from lorakit.tasks import E2E, Custom, Glue
from lorakit.tasks.base import Task
from lorakit.tiny import make_tiny_base
from lorakit.world import World

Tiny = Callable[[str], Path]
CPU = torch.device("cpu")


def subject(base: Path, task: Task, smoothing: float = 0.0) -> Subject:
    prepared = prepare(Base(base=str(base)), [], Head(task.head, task.labels), seed=0)
    loss = objective(task.head, prepared.model, smoothing)
    return Subject(prepared.model, prepared.tokenizer, loss, CPU)


def split(of: Subject, rows: list[Any], name: str = "validation") -> SplitData:
    return SplitData(name, rows, encode(rows, of.tokenizer, 100))


def texts(labels: tuple[float | int | None, ...]) -> list[Any]:
    """Pairs of random lengths, one per label, so that a batch by length has another order."""
    rng = np.random.default_rng(0)
    words = ["".join(chr(97 + int(c)) for c in rng.integers(0, 26, int(n))) for n in rng.integers(1, 30, len(labels))]
    return [TextRow(word, word[::-1], label) for word, label in zip(words, labels, strict=True)]


@pytest.mark.parametrize("model_type", ["bert", "roberta", "gpt2"])
def test_classification_equals_a_loop(one_thread: None, tmp_path: Path, model_type: str) -> None:
    task = Glue(subset="mrpc")
    loud = make_tiny_base(model_type, tmp_path / "base", seed=2, initializer_range=0.5)  # rows get different classes
    of = subject(loud, task, smoothing=0.3)
    rows = texts((1, 0, 1, 1, 0, 1, 0, 0, 1))
    of.model.train()
    found = evaluate(of, task, split(of, rows), None, Silent())
    assert of.model.training, "the mode is put back"

    of.model.eval()
    with torch.no_grad():
        logits = [of.model(**of.tokenizer(row.text, row.pair, return_tensors="pt")).logits[0] for row in rows]
    assert found.predictions == [int(row.argmax()) for row in logits]
    assert len(set(found.predictions)) == 2
    hits = [p == row.label for p, row in zip(found.predictions, rows, strict=True)]
    losses = [float(F.cross_entropy(one, torch.tensor(row.label))) for one, row in zip(logits, rows, strict=True)]
    assert found.metrics == {
        "loss": pytest.approx(sum(losses) / 9, rel=1e-5),
        "accuracy": pytest.approx(sum(hits) / 9),
        "f1": pytest.approx(_f1(found.predictions, [row.label for row in rows])),
    }
    assert found.records[2] == {
        "text": rows[2].text,
        "pair": rows[2].pair,
        "prediction": task.labels[found.predictions[2]],
        "label": "equivalent",
    }


def _f1(predictions: list[Any], labels: list[Any]) -> float:
    both = sum(p == label == 1 for p, label in zip(predictions, labels, strict=True))
    return 2 * both / (sum(predictions) + sum(labels))


def test_regression_and_unlabelled(tiny: Tiny) -> None:
    task = Glue(subset="stsb")
    of = subject(tiny("bert"), task)
    rows = texts((0.5, 5.0, 2.5))
    found = evaluate(of, task, split(of, rows), None, Silent())
    with torch.no_grad():
        numbers = [float(of.model(**of.tokenizer(row.text, row.pair, return_tensors="pt")).logits) for row in rows]
    assert found.predictions == pytest.approx(numbers, rel=1e-4, abs=1e-6)
    errors = [(number - row.label) ** 2 for number, row in zip(numbers, rows, strict=True)]
    assert found.metrics["loss"] == pytest.approx(sum(errors) / 3, rel=1e-5)
    assert list(found.metrics) == ["loss", "pearson", "spearman"]

    hidden = predict(of, task, split(of, texts((None, None, None)), "test"), None, Silent())
    assert hidden.predictions == pytest.approx(numbers, rel=1e-4, abs=1e-6)
    assert hidden.metrics == {}
    assert "label" not in hidden.records[0]


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_choices_equal_a_loop(one_thread: None, tmp_path: Path, model_type: str) -> None:
    """The loss is over word and end token, as of a completion; the class is the likeliest word's."""
    task = Glue(subset="mnli", format="prompt", words=["no", "so", "we"], template="{text} {pair}")
    of = subject(make_tiny_base(model_type, tmp_path / "base", seed=2, initializer_range=0.5), task, smoothing=0.3)
    rows = [task.wording.row((row.text, row.pair), row.label) for row in texts((1, 0, 2, 1, 0, 1, 0, 0, 2))]
    of.model.train()
    found = evaluate(of, task, split(of, rows), None, Silent())
    assert of.model.training, "the mode is put back"

    of.model.eval()
    scores, losses, count = [], [], 0
    for row in rows:
        of_words = [_log_p(of, row.prompt, of.tokenizer(word)["input_ids"]) for word in row.choices]
        target = [*of.tokenizer(row.choices[row.label])["input_ids"], of.tokenizer.eos_token_id]
        scores.append(of_words)
        losses.append(-_log_p(of, row.prompt, target))
        count += len(target)
    assert found.predictions == [max(range(3), key=of_words.__getitem__) for of_words in scores]
    assert len(set(found.predictions)) > 1
    hits = [p == row.label for p, row in zip(found.predictions, rows, strict=True)]
    assert found.metrics == {
        "loss": pytest.approx(sum(losses) / count, rel=1e-5),
        "accuracy": pytest.approx(sum(hits) / 9),
    }
    named = task.labels[found.predictions[2]]
    assert found.records[2] == {"text": rows[2].prompt, "prediction": named, "label": "contradiction"}

    hidden = [ChoiceRow(row.prompt, row.choices) for row in rows]
    blind = predict(of, task, split(of, hidden, "test"), None, Silent())
    assert (blind.predictions, blind.metrics) == (found.predictions, {})
    assert set(blind.records[0]) == {"text", "prediction"}


def _log_p(of: Subject, prompt: str, target: list[int]) -> float:
    ids = of.tokenizer(prompt)["input_ids"]
    with torch.no_grad():
        logits = of.model(torch.tensor([ids + target])).logits[0, len(ids) - 1 : -1]
    return -float(F.cross_entropy(logits, torch.tensor(target), reduction="sum"))


def test_generation_equals_a_loop(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two references for the first prompt: one prediction; the loss is over all rows and their end tokens."""
    task = E2E()
    of = subject(tiny("gpt2"), task, smoothing=0.3)
    rows = [
        CompletionRow("name : A", " Some A .", "eos"),
        CompletionRow("name : A | area : old docks", " B", "eos"),
        CompletionRow("name : A", " A place named A .", "eos"),
    ]
    data = split(of, rows)
    found = evaluate(of, task, data, Generate(max_new_tokens=5), Silent(), Part(quick=True))
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            target = [*of.tokenizer(row.target)["input_ids"], of.tokenizer.eos_token_id]
            prompt = [*of.tokenizer(row.prompt)["input_ids"], of.tokenizer.eos_token_id]
            logits = of.model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
            total += float(F.cross_entropy(logits, torch.tensor(target), reduction="sum"))
            count += len(target)
    assert found.metrics["loss"] == pytest.approx(total / count, rel=1e-5)
    assert set(found.metrics) == {"loss", "bleu", "nist", "nist_perl"}
    for name in task.slow_metrics:
        monkeypatch.setitem(TEXT_METRICS, name, lambda *_: 0.5)
        monkeypatch.setitem(LACKING, name, lambda: None)
    whole = found.complete(task, rows, Silent())
    assert list(whole.metrics) == ["loss", *task.metrics] and whole.complete(task, rows, Silent()) is whole
    assert {name: whole.metrics[name] for name in found.metrics} == found.metrics
    assert [(record["prompt"], record["references"]) for record in found.records] == [
        ("name : A", ["Some A .", "A place named A ."]),
        ("name : A | area : old docks", ["B"]),
    ]
    assert found.predictions == [record["prediction"] for record in found.records]

    hidden = [CompletionRow(row.prompt, None, "eos") for row in rows]
    blind = predict(of, task, split(of, hidden, "test"), Generate(max_new_tokens=5), Silent())
    assert (blind.predictions, blind.metrics) == (found.predictions, {})
    assert [record["references"] for record in blind.records] == [[], []]


def test_prompts_are_cut_as_in_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = E2E(max_length=24)
    of = subject(make_tiny_base("gpt2", tmp_path / "base", initializer_range=0.3), task)
    text = "name : A | area : old docks | near : B"
    long, short = CompletionRow(text, None), CompletionRow(text[-24:], None)
    data = split(of, [long, short], "test")
    found = predict(of, task, data, Generate(max_new_tokens=5), Plain())
    assert found.predictions[0] == found.predictions[1]
    whole = predict(of, E2E(max_length=99), data, Generate(max_new_tokens=5), Silent())
    assert whole.predictions[1] == found.predictions[1] and whole.predictions[0] != found.predictions[0]
    assert capsys.readouterr().out == "generate: 1 of 2 prompts lose their front: they have more than 24 tokens\n"


def test_chat_records_show_the_conversation(tiny: Tiny, tmp_path: Path) -> None:
    task = Custom(kind="chat", train="x.jsonl")
    user, assistant = Message(role="user", content="hé"), Message(role="assistant", content=" Yes. ")
    found = records(task, [ChatRow((user, assistant)), ChatRow((user,))], ["No."])
    assert found == [{"prompt": [user], "prediction": "No.", "references": ["Yes."]}]
    write_records(tmp_path / "new" / "p.jsonl", found * 2)
    lines = (tmp_path / "new" / "p.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == found * 2 and "hé" in lines[0]


def test_mode_is_restored_after_an_error(tiny: Tiny) -> None:
    of = subject(tiny("bert"), Glue(subset="cola"))
    of.model.train()
    with pytest.raises(ZeroDivisionError), of.evaluating():
        assert not of.model.training and not torch.is_grad_enabled()
        1 / 0  # noqa: B018
    assert of.model.training and torch.is_grad_enabled()


def test_precision_is_that_of_the_computation(tiny: Tiny) -> None:
    of = subject(tiny("bert"), Glue(subset="cola"))
    half = Subject(of.model, of.tokenizer, of.objective, CPU, "bfloat16")
    square = torch.ones(2, 2)
    with of.autocast():
        assert (square @ square).dtype == torch.float32
    with half.autocast():
        assert (square @ square).dtype == torch.bfloat16


def test_first_rows(tiny: Tiny) -> None:
    of = subject(tiny("gpt2"), E2E())
    rows = [CompletionRow("p", "x" * size, "eos") for size in (3, 200, 4, 5)]  # the second is dropped
    data = split(of, rows)
    assert [item.row for item in data.first(3).encoded.items] == [0, 2]
    assert len(data.first(3).rows) == 3
    assert data.first(None) is data and data.first(4) is data


@pytest.mark.parametrize(
    ("precision", "dtype", "device", "expected"),
    [
        ("auto", "auto", "cpu", "float32"),
        ("auto", "auto", "cuda", "bfloat16"),
        ("auto", "float32", "cuda", "bfloat16"),
        ("auto", "bfloat16", "cpu", "bfloat16"),
        ("auto", "float16", "cuda", "float16"),
        ("float32", "auto", "cuda", "float32"),
        ("float16", "auto", "cuda", "float16"),
        ("bfloat16", "float32", "cpu", "bfloat16"),
        ("float16", "auto", "cpu", "train.precision: float16 needs a GPU"),
        ("auto", "float16", "cpu", "model.dtype: float16 needs a GPU"),
    ],
)
def test_resolve_precision(precision: str, dtype: str, device: str, expected: str) -> None:
    model = SimpleNamespace(dtype=dtype, quantize=None)
    recipe: Any = SimpleNamespace(train=SimpleNamespace(precision=precision), model=model)
    if "needs" in expected:
        with pytest.raises(RecipeError, match=expected):
            resolve_precision(recipe, torch.device(device))
    else:
        assert resolve_precision(recipe, torch.device(device)) == expected


@pytest.mark.parametrize(
    ("asked", "available", "limit"),
    [(None, None, 512), (None, 128, 128), (None, 2048, 512), (768, 2048, 768), (768, None, 768), (128, 128, 128)],
)
def test_token_limit(asked: int | None, available: int | None, limit: int) -> None:
    prepared: Any = SimpleNamespace(max_tokens=available)
    assert token_limit(Glue(subset="cola", max_length=asked), prepared) == limit


def test_token_limit_beyond_the_model() -> None:
    prepared: Any = SimpleNamespace(max_tokens=128)
    with pytest.raises(RecipeError, match="task.max_length: 129 exceeds the 128 positions"):
        token_limit(Glue(subset="cola", max_length=129), prepared)


def test_read_split_adds_up_what_was_dropped(tiny: Tiny, tmp_path: Path) -> None:
    of = subject(tiny("gpt2"), E2E())
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps({"prompt": "p", "target": "x" * n}) + "\n" for n in (3, 50, 4)))
    task = Custom(kind="completion", train=str(file), max_length=10)
    prepared: Any = SimpleNamespace(tokenizer=of.tokenizer, max_tokens=128, slots=NO_SLOTS, model=of.model)
    data = read_split(task, "train", prepared, Silent())
    assert (len(data.rows), len(data.encoded), data.labelled) == (3, 2, True)
    assert data.dropped == {"target longer than max_length (10 tokens)": 1}
    with pytest.raises(DataError):
        read_split(task, "test", prepared, Silent())


def test_no_targets_no_loss(tiny: Tiny) -> None:
    of = subject(tiny("bert"), Glue(subset="cola"))
    found = evaluate(of, Glue(subset="cola"), split(of, [TextRow("a"), TextRow("b")]), None, Silent())
    assert found.metrics == {} and len(found.predictions) == 2
    assert not any(math.isnan(float(value)) for value in found.predictions)


def hungry(monkeypatch: pytest.MonkeyPatch, of: Subject, most: int) -> list[int]:
    """Let memory run out for a forward pass of more than `most` rows; returns the rows of each."""
    seen: list[int] = []
    real = of.model.forward

    @functools.wraps(real)  # generation looks at its parameters
    def forward(*args: Any, **inputs: Any) -> Any:
        rows = len(args[0] if args else inputs["input_ids"])
        seen.append(rows)
        if rows > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*args, **inputs)

    monkeypatch.setattr(of.model, "forward", forward)
    return seen


@pytest.mark.parametrize("kind", ["classes", "choices", "generation"])
def test_memory_that_runs_out_halves_the_batches(
    one_thread: None, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Generate(max_new_tokens=3) if kind == "generation" else None
    tasks: dict[str, Task] = {
        "classes": Glue(subset="mrpc"),
        "choices": Glue(subset="mrpc", format="prompt"),
        "generation": E2E(),
    }
    task = tasks[kind]
    rows: list[Any] = {
        "classes": texts((1, 0, 1, 1, 0, 1, 0, 0, 1)),
        "choices": [ChoiceRow("p" * n, (" a", " b"), n % 2) for n in range(1, 10)],
        "generation": [CompletionRow("p" * n, "t" * n) for n in range(1, 10)],
    }[kind]
    loud = make_tiny_base("bert" if kind == "classes" else "gpt2", tmp_path / "base", initializer_range=0.5)
    of = subject(loud, task)
    calm = evaluate(of, task, split(of, rows), settings, Silent(), Part(quick=True))
    assert of.room.notes() == []
    seen = hungry(monkeypatch, of, 3)
    tight = evaluate(of, task, split(of, rows), settings, Plain(), Part(quick=True))
    assert seen[:3] == [9, 5, 3]
    assert tight.metrics["loss"] == pytest.approx(calm.metrics["loss"], rel=1e-5)
    assert tight.predictions == calm.predictions
    assert "evaluation: memory ran out; batches are cut into 3 pieces" in capsys.readouterr().out
    del seen[:]
    evaluate(of, task, split(of, rows), settings, Plain(), Part(quick=True))
    assert max(seen) == 3, "what was found out holds"
    assert capsys.readouterr().out == ""


def test_a_row_that_never_fits_is_one_message(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Glue(subset="mrpc")
    of = subject(tiny("bert"), task)
    hungry(monkeypatch, of, 0)
    with pytest.raises(LorakitError, match="^evaluation: out of memory with a single row; try a smaller task"):
        evaluate(of, task, split(of, texts((1, 0, 1))), None, Silent())


def test_a_sharded_model_is_not_cut(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Glue(subset="mrpc")
    of = replace(subject(tiny("bert"), task), world=World(sharded=True))
    hungry(monkeypatch, of, 1)
    with pytest.raises(torch.OutOfMemoryError):
        evaluate(of, task, split(of, texts((1, 0, 1))), None, Silent())

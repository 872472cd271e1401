"""Predictions for a person's rows and for splits, from a run directory alone."""

import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from lorakit.checkpoint import ADAPTER, RECIPE, Provenance, head_of, save_adapter
from lorakit.cli import main
from lorakit.data.rows import ChatRow, CompletionRow, TextRow
from lorakit.errors import DataError
from lorakit.model import prepare
from lorakit.predict import predict_input, predict_split
from lorakit.progress import Silent
from lorakit.recipe import load
from lorakit.surgery import trainable_state
from lorakit.tasks import E2E, Custom, Glue
from lorakit.tasks.base import Task
from lorakit.tasks.glue import CORPORA
from lorakit.tasks.glue_submission import TEST_SETS, problems_of

Tiny = Callable[[str], Path]
LIMIT = {"max_new_tokens": 4}
DATA = Path(__file__).parents[1] / "../shared/data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is absent")


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


def glue_run(directory: Path, base: Path, data: Path, subset: str, **task: Any) -> Path:
    """A run on a subset of GLUE."""
    return make_run(directory, base, {"name": "glue", "subset": subset, "path": str(data), **task})


def stand_ins(folder: Path) -> Path:
    """GLUE's test files in the official layout, with two rows of our own each."""
    for name in ("CoLA", "MRPC", "QNLI", "QQP", "RTE", "SST-2", "STS-B", "WNLI"):
        columns = CORPORA[name.lower().replace("-", "")].columns
        write_tsv(folder / name / "test.tsv", ["index", *columns])
    for name in ("test_matched", "test_mismatched"):
        write_tsv(folder / "MNLI" / f"{name}.tsv", ["index", "promptID", "genre", "sentence1", "sentence2"])
    write_tsv(folder / "diagnostic" / "diagnostic.tsv", ["index", "sentence1", "sentence2"])
    return folder


def write_tsv(file: Path, columns: Sequence[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = ["\t".join(columns), *("\t".join([str(n), *(f"{word} {n}" for word in columns[1:])]) for n in range(2))]
    file.write_text("".join(f"{row}\n" for row in rows))


def predicted(runs: Sequence[Path], split: str, out: Path | None) -> list[Path]:
    return list(predict_split(runs, None, split, out, Silent()))


def test_splits_and_submissions(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = stand_ins(tmp_path / "glue")
    (data / "SST-2/dev.tsv").write_text("sentence\tlabel\ngood\t1\nbad\t0\n")
    run = glue_run(tmp_path / "sst2", tiny("bert"), data, "sst2", limit={"test": 2})
    out = tmp_path / "predictions"
    assert predicted([run], "test", out) == [out / "SST-2.tsv"]
    written = (out / "SST-2.tsv").read_text()
    assert written.startswith("index\tprediction\n0\t") and len(written.splitlines()) == 3
    predicted([run], "test", None)
    assert capsys.readouterr().out == written

    other = glue_run(tmp_path / "other", tiny("bert"), data, "sst2")
    files = predicted([run, other], "validation", out)
    assert files == [out / "sst2.validation.jsonl", out / "other.validation.jsonl"]
    assert [record["label"] for record in lines(files[0])] == ["positive", "negative"]
    with pytest.raises(DataError, match="train, validation, test"):
        predicted([run], "dev", out)


SPELLED = {
    "AX.tsv": {"entailment", "neutral", "contradiction"},
    "CoLA.tsv": {"0", "1"},
    "MNLI-m.tsv": {"entailment", "neutral", "contradiction"},
    "MNLI-mm.tsv": {"entailment", "neutral", "contradiction"},
    "MRPC.tsv": {"0", "1"},
    "QNLI.tsv": {"entailment", "not_entailment"},
    "QQP.tsv": {"0", "1"},
    "RTE.tsv": {"entailment", "not_entailment"},
    "SST-2.tsv": {"0", "1"},
    "STS-B.tsv": set(),
    "WNLI.tsv": {"0", "1"},
}


def check_submission(file: Path, rows: int) -> None:
    """Header, index, label strings and row count of one submission file."""
    header, *body = file.read_text().splitlines()
    assert header == "index\tprediction"
    assert [line.split("\t")[0] for line in body] == [str(n) for n in range(rows)]
    values = [line.split("\t")[1] for line in body]
    if file.name == "STS-B.tsv":
        assert all(re.fullmatch(r"[0-4]\.\d{3}|5\.000", value) for value in values)
    else:
        assert set(values) <= SPELLED[file.name]


def test_nine_runs_make_the_eleven_files(tiny: Tiny, tmp_path: Path) -> None:
    data, limit = stand_ins(tmp_path / "glue"), {"test": 2, "test_mismatched": 2, "diagnostic": 2}
    runs = [glue_run(tmp_path / subset, tiny("bert"), data, subset, limit=limit) for subset in CORPORA]
    out = tmp_path / "out"
    assert sorted(predicted(runs, "test", out)) == [out / name for name in sorted(SPELLED)]
    for name in SPELLED:
        check_submission(out / name, 2)


def test_a_test_set_that_is_not_whole_is_refused_before_anything_is_predicted(tiny: Tiny, tmp_path: Path) -> None:
    data = stand_ins(tmp_path / "glue")
    run = glue_run(tmp_path / "mnli", tiny("bert"), data, "mnli", limit={"test": 2, "test_mismatched": 2})
    with pytest.raises(DataError, match=r"split diagnostic of mnli has 2 rows, but the official file has 1,104"):
        predicted([run], "test", tmp_path / "out")
    (data / "diagnostic/diagnostic.tsv").unlink()
    with pytest.raises(DataError, match=r"diagnostic.tsv: no such file"):
        predicted([run], "test", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert predicted([run], "test_mismatched", tmp_path / "out") == [tmp_path / "out/MNLI-mm.tsv"]


def test_submissions_need_a_place_each(tiny: Tiny, tmp_path: Path) -> None:
    data, limit = stand_ins(tmp_path / "glue"), {"test": 2}
    runs = [glue_run(tmp_path / name, tiny("bert"), data, "rte", limit=limit) for name in ("a", "b")]
    with pytest.raises(DataError, match=r"several of these runs predict RTE.tsv"):
        predicted(runs, "test", tmp_path / "out")
    mnli = glue_run(tmp_path / "mnli", tiny("bert"), data, "mnli")
    with pytest.raises(DataError, match=r"makes MNLI-m.tsv, MNLI-mm.tsv, AX.tsv: name a directory for them with --out"):
        predicted([mnli], "test", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file: is a file, but RTE.tsv must be written into a directory"):
        predicted(runs[:1], "test", tmp_path / "file")


def test_the_command_says_what_a_submission_lacks_and_zips_a_whole_one(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = glue_run(tmp_path / "rte", tiny("bert"), stand_ins(tmp_path / "glue"), "rte", limit={"test": 2})
    out = tmp_path / "out"
    command = ["predict", str(run), "--split", "test", "--out", str(out)]
    with pytest.raises(SystemExit) as raised:
        main(command)
    said = capsys.readouterr().out
    assert raised.value.code == 0
    assert "warning: RTE.tsv: task.limit leaves 2 of 3,000 rows, so this is no valid submission\n" in said
    assert "QQP.tsv      missing: predict a run with task.subset qqp\n" in said
    assert said.endswith("no submission yet: 11 of the 11 files are not complete\n")

    for name, there in TEST_SETS.items():
        if name not in ("RTE.tsv", "WNLI.tsv"):
            (out / name).write_text("index\tprediction\n" + "0\t0\n" * there.rows)
    (tmp_path / "glue/RTE/test.tsv").write_text("index\tsentence1\tsentence2\n" + "0\ta\tb\n" * 3000)
    (run / RECIPE).write_text((run / RECIPE).read_text().replace("test: 2", "test: 3000"))
    with pytest.raises(SystemExit):
        main([*command, "--fill-wnli"])
    said = capsys.readouterr().out
    assert f"written: {out / 'WNLI.tsv'}: the majority class in all rows, from no model\n" in said
    assert said.endswith(f"written: {out / 'submission.zip'}: for gluebenchmark.com/submit\n")

    with pytest.raises(SystemExit) as raised:
        main(["predict", str(run), "--split", "test", "--fill-wnli"])
    assert raised.value.code == 2
    assert "it goes with --split test --out DIR" in capsys.readouterr().err


@pytest.mark.slow
@needs_data
def test_real_test_sets_are_whole(tiny: Tiny, tmp_path: Path) -> None:
    """All but QQP's and MNLI's own, which are not here: those rows are the official number of our own."""
    data = tmp_path / "glue"
    data.mkdir()
    for name in ("CoLA", "MRPC", "QNLI", "RTE", "SST-2", "STS-B", "WNLI", "diagnostic"):
        (data / name).symlink_to((DATA / "glue" / name).resolve())
    (data / "MNLI").mkdir()
    for name, rows in (("test_matched", 9796), ("test_mismatched", 9847)):
        body = "".join(f"{n}\ta {n}\tb\n" for n in range(rows))
        (data / "MNLI" / f"{name}.tsv").write_text(f"index\tsentence1\tsentence2\n{body}")
    subsets = [subset for subset in CORPORA if subset != "qqp"]
    runs = [glue_run(tmp_path / subset, tiny("bert"), data, subset, max_length=16) for subset in subsets]
    out = tmp_path / "out"
    for file in predicted(runs, "test", out):
        check_submission(file, TEST_SETS[file.name].rows)
    assert {name: problem for name, problem in problems_of(out).items() if problem} == {
        "QQP.tsv": "missing: predict a run with task.subset qqp"
    }


def test_chat(tiny: Tiny, tmp_path: Path) -> None:
    task = {"name": "custom", "kind": "chat", "train": "x.jsonl", "validation": "x.jsonl"}
    run = make_run(tmp_path / "chat", tiny("llama"), task, generate=LIMIT)
    source, out = tmp_path / "in.txt", tmp_path / "out"
    source.write_text("hi\nho\n")
    out.mkdir()
    files = predict_input(run, None, str(source), out, several=False, progress=Silent())
    assert files == [out / "chat.input.jsonl"]
    assert [record["prompt"] for record in lines(files[0])] == [[{"role": "user", "content": w}] for w in ("hi", "ho")]

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from lorakit.data import hub
from lorakit.data.rows import CompletionRow, distinct_prompts
from lorakit.errors import DataError
from lorakit.progress import Silent
from lorakit.recipe import load
from lorakit.scaffold.draft import draft
from lorakit.smoke import smoke
from lorakit.tasks import samsum
from lorakit.tasks.samsum import SAMSum

SHARED = Path(__file__).parents[2] / "../shared/data/samsum"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data/samsum is absent")


def write(folder: Path, name: str, *rows: tuple[str, str]) -> SAMSum:
    cells = [{"id": str(n), "dialogue": dialogue, "summary": text} for n, (dialogue, text) in enumerate(rows)]
    (folder / name).write_text(json.dumps(cells), encoding="utf-8")
    return SAMSum(path=str(folder))


# --- files


def test_rows(tmp_path: Path) -> None:
    task = write(tmp_path, "val.json", ("\nAda: Tea?\r\nBo: Yes!\r\n", " They will\r\nhave tea. "), ("Ada: Hi", "x"))
    assert task.load("validation").rows == [
        CompletionRow("Ada: Tea?\nBo: Yes!\n\n", " They will\nhave tea."),
        CompletionRow("Ada: Hi\n\n", " x"),
    ]


def test_template(tmp_path: Path) -> None:
    write(tmp_path, "test.json", ("Ada: {x} {{", "y"))
    task = SAMSum(path=str(tmp_path), template="Sum up {{briefly}}:\n{dialogue}\nSummary:")
    assert task.load("test").rows == [CompletionRow("Sum up {briefly}:\nAda: {x} {{\nSummary:", " y")]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{dialog}", "{dialog}: there is only {dialogue} to be named"),
        ("{summary} {dialogue}", "{summary}: there is only {dialogue} to be named"),
        ("Sum up:", "put {dialogue} where the conversation stands"),
        ("{dialogue", "unbalanced"),
        ("{dialogue[0]}", "only the name of a column"),
    ],
)
def test_templates_that_are_refused(template: str, message: str) -> None:
    with pytest.raises(ValidationError) as raised:
        SAMSum(template=template)
    assert message in str(raised.value)


def test_an_empty_dialogue_is_dropped_from_train_alone(tmp_path: Path) -> None:
    rows = (("Ada: Hi", "a"), (" \r\n", "b"))
    for name in ("train.json", "val.json", "test.json"):
        task = write(tmp_path, name, *rows)
    train = task.load("train")
    assert (len(train.rows), train.dropped) == (1, {"empty dialogue": 1})
    for split in ("validation", "test"):
        read = task.load(split)
        assert (len(read.rows), read.dropped) == (2, {})
        scores = task.score(read.rows, ["a", "b"])
        assert scores.values["rouge1"] == 1.0
        assert scores.notes == ("rows with an empty dialogue, scored like the others: 1",)


def test_errors_name_the_place(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text('[{"dialogue": "a", "summary": "b"},\n {"dialogue": "a"}]')
    task = SAMSum(path=str(tmp_path))
    with pytest.raises(DataError, match=r"train\.json, row 2: there is no column `summary`"):
        task.load("train")
    (tmp_path / "train.json").write_text('[{"dialogue": "a",\n "summary": }]')
    with pytest.raises(DataError, match=r"train\.json: not JSON \(.*line 2 column"):
        task.load("train")
    with pytest.raises(DataError, match=r"has no val\.json; it is in https://arxiv.*corpus\.7z"):
        task.load("validation")
    with pytest.raises(DataError, match=r"none is no folder; download https://arxiv.*corpus\.7z"):
        SAMSum(path=str(tmp_path / "none")).load("train")


def test_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fake(source: hub.HubSource) -> hub.HubSplit:
        asked.append(source)
        rows = [{"id": "1", "dialogue": None, "summary": "b"}, {"id": "2", "dialogue": "A: x", "summary": "c"}]
        return hub.HubSplit(rows, "c0ffee")

    monkeypatch.setattr(samsum, "load_split", fake)
    read = SAMSum().load("train")
    assert asked == [hub.HubSource("knkarthick/samsum", "train")]
    assert (read.rows, read.dropped, read.revision) == (
        [CompletionRow("A: x\n\n", " c")],
        {"empty dialogue": 1},
        "c0ffee",
    )


def test_hub_failure_names_the_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: hub.HubSource) -> hub.HubSplit:
        raise DataError("not reachable")

    monkeypatch.setattr(samsum, "load_split", fail)
    with pytest.raises(DataError, match=r"^not reachable. Or download https://arxiv.*corpus\.7z and set task\.path"):
        SAMSum().load("train")


# --- the task


def test_rows_of_one_dialogue_are_scored_each() -> None:
    rows = [CompletionRow("p", " red door"), CompletionRow("q", " a gate"), CompletionRow("p", " blue house")]
    scores = SAMSum().score(rows, ["red door", "a gate"])
    assert scores.values == pytest.approx(dict.fromkeys(("rouge1", "rouge2", "rougeL", "rougeLsum"), 2 / 3))
    assert scores.rows == 2 and scores.notes == ()


def test_an_empty_prediction_counts() -> None:
    rows = [CompletionRow("p", " red door"), CompletionRow("q", " a gate")]
    assert SAMSum().score(rows, ["", "a gate"]).values["rougeL"] == 0.5


def test_from_input() -> None:
    expected = CompletionRow("A: x\nB: y\n\n", None)
    assert SAMSum().from_input({"dialogue": "A: x\r\nB: y "}, "f:1") == expected
    assert SAMSum().from_input("A: x", "f:1") == CompletionRow("A: x\n\n", None)
    with pytest.raises(DataError, match="^f:1: unknown: text; the fields of this task are dialogue"):
        SAMSum().from_input({"text": "a"}, "f:1")


def test_sample() -> None:
    rows = SAMSum(template="{dialogue}!").sample(9, seed=1)
    assert len(rows) == 9 and rows == SAMSum(template="{dialogue}!").sample(9, seed=1) != SAMSum().sample(9, seed=2)
    for row in rows:
        assert isinstance(row, CompletionRow)
        assert row.prompt.endswith("!") and row.target is not None and row.target.startswith(" ")


def test_a_drafted_recipe_trains(tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    for name in ("train.json", "val.json"):
        write(tmp_path, name, ("Ada: Hi", "a"), ("Bo: Ho", "b"))
    drafted = draft(tmp_path, str(tiny("gpt2")), "samsum", None, Silent())
    (tmp_path / "r.yaml").write_text(drafted.text)
    recipe = load(tmp_path / "r.yaml")
    assert recipe.task == SAMSum(path=str(tmp_path), max_length=recipe.task.max_length)
    found = smoke(recipe, tmp_path / "scratch", tmp_path / "run", Silent())
    assert set(found["metrics"]["validation"]) == {"loss", "rouge1", "rouge2", "rougeL", "rougeLsum"}


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize(("split", "dropped"), [("train", 1), ("validation", 0), ("test", 0)])
def test_real_rows(split: str, dropped: int) -> None:
    task = SAMSum(path=str(SHARED))
    read = task.load(split)
    assert len(read.rows) + dropped == task.official_rows[split]
    assert sum(read.dropped.values()) == dropped
    for row in read.rows:
        assert isinstance(row, CompletionRow) and row.target is not None
        assert "\r" not in row.prompt + row.target and row.target[1:] == row.target.strip() != ""
    if split != "train":
        assert len(distinct_prompts(read.rows)) == len(read.rows)

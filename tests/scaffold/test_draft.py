"""`lorakit init`: from a file to a recipe that loads, passes `--smoke`, and reads its rows."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorakit.cli import main
from lorakit.errors import DataError, RecipeError
from lorakit.progress import Silent
from lorakit.recipe import Recipe, load
from lorakit.scaffold.draft import Draft, draft, save
from lorakit.smoke import smoke
from lorakit.tasks import TASKS, Custom
from lorakit.tasks.made_up import chat_rows, completion_rows, text_rows

Tiny = Callable[[str], Path]
DATA = Path(__file__).parents[2] / "../shared/data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is absent")
KINDS = ["classification", "pairs", "regression", "completion", "chat"]


def rows(kind: str, count: int = 24) -> list[dict[str, Any]]:
    """Made-up rows under names of columns that people use."""
    if kind == "chat":
        return [{"id": n, "messages": list(row.messages)} for n, row in enumerate(chat_rows(count, 1))]
    if kind == "completion":
        return [{"instruction": row.prompt, "output": row.target.strip()} for row in completion_rows(count, 1)]
    labels: Any = [0.25, 0.5, 0.75, 1.0] if kind == "regression" else [0, 1]
    found = text_rows(count, 1, labels, pair=kind == "pairs")
    if kind == "pairs":
        return [{"premise": r.text, "hypothesis": r.pair, "label": ("no", "yes")[r.label]} for r in found]
    name = "score" if kind == "regression" else "sentiment"
    return [{"review": row.text, name: row.label, "id": n} for n, row in enumerate(found)]


def write(file: Path, given: list[dict[str, Any]]) -> Path:
    """The rows in the format that the name's ending says."""
    if file.suffix in (".csv", ".tsv"):
        with file.open("w", newline="", encoding="utf-8") as opened:
            writer = csv.DictWriter(opened, list(given[0]), delimiter="," if file.suffix == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(given)
    elif file.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(given), file)
    elif file.suffix == ".json":
        file.write_text(json.dumps(given))
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in given))
    return file


def saved(drafted: Draft, folder: Path) -> Recipe:
    file = folder / f"{drafted.name}.yaml"
    save(drafted, file, overwrite=False)
    return load(file)


FAMILIES = {
    "classification": "roberta",
    "pairs": "roberta",
    "regression": "roberta",
    "completion": "llama",
    "chat": "llama",
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_loads_reads_its_rows_and_smokes(tmp_path: Path, kind: str) -> None:
    file = write(tmp_path / "my rows.jsonl", rows(kind))
    recipe = saved(draft(file, None), tmp_path)
    assert recipe.name == "my-rows"
    assert isinstance(recipe.task, Custom)
    assert recipe.task.data_kind == ("classification" if kind == "pairs" else kind)
    assert len(recipe.task.load("train").rows) + len(recipe.task.load("validation").rows) == 24
    assert smoke(recipe, tmp_path, tmp_path / "run", Silent())["steps"] == 2


@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_every_format(tmp_path: Path, ending: str) -> None:
    recipe = saved(draft(write(tmp_path / f"x.{ending}", rows("classification")), None), tmp_path)
    assert isinstance(recipe.task, Custom)
    assert recipe.task.columns == {"text": "review", "label": "sentiment"}
    assert recipe.task.label_names == ["0", "1"]


@pytest.mark.parametrize(
    ("given", "validation", "test"),
    [
        ("train.csv", "dev.csv", "test.csv"),
        ("train.csv", "validation.csv", None),
        ("x_train.csv", "x_val.csv", "x_test.csv"),
        ("x.csv", "x.valid.csv", "x-test.csv"),
        ("trainset.csv", "devset.csv", "testset.csv"),
        ("training.csv", None, None),
    ],
)
def test_files_beside(tmp_path: Path, given: str, validation: str | None, test: str | None) -> None:
    (tmp_path / "mine").mkdir()
    for name in ("unrelated.csv", given, validation, test):
        if name:
            write(tmp_path / "mine" / name, rows("classification"))
    task = saved(draft(tmp_path / "mine" / given, None), tmp_path).task
    assert isinstance(task, Custom)
    names = [None if path is None else Path(path).name for path in (task.validation, task.test)]
    assert names == [validation, test]
    assert (task.held_out is None) == (validation is not None)


def test_a_file_beside_without_the_columns_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / "test.csv", [{"review": "x"}])
    write(tmp_path / "dev.csv", [{"review": "x"}])
    drafted = draft(write(tmp_path / "train.csv", rows("classification")), None)
    task = saved(drafted, tmp_path).task
    assert isinstance(task, Custom) and (task.validation, task.held_out) == (None, 0.2)
    assert task.test == str(tmp_path / "test.csv")  # a test needs no labels
    assert drafted.notes == [f"{tmp_path}/dev.csv is not taken for validation: it has no column sentiment"]


def test_the_name_is_the_folders_where_the_files_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "reviews").mkdir()
    for name in ("train.csv", "data.csv"):
        assert draft(write(tmp_path / "reviews" / name, rows("classification")), None).name == "reviews"


def test_what_the_base_is_decides_the_method(tmp_path: Path, tiny: Tiny) -> None:
    file = write(tmp_path / "x.csv", rows("classification"))
    encoder = saved(draft(file, str(tiny("bert"))), tmp_path)
    (tmp_path / "x.yaml").unlink()
    decoder = saved(draft(file, str(tiny("llama"))), tmp_path)
    assert [encoder.method[0].targets, decoder.method[0].targets] == [["q", "v"], ["all-linear"]]
    assert [encoder.train.lr, decoder.train.lr] == [5e-4, 3e-4]
    assert "by an estimate" not in draft(file, str(tiny("bert"))).text  # its tokenizer is here
    with pytest.raises(RecipeError, match="is an encoder, and these rows need text to be generated"):
        draft(write(tmp_path / "y.jsonl", rows("chat")), str(tiny("bert")))


def test_other_scripts_get_another_base(tmp_path: Path) -> None:
    given = [{"text": f"giảng viên rất nhiệt tình {n}", "label": n % 2} for n in range(20)]
    assert saved(draft(write(tmp_path / "x.csv", given), None), tmp_path).model.base == "FacebookAI/xlm-roberta-base"
    chats = [{"prompt": f"giảng viên {n}", "target": f"nhiệt tình, thật ra tốt {n}"} for n in range(20)]
    notes = draft(write(tmp_path / "y.csv", chats), None).notes
    assert [note for note in notes if note.startswith("many letters are not English")]


def test_a_bad_row_is_said_before_anything_is_written(tmp_path: Path) -> None:
    given = rows("classification")
    given[5]["sentiment"] = None
    with pytest.raises(DataError, match=r"x.jsonl:6: `sentiment` must be a class"):
        draft(write(tmp_path / "x.jsonl", given), None)


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.has_rows and name != "custom"])
def test_built_in_tasks(tmp_path: Path, name: str) -> None:
    recipe = saved(draft(tmp_path, None, name), tmp_path)
    assert recipe.task.name == name
    assert recipe.task.model_dump().get("path") == str(tmp_path)


def test_choices_of_a_built_in_task() -> None:
    assert (
        "subset: mnli     # one of mnli, sst2, mrpc, cola, qnli, qqp, rte, stsb, wnli\n"
        in draft(None, None, "glue").text
    )


@pytest.mark.parametrize("kind", ["classification", "regression", "completion", "chat"])
def test_the_form_loads(tmp_path: Path, kind: Any) -> None:
    drafted = draft(None, None, kind=kind)
    recipe = saved(drafted, tmp_path)
    assert isinstance(recipe.task, Custom) and recipe.task.data_kind == kind
    assert "FILL IN" in drafted.text and "fill them in" in drafted.notes[0]


def test_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r'--task gleu: there is no such task; did you mean "glue"'):
        draft(None, None, "gleu")
    with pytest.raises(RecipeError, match="--kind: the task glue knows"):
        draft(None, None, "glue", "chat")
    with pytest.raises(RecipeError, match=r"is a folder; name a file in it, or say whose it is: --task glue"):
        draft(tmp_path, None)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as raised:
        main(["init", *arguments])
    return int(raised.value.code or 0)


def test_the_command(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "reviews.csv", rows("classification"))
    assert run("--data", "reviews.csv") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["column", "holds", "distinct", "absent", "example", "used", "as"]
    assert lines[1].startswith("review     text ") and lines[1].endswith(" text")
    assert lines[2].startswith("sentiment  whole numbers  2 ") and lines[2].endswith(" label")
    assert lines[3].startswith("id         whole numbers  24 ") and lines[3].endswith(" -")
    assert lines[-4:] == [
        "written: reviews.yaml; next:",
        "  lorakit plan reviews.yaml",
        "  lorakit train reviews.yaml --smoke",
        "  lorakit train reviews.yaml",
    ]
    written = Path("reviews.yaml").read_text()
    assert "# Columns not used: id.\n" in written

    assert run("--data", "reviews.csv", "--kind", "classification") == 2
    assert "is there already: choose another name with --out, or add --overwrite" in capsys.readouterr().err
    assert Path("reviews.yaml").read_text() == written
    assert run("--data", "reviews.csv", "--base", "openai-community/gpt2", "--overwrite") == 0
    assert load("reviews.yaml").model.base == "openai-community/gpt2"
    capsys.readouterr()

    assert run("--data", "reviews.csv", "--out", "-") == 0
    assert capsys.readouterr().out == written
    assert run("--task", "glue", "--out", "a b.yaml") == 2
    assert "name" in capsys.readouterr().err and not Path("a b.yaml").exists()


# --- real files


@needs_data
@pytest.mark.parametrize(
    ("name", "kind", "columns", "template", "splits"),
    [
        (
            "glue/MRPC/train.tsv",
            "classification",
            {"text": "#1 String", "pair": "#2 String", "label": "Quality"},
            None,
            (3668, 408, 1725),
        ),
        ("glue/SST-2/dev.tsv", "classification", {"text": "sentence", "label": "label"}, None, (785, 87)),
        (
            "glue/STS-B/train.tsv",
            "regression",
            {"text": "sentence1", "pair": "sentence2", "label": "score"},
            None,
            (5749, 1500, 1379),
        ),
        (
            "glue/RTE/train.tsv",
            "classification",
            {"text": "sentence1", "pair": "sentence2", "label": "label"},
            None,
            (2490, 277, 3000),
        ),
        ("samsum/train.json", "completion", {"target": "summary"}, "{dialogue}\n\n", (14732, 818, 819)),
        ("e2e/trainset.csv", "completion", {"target": "ref"}, "{mr}\n\n", (42061, 4672)),
    ],
)
def test_real_files(
    tmp_path: Path, name: str, kind: str, columns: dict[str, str], template: str | None, splits: tuple[int, ...]
) -> None:
    task = saved(draft(DATA / name, None), tmp_path).task
    assert isinstance(task, Custom)
    assert (task.data_kind, task.columns, task.template) == (kind, columns, template)
    assert tuple(len(task.load(split).rows) for split in task.splits) == splits

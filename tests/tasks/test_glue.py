from pathlib import Path

import pytest
from pydantic import ValidationError

from lorakit.data import hub
from lorakit.data.rows import TextRow
from lorakit.errors import DataError
from lorakit.tasks import glue
from lorakit.tasks.glue import CORPORA, Glue

DATA = Path(__file__).parents[2] / "../shared/data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is absent")


def write(folder: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8", newline="")
    return str(folder)


def load(folder: str, subset: str, split: str, **more: object):
    return Glue.model_validate({"name": "glue", "subset": subset, "path": folder, **more}).load(split)


# --- the layouts


def test_single_text(tmp_path: Path) -> None:
    folder = write(tmp_path, {"SST-2/dev.tsv": 'sentence\tlabel\na "fine film \t1\ndull\t0\n'})
    assert load(folder, "sst2", "validation").rows == [TextRow('a "fine film ', None, 1), TextRow("dull", None, 0)]


def test_cola_has_a_header_in_the_test_file_only(tmp_path: Path) -> None:
    files = {
        "CoLA/train.tsv": "x1\t1\t\tBirds fly.\nx1\t0\t*\tFly birds the.\n",
        "CoLA/test.tsv": "index\tsentence\n0\tWho?\n",
    }
    folder = write(tmp_path, files)
    assert load(folder, "cola", "train").rows == [TextRow("Birds fly.", None, 1), TextRow("Fly birds the.", None, 0)]
    assert load(folder, "cola", "test").rows == [TextRow("Who?")]


def test_mnli_files_classes_and_disagreement(tmp_path: Path) -> None:
    header = "index\tsentence1\tsentence2\tgold_label\n"
    files = {
        "MNLI/dev_matched.tsv": header + "0\ta\tb\tcontradiction\n1\tc\td\t-\n2\te\tf\tentailment\n",
        "MNLI/dev_mismatched.tsv": header + "0\tg\th\tneutral\n",
        "MNLI/test_matched.tsv": "index\tsentence1\tsentence2\n0\ti\tj\n",
        "MNLI/test_mismatched.tsv": "index\tsentence1\tsentence2\n0\tk\tl\n",
    }
    folder = write(tmp_path, files)
    split = load(folder, "mnli", "validation")
    assert split.rows == [TextRow("a", "b", 2), TextRow("e", "f", 0)]
    assert split.dropped == {"label -: the annotators did not agree": 1}
    assert load(folder, "mnli", "validation_mismatched").rows == [TextRow("g", "h", 1)]
    assert load(folder, "mnli", "test").rows == [TextRow("i", "j")]
    assert load(folder, "mnli", "test_mismatched").rows == [TextRow("k", "l")]


@pytest.mark.parametrize("name", ["diagnostic/diagnostic.tsv", "AX.tsv"])
def test_the_diagnostic_set_belongs_to_mnli(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path, {name: 'index\tsentence1\tsentence2\n0\ta\tb\n1\t"c\td\n'})
    assert load(folder, "mnli", "diagnostic").rows == [TextRow("a", "b"), TextRow('"c', "d")]
    assert len(load(folder, "mnli", "diagnostic", limit={"diagnostic": 1}).rows) == 1
    with pytest.raises(DataError, match="no split `diagnostic`"):
        load(folder, "rte", "diagnostic")


def test_missing_diagnostic_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"diagnostic.tsv: no such file \(and no AX.tsv in .*download it from glue"):
        load(str(tmp_path), "mnli", "diagnostic")


@pytest.mark.parametrize(("subset", "folder"), [("qnli", "QNLI"), ("rte", "RTE")])
def test_entailment_is_class_zero(tmp_path: Path, subset: str, folder: str) -> None:
    columns = "\t".join(CORPORA[subset].columns)
    text = f"index\t{columns}\tlabel\n0\ta\tb\tentailment\n1\tc\td\tnot_entailment\n"
    rows = load(write(tmp_path, {f"{folder}/train.tsv": text}), subset, "train").rows
    assert rows == [TextRow("a", "b", 0), TextRow("c", "d", 1)]


def test_stsb_has_numbers(tmp_path: Path) -> None:
    folder = write(tmp_path, {"STS-B/train.tsv": "index\tsentence1\tsentence2\tscore\n0\ta\tb\t3.800\n1\tc\td\t0\n"})
    assert load(folder, "stsb", "train").rows == [TextRow("a", "b", 3.8), TextRow("c", "d", 0.0)]
    assert Glue(subset="stsb").kind == "regression"


def test_qqp_drops_and_counts_its_broken_rows(tmp_path: Path) -> None:
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    text = header + "1\t1\t2\ta\tb\t1\n2\t1\t2\tcut\nhere\t0\n3\t5\t6\tc\td\t0\n"
    folder = write(tmp_path, {"QQP/train.tsv": text, "QQP/test.tsv": "id\tquestion1\tquestion2\n0\ta\n"})
    split = load(folder, "qqp", "train")
    assert split.rows == [TextRow("a", "b", 1), TextRow("c", "d", 0)]
    assert split.dropped == {"malformed row": 2}
    with pytest.raises(DataError, match="2 cells, but there are 3 columns"):
        load(folder, "qqp", "test")  # a submission needs every row


MRPC = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t10\t11\ta\tb\n0\t12\t13\tc\td\n1\t14\t15\te\tf\n"


def test_mrpc_from_the_original_files(tmp_path: Path) -> None:
    files = {
        "MRPC/msr_paraphrase_train.txt": "\ufeff" + MRPC,
        "MRPC/msr_paraphrase_test.txt": "\ufeff" + MRPC,
        "MRPC/dev_ids.tsv": "12\t13\n",
    }
    folder = write(tmp_path, files)
    assert load(folder, "mrpc", "train").rows == [TextRow("a", "b", 1), TextRow("e", "f", 1)]
    assert load(folder, "mrpc", "validation").rows == [TextRow("c", "d", 0)]
    assert load(folder, "mrpc", "test").rows == [TextRow("a", "b"), TextRow("c", "d"), TextRow("e", "f")]


def test_mrpc_original_files_need_the_list_of_held_out_pairs(tmp_path: Path) -> None:
    folder = write(tmp_path, {"MRPC/msr_paraphrase_train.txt": MRPC})
    with pytest.raises(DataError, match="dev_ids.tsv: cannot be read"):
        load(folder, "mrpc", "train")


def test_limit(tmp_path: Path) -> None:
    folder = write(tmp_path, {"SST-2/train.tsv": "sentence\tlabel\na\t1\nb\t0\nc\t5\n"})
    assert len(load(folder, "sst2", "train", limit={"train": 2}).rows) == 2


# --- what is wrong with a file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sentence\tlabel\na\t1\nb\t2\n", 'train.tsv:3: `label` must be one of 0, 1, but is "2"'),
        ("sentence\tlabel\na\t1\tx\n", "train.tsv:2: 3 cells, but there are 2 columns: sentence, label"),
        ("text\tlabel\na\t1\n", "train.tsv:2: there is no column `sentence`. Columns here: text, label."),
        ("sentence\tlabel\n", "train.tsv: there are no rows in this file"),
        ("", "train.tsv: there are no rows in this file"),
    ],
)
def test_malformed_files(tmp_path: Path, text: str, message: str) -> None:
    folder = write(tmp_path, {"SST-2/train.tsv": text})
    with pytest.raises(DataError) as caught:
        load(folder, "sst2", "train")
    assert str(caught.value) == f"{folder}/SST-2/{message}"


def test_mnli_label_outside_the_set(tmp_path: Path) -> None:
    folder = write(tmp_path, {"MNLI/train.tsv": "sentence1\tsentence2\tgold_label\na\tb\tmaybe\n"})
    with pytest.raises(DataError, match=r"train.tsv:2: .* one of entailment, neutral, contradiction, but is \"maybe\""):
        load(folder, "mnli", "train")


@pytest.mark.parametrize("score", ["5.1", "-0.5", "high", "nan"])
def test_stsb_score_outside_zero_to_five(tmp_path: Path, score: str) -> None:
    folder = write(tmp_path, {"STS-B/train.tsv": f"sentence1\tsentence2\tscore\na\tb\t{score}\n"})
    with pytest.raises(DataError, match="train.tsv:2: `score` must be"):
        load(folder, "stsb", "train")


def test_missing_folder_and_the_inner_folder_given(tmp_path: Path) -> None:
    folder = write(tmp_path, {"SST-2/train.tsv": "sentence\tlabel\na\t1\n"})
    with pytest.raises(DataError, match="has no folder CoLA$"):
        load(folder, "cola", "train")
    with pytest.raises(DataError, match=f"has no folder SST-2; give its parent, {folder}$"):
        load(f"{folder}/SST-2", "sst2", "train")


def test_missing_file(tmp_path: Path) -> None:
    folder = write(tmp_path, {"MRPC/x": "", "SST-2/x": ""})
    with pytest.raises(DataError, match=r"MRPC/dev.tsv: no such file \(and no msr_paraphrase_train.txt beside it\)"):
        load(folder, "mrpc", "validation")
    with pytest.raises(DataError, match="SST-2/dev.tsv: cannot be read: No such file"):
        load(folder, "sst2", "validation")


def test_unknown_subset() -> None:
    with pytest.raises(ValidationError, match="'mnli', 'sst2'"):
        Glue.model_validate({"name": "glue", "subset": "snli"})


# --- the hub


@pytest.mark.parametrize(
    ("subset", "split", "there", "cells", "row"),
    [
        (
            "mnli",
            "validation",
            "validation_matched",
            {"premise": "a", "hypothesis": "b", "label": 2},
            TextRow("a", "b", 2),
        ),
        (
            "mnli",
            "validation_mismatched",
            "validation_mismatched",
            {"premise": "a", "hypothesis": "b", "label": 0},
            TextRow("a", "b", 0),
        ),
        ("mnli", "test", "test_matched", {"premise": "a", "hypothesis": "b", "label": -1}, TextRow("a", "b")),
        ("mnli", "diagnostic", "test", {"premise": "a", "hypothesis": "b", "label": -1}, TextRow("a", "b")),
        ("qqp", "train", "train", {"question1": "a", "question2": "b", "label": 1}, TextRow("a", "b", 1)),
        ("cola", "train", "train", {"sentence": "a", "label": 1}, TextRow("a", None, 1)),
        (
            "stsb",
            "validation",
            "validation",
            {"sentence1": "a", "sentence2": "b", "label": 2.5},
            TextRow("a", "b", 2.5),
        ),
        ("stsb", "test", "test", {"sentence1": "a", "sentence2": "b", "label": -1.0}, TextRow("a", "b")),
    ],
)
def test_hub_columns_and_splits(monkeypatch, subset, split, there, cells, row) -> None:
    asked = []
    config = "ax" if split == "diagnostic" else subset

    def fake(source: hub.HubSource) -> hub.HubSplit:
        asked.append(source)
        return hub.HubSplit([{**cells, "idx": 0}], "c0ffee")

    monkeypatch.setattr(glue, "load_split", fake)
    read = Glue(subset=subset).load(split)
    assert asked == [hub.HubSource("nyu-mll/glue", there, config)]
    assert read.rows == [row] and read.revision == "c0ffee"


# --- submission files


@pytest.mark.parametrize(
    ("subset", "names"),
    [
        ("cola", ["CoLA.tsv"]),
        ("sst2", ["SST-2.tsv"]),
        ("mrpc", ["MRPC.tsv"]),
        ("stsb", ["STS-B.tsv"]),
        ("qqp", ["QQP.tsv"]),
        ("mnli", ["MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv"]),
        ("qnli", ["QNLI.tsv"]),
        ("rte", ["RTE.tsv"]),
        ("wnli", ["WNLI.tsv"]),
    ],
)
def test_submission_names(subset: str, names: list[str]) -> None:
    task = Glue.model_validate({"name": "glue", "subset": subset})
    assert [task.submission_name(split) for split in task.submission_splits("test")] == names
    for split in ("train", "validation", "nonsense"):
        with pytest.raises(DataError, match="test splits only"):
            task.submission_name(split)


@pytest.mark.parametrize(
    ("subset", "predictions", "lines"),
    [
        ("mnli", [2, 0, 1], ["0\tcontradiction", "1\tentailment", "2\tneutral"]),
        ("rte", [1, 0], ["0\tnot_entailment", "1\tentailment"]),
        ("sst2", [1, 0], ["0\t1", "1\t0"]),
        ("wnli", [0], ["0\t0"]),
        ("stsb", [5.2, -1, 3.14159, 2], ["0\t5.000", "1\t0.000", "2\t3.142", "3\t2.000"]),
    ],
)
def test_submission_lines(subset: str, predictions: list[float], lines: list[str]) -> None:
    task = Glue.model_validate({"name": "glue", "subset": subset})
    assert task.submission_lines(predictions) == ["index\tprediction", *lines]


def test_submission_refuses_nan() -> None:
    with pytest.raises(DataError, match="predicted nan"):
        Glue(subset="stsb").submission_lines([float("nan")])


def test_a_submission_needs_every_row() -> None:
    task = Glue(subset="cola")
    assert task.incomplete("test", 1063) is None
    assert task.incomplete("validation", 7) is None
    with pytest.raises(DataError, match=r"1,062 rows, but the official file has 1,063.*task.limit=\{test: 1062\}"):
        task.incomplete("test", 1062)
    limited = Glue(subset="mnli", limit={"diagnostic": 5})
    assert limited.incomplete("diagnostic", 5) == (
        "AX.tsv: task.limit leaves 5 of 1,104 rows, so this is no valid submission"
    )
    with pytest.raises(DataError, match="has 5 rows, but the official file has 9,796"):
        limited.incomplete("test", 5)


# --- made-up rows


@pytest.mark.parametrize("subset", list(CORPORA))
def test_sample(subset: str) -> None:
    task = Glue.model_validate({"name": "glue", "subset": subset})
    rows = task.sample(24, seed=3)
    assert rows == task.sample(24, seed=3) != task.sample(24, seed=4)
    labels = {row.label for row in rows}
    assert labels == (set(map(float, range(6))) if subset == "stsb" else set(range(len(task.labels))))
    assert all((row.pair is not None) == (len(task.corpus.columns) == 2) for row in rows)


# --- the real files


COUNTS = {
    "cola": (8551, 1043, 1063),
    "sst2": (67349, 872, 1821),
    "mrpc": (3668, 408, 1725),
    "stsb": (5749, 1500, 1379),
    "rte": (2490, 277, 3000),
    "wnli": (635, 71, 146),
    "qnli": (320, 5463, 5463),
}


@needs_data
@pytest.mark.parametrize("subset", list(COUNTS))
def test_real_counts(subset: str) -> None:
    splits = [load(str(DATA / "glue"), subset, split) for split in ("train", "validation", "test")]
    assert tuple(len(split.rows) for split in splits) == COUNTS[subset]
    assert not any(split.dropped for split in splits)
    assert all(row.label is not None for split in splits[:2] for row in split.rows)
    assert all(row.label is None for row in splits[2].rows)
    assert all(row.text and row.pair != "" for split in splits for row in split.rows)


@needs_data
def test_real_diagnostic_set() -> None:
    rows = load(str(DATA / "glue"), "mnli", "diagnostic").rows
    assert Glue(subset="mnli").incomplete("diagnostic", len(rows)) is None
    assert rows[0] == TextRow("The cat sat on the mat.", "The cat did not sit on the mat.")
    assert all(row.text and row.pair and row.label is None for row in rows)


@needs_data
@pytest.mark.parametrize(("subset", "count"), [("mnli", 480), ("qqp", 320)])
def test_real_training_slices(subset: str, count: int) -> None:
    rows = load(str(DATA / "glue"), subset, "train").rows
    share = {label: sum(row.label == label for row in rows) for label in {row.label for row in rows}}
    assert len(rows) == count and set(share.values()) == {count // len(CORPORA[subset].labels)}


@needs_data
@pytest.mark.parametrize(
    ("subset", "split"), [("mnli", "validation"), ("mnli", "validation_mismatched"), ("qqp", "validation")]
)
def test_real_layouts(subset: str, split: str) -> None:
    read = load(str(DATA / "glue_layout_samples"), subset, split)
    assert len(read.rows) == 2 and not read.dropped
    assert all(row.label in (0, 1, 2) and not row.text.startswith("(") for row in read.rows)


@needs_data
def test_real_mrpc_division_is_that_of_glue(tmp_path: Path) -> None:
    (tmp_path / "MRPC").mkdir()
    for name in ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt", "dev_ids.tsv"):
        (tmp_path / "MRPC" / name).symlink_to((DATA / "glue/MRPC" / name).resolve())
    for split in ("train", "validation", "test"):
        assert load(str(tmp_path), "mrpc", split).rows == load(str(DATA / "glue"), "mrpc", split).rows

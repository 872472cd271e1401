import math
from pathlib import Path

import pytest

from lorakit.errors import DataError, RecipeError
from lorakit.scoring.base import Files
from lorakit.scoring.glue import score
from lorakit.tasks.glue_corpora import CORPORA

SHARED = Path(__file__).parents[2] / "../shared/data/glue"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data/glue is absent")
SST2 = "sentence\tlabel\na fine day \t1\nno\t0\nyes\t1\nwell\t0\n"
MNLI = "index\tsentence1\tsentence2\tgold_label\n" + "".join(
    f"{n}\ta\tb\t{label}\n" for n, label in enumerate(("neutral", "-", "entailment", "contradiction"))
)


def write(folder: Path, subset: str, dev: str, labels: list[object] | str) -> Files:
    (folder / "dev.tsv").write_text(dev)
    lines = labels if isinstance(labels, str) else "".join(f"{n}\t{label}\n" for n, label in enumerate(labels))
    (folder / "said.tsv").write_text(f"index\tprediction\n{lines}")
    return Files(folder / "said.tsv", folder / "dev.tsv", subset)


def test_classes(tmp_path: Path) -> None:
    scores = score(write(tmp_path, "sst2", SST2, [1, 0, 0, 0]))
    assert (scores.values, scores.notes, scores.rows) == ({"accuracy": 0.75}, (), 4)


def test_cola_has_no_header(tmp_path: Path) -> None:
    dev = "x\t1\t\tGood .\nx\t0\t*\tBad \" .\nx\t1\t\tGood too .\nx\t0\t*\tBad too .\n"  # fmt: skip
    assert score(write(tmp_path, "cola", dev, [1, 0, 1, 0])).values == {"matthews": 1.0}
    assert score(write(tmp_path, "cola", dev, [1, 1, 1, 1])).values == {"matthews": 0.0}


def test_scores_are_numbers(tmp_path: Path) -> None:
    dev = "sentence1\tsentence2\tscore\na\tb\t0.0\nc\td\t2.5\ne\tf\t5.0\n"
    assert score(write(tmp_path, "stsb", dev, [0.5, "1.000", 5])).values["spearman"] == pytest.approx(1.0)
    assert math.isnan(score(write(tmp_path, "stsb", dev, [1, 1, 1])).values["pearson"])
    with pytest.raises(DataError, match=r'said\.tsv:3: `prediction` must be a number, but is "high"'):
        score(write(tmp_path, "stsb", dev, [1, "high", 1]))


def test_rows_without_agreement_take_a_prediction_that_is_not_scored(tmp_path: Path) -> None:
    scores = score(write(tmp_path, "mnli", MNLI, ["neutral", "neutral", "entailment", "neutral"]))
    assert (scores.values, scores.rows) == ({"accuracy": pytest.approx(2 / 3)}, 3)
    assert scores.notes == ("rows that are not scored: 1 (label -: the annotators did not agree)",)
    with pytest.raises(DataError, match=r"said\.tsv: 3 predictions, but .*dev\.tsv has 4 rows"):
        score(write(tmp_path, "mnli", MNLI, ["neutral", "entailment", "neutral"]))
    with pytest.raises(DataError, match=r"dev\.tsv: there is no row with a label"):
        score(write(tmp_path, "mnli", "\n".join([*MNLI.split("\n")[:1], "1\ta\tb\t-"]), ["neutral"]))


def test_broken_rows_of_qqp_are_no_rows(tmp_path: Path) -> None:
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
    dev = f"{header}\n1\t1\t2\ta\tb\t1\n2\t1\t2\ta broken\nb\t0\n3\t1\t2\tc\td\t0\n"
    scores = score(write(tmp_path, "qqp", dev, [1, 0]))
    assert scores.values == {"accuracy": 1.0, "f1": 1.0}
    assert scores.notes == ("malformed rows of the references, which take no prediction: 2",)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("0\t1\n1\tpositive\n", r'said\.tsv:3: `prediction` must be one of 0, 1, but is "positive"'),
        ("0\t1\n1\t\n", r'said\.tsv:3: `prediction` must be one of 0, 1, but is ""'),
        ("0\t1\n2\t1\n", r'said\.tsv:3: `index` must be 1, the number of the row counted from 0, but is "2"'),
        ("1\t1\n", r"said\.tsv:2: `index` must be 0"),
        ("0\t1\n1\n", r"said\.tsv:3: 1 cells, but the header has 2: index, prediction"),
        ("0\t1\n", r"said\.tsv: 1 predictions, but .*dev\.tsv has 4 rows"),
        ("".join(f"{n}\t1\n" for n in range(5)), r"said\.tsv: 5 predictions, but .*dev\.tsv has 4 rows"),
    ],
)
def test_bad_predictions(tmp_path: Path, lines: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        score(write(tmp_path, "sst2", SST2, lines))


def test_bad_references(tmp_path: Path) -> None:
    files = write(tmp_path, "sst2", SST2.replace("no\t0", "no\tbad"), [1])
    with pytest.raises(DataError, match=r'dev\.tsv:3: `label` must be one of 0, 1, but is "bad"'):
        score(files)
    files.predictions.write_text("0\t1\n1\t0\n")
    with pytest.raises(DataError, match=r"said\.tsv:2: there is no column `index`. Columns here: 0, 1"):
        score(files)


def test_the_subset_is_needed(tmp_path: Path) -> None:
    files = write(tmp_path, "sst2", SST2, [1])
    everything = ", ".join(CORPORA)
    with pytest.raises(RecipeError, match=f"^--subset is missing; choose from {everything}$"):
        score(Files(files.predictions, files.references))
    with pytest.raises(RecipeError, match=f"^--subset sst: there is no such subset; choose from {everything}$"):
        score(Files(files.predictions, files.references, "sst"))
    with pytest.raises(RecipeError, match="^--db: glue has no use for it$"):
        score(Files(files.predictions, files.references, "sst2", db=files.references))


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("subset", "rows"),
    [("cola", 1043), ("sst2", 872), ("mrpc", 408), ("stsb", 1500), ("rte", 277), ("qnli", 5463), ("wnli", 71)],
)
def test_real_labels_score_one(tmp_path: Path, subset: str, rows: int) -> None:
    corpus = CORPORA[subset]
    dev = SHARED / corpus.folder / "dev.tsv"
    lines = [line.split("\t") for line in dev.read_text(encoding="utf-8").removeprefix("\ufeff").splitlines()]
    column = 1 if subset == "cola" else lines.pop(0).index(corpus.label)
    said = tmp_path / "said.tsv"
    labels = [line[column] for line in lines]
    said.write_text("index\tprediction\n" + "".join(f"{n}\t{label}\n" for n, label in enumerate(labels)))
    scores = score(Files(said, dev, subset))
    assert scores.rows == rows
    assert scores.values == pytest.approx(dict.fromkeys(corpus.metrics, 1.0))

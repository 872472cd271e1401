import csv
import importlib.util
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lorakit.errors import DataError
from lorakit.metrics import LACKING, SLOW, coco
from lorakit.metrics.coco import Meteor, Tokenised, cider_of, open_meteor, rouge_l_of, tokenised

GOLDEN = Path(__file__).parents[2] / "../shared/golden/e2e"
SYSTEMS = ("example", "tgen_test", "slug_test")
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="../shared/golden/e2e is absent")
needs_package = pytest.mark.skipif(importlib.util.find_spec("pycocoevalcap") is None, reason="pip install lorakit[nlg]")
needs_java = pytest.mark.skipif(coco.lacking() is not None, reason=str(coco.lacking()))


def golden_tokens(name: str) -> Tokenised:
    tokens = json.loads((GOLDEN / f"tokenized/{name}.ptb.json").read_text(encoding="utf-8"))
    return Tokenised(tokens["refs"], [text[0] if isinstance(text, list) else text for text in tokens["sys"]])


def golden_values(name: str) -> dict[str, float]:
    expected = json.loads((GOLDEN / "expected.json").read_text())
    values = expected["example_inputs"]["exact"] if name == "example" else expected[f"{name}_exact"]
    return {metric: values[metric] for metric in ("METEOR", "ROUGE_L", "CIDEr")}


def golden_segments(name: str, metric: str) -> list[float]:
    with (GOLDEN / f"{name}.segments.tsv").open(encoding="utf-8", newline="") as file:
        return [float(row[metric]) for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]


# --- without Java


@needs_golden
@needs_package
@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize(("metric", "of"), [("ROUGE_L", rouge_l_of), ("CIDEr", cider_of)])
def test_official_values_of_official_tokens(name: str, metric: str, of: Any) -> None:
    score, segments = of(golden_tokens(name))
    assert score == pytest.approx(golden_values(name)[metric], abs=1e-9)
    assert segments == pytest.approx(golden_segments(name, metric), abs=5.1e-5)


@needs_package
def test_texts_without_words() -> None:
    corpus = Tokenised([["a dog runs"], ["a cat"], ["x"]], ["a dog runs", "", "y"])
    assert rouge_l_of(corpus)[1] == pytest.approx([1.0, 0.0, 0.0])
    assert cider_of(corpus)[1][1:] == [0.0, 0.0] and cider_of(corpus)[1][0] > 0
    assert cider_of(Tokenised([[""], ["", ""]], ["a", ""])) == (0.0, [0.0, 0.0])


def test_what_is_lacking(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert set(LACKING) == SLOW == {"meteor", "rouge_l", "cider"}
    monkeypatch.setattr(coco, "_folder", lambda: tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert {reason() for reason in LACKING.values()} == {"java not found: install a Java runtime (8 or newer)"}
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert coco.lacking() is None
    monkeypatch.undo()
    monkeypatch.setattr(coco, "find_spec", lambda name: None)
    assert coco.lacking() == "pip install 'lorakit[nlg]'"
    with pytest.raises(DataError, match=r"^METEOR, ROUGE-L and CIDEr: pip install"), open_meteor():
        pass


@pytest.fixture
def fake_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A `java` whose lines of shell a test writes."""
    file = tmp_path / "bin/java"
    file.parent.mkdir()
    file.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(file.parent), prepend=":")
    monkeypatch.setattr(coco, "_folder", lambda: tmp_path)
    coco._tokenised.cache_clear()
    yield file
    coco._tokenised.cache_clear()


@needs_package
def test_a_tokenizer_that_fails(fake_java: Path) -> None:
    fake_java.write_text("#!/bin/sh\ncat > /dev/null\necho one\necho two >&2\necho ' ' >&2\necho three >&2\nexit 0\n")
    with pytest.raises(DataError, match="^java: the PTB tokenizer failed: 1 lines for 2 texts; it says: two / three$"):
        tokenised([["a"]], ["b"])
    fake_java.write_text("#!/bin/sh\ncat > /dev/null\necho one\necho two\nexit 3\n")
    with pytest.raises(DataError, match="^java: the PTB tokenizer failed: 2 lines for 2 texts$"):
        tokenised([["a"]], ["b"])


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'no memory' >&2; exit 1", r"METEOR failed: .*; it says: no memory$"),
        ("read line; echo 'Error: not so'; cat", "METEOR failed: Error: not so$"),
        ("read line; echo 1 2; read line; echo 0.5", "METEOR failed: it ended$"),
    ],
)
def test_a_meteor_that_fails(fake_java: Path, script: str, message: str) -> None:
    fake_java.write_text(f"#!/bin/sh\n{script}\n")
    with pytest.raises(DataError, match=message), open_meteor() as program:
        program.score(Tokenised([["a"]], ["b"]))
    assert program._process.returncode is not None, "no process is left"


def test_a_meteor_that_has_ended(fake_java: Path) -> None:
    fake_java.write_text("#!/bin/sh\necho 'no memory' >&2\n")
    with pytest.raises(DataError, match=r"^java: METEOR failed: .*Broken pipe; it says: no memory$"):  # noqa: SIM117
        with open_meteor() as program:
            program._process.wait()
            program.score(Tokenised([["a"]], ["b"]))


def test_an_error_ends_meteor(fake_java: Path) -> None:
    fake_java.write_text("#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(KeyboardInterrupt), open_meteor() as program:
        raise KeyboardInterrupt
    assert program._process.returncode == -9


# --- the tokenizer


@needs_java
def test_tokens_of_difficult_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setenv("LC_CTYPE", "tr_TR.UTF-8")
    references = [["The Café's £20 INN!"], ["one\r\ntwo\u2028three\x0bfour\x0cfive", ""], ["  ...  "]]
    found = tokenised(references, ["", "a ||| b\rc", "x\ud800y"])
    assert found.references == [["the café 's # 20 inn"], ["one two three four five", ""], [""]]
    assert found.predictions[:2] == ["", "a | | | b c"]
    assert len(found.predictions) == 3


@needs_java
@needs_golden
def test_official_tokens() -> None:
    lines = (GOLDEN / "example-inputs/devel-conc.txt").read_text(encoding="utf-8").strip()
    outputs = (GOLDEN / "example-inputs/baseline-output.txt").read_text(encoding="utf-8").splitlines()
    assert tokenised([block.split("\n") for block in lines.split("\n\n")], outputs) == golden_tokens("example")


@needs_java
def test_the_metrics_tokenise_once_and_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written into the package's folder, which may be read-only, or shared by tests that run at once."""
    folder = coco._folder()
    assert folder is not None
    files = sorted(folder.rglob("*"))
    calls = []
    real = coco._ptb_lines

    def counted(texts: Any) -> list[str]:
        calls.append(len(texts))
        return real(texts)

    monkeypatch.setattr(coco, "_ptb_lines", counted)
    references, predictions = [["a red door"], ["a blue gate"]], ["a red door", "no gate"]
    assert coco.rouge_l(references, predictions) > 0
    assert coco.cider(references, predictions) > 0
    assert calls == [4]
    with ThreadPoolExecutor(3) as pool:
        corpora = [([[f"Number {n}."]] * 50, [f"number {n}"] * 50) for n in range(3)]
        for n, found in enumerate(pool.map(lambda corpus: tokenised(*corpus), corpora)):
            assert found.references == [[f"number {n}"]] * 50 and found.predictions == [f"number {n}"] * 50
    assert [path for path in sorted(folder.rglob("*")) if "__pycache__" not in path.parts] == [
        path for path in files if "__pycache__" not in path.parts
    ]


# --- METEOR, which is started once


@pytest.fixture(scope="module")
def program() -> Iterator[Meteor]:
    with open_meteor() as started:
        yield started
    assert started._process.returncode == 0, "METEOR has ended, and its process was waited for"


@needs_java
@needs_golden
def test_official_meteor(program: Meteor) -> None:
    """Of the two large systems, the `score` command is tested."""
    score, segments = program.score(golden_tokens("example"))
    assert score == pytest.approx(golden_values("example")["METEOR"], abs=1e-12)
    assert segments == pytest.approx(golden_segments("example", "METEOR"), abs=5.1e-5)


@needs_java
def test_meteor_of_difficult_texts(program: Meteor) -> None:
    plain = Tokenised([["the cat sat", "a cat"], ["the dog ran"]], ["the cat sat", "the dog ran"])
    assert program.score(plain) == (1.0, [1.0, 1.0])
    more = Tokenised(
        [*plain.references, ["x y"], ["", "z"], ["a|||b ||| c"]], [*plain.predictions, "", "z", "ab  c|||"]
    )
    score, segments = program.score(more)
    assert segments == pytest.approx([1.0, 1.0, 0.0, 1.0, 1.0], abs=1e-3)
    assert 0.5 < score < 1.0, "the empty prediction counts"
    accents = Tokenised([["café crème"], ["ein fluß"]], ["cafe creme", "ein fluß"])
    assert program.score(accents)[1][1] == 1.0


@needs_java
def test_the_metric_is_the_programs(program: Meteor, monkeypatch: pytest.MonkeyPatch) -> None:
    class Opened:
        def __enter__(self) -> Meteor:
            return program

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(coco, "open_meteor", Opened)
    references, predictions = [["The cat sat."], ["A dog, too!"]], ["the cat SAT", ""]
    assert coco.meteor(references, predictions) == program.score(tokenised(references, predictions))[0]

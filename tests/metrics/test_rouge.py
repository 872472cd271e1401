import json
from pathlib import Path

import pytest

from lorakit.metrics import TEXT_METRICS
from lorakit.metrics.rouge import KINDS, rouge

GOLDEN = Path(__file__).parents[2] / "../shared/golden/rouge"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="../shared/golden/rouge is absent")
MICRO = {
    ("rouge1", "testing one two", "testing"): (1, 1 / 3, 0.5),
    ("rouge2", "testing one two", "testing one"): (1, 0.5, 2 / 3),
    ("rougeL", "testing one two", "testing two"): (1, 2 / 3, 0.8),
    ("rougeLsum", "w1 w2 w3 w4 w5", "w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5"): (0.4, 0.8, 0.5333),
}
"""By hand; the last is the example of Lin 2004, section 3.2."""


def texts(name: str) -> list[str]:
    return (GOLDEN / f"testdata/{name}").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(("kind", "reference", "prediction"), MICRO)
def test_by_hand(kind: str, reference: str, prediction: str) -> None:
    expected = MICRO[kind, reference, prediction]
    assert rouge(kind, [[reference]], [prediction]) == pytest.approx(expected, abs=5e-5)


def test_the_metrics_are_f1_with_stems() -> None:
    assert rouge("rouge1", [["two dogs running"]], ["a dog runs"], stem=False).f1 == 0.0
    for kind in ("rouge1", "rougeL", "rougeLsum"):
        assert TEXT_METRICS[kind]([["two dogs running"]], ["a dog runs"]) == pytest.approx(2 / 3)
    assert TEXT_METRICS["rouge2"]([["two dogs running"]], ["a dog runs"]) == pytest.approx(1 / 2)


def test_every_reference_makes_a_pair() -> None:
    assert TEXT_METRICS["rouge1"]([["a b", "c d"], ["e f"]], ["a b", "e f"]) == pytest.approx((1 + 0 + 1) / 3)


def test_lines_are_sentences_for_one_of_the_two_alone() -> None:
    reference, prediction = "The cook left.\nThe guests stayed.", "The guests stayed.\nThe cook left."
    long, lines = (rouge(kind, [[reference]], [prediction]).f1 for kind in ("rougeL", "rougeLsum"))
    assert long == pytest.approx(1 / 2) and lines == 1.0
    spaced = reference.replace("\n", " "), prediction.replace("\n", " ")
    assert rouge("rougeL", [[spaced[0]]], [spaced[1]]) == rouge("rougeLsum", [[spaced[0]]], [spaced[1]])


@pytest.mark.parametrize("kind", KINDS)
def test_empty_texts_score_zero(kind: str) -> None:
    assert TEXT_METRICS[kind]([["a b c"], ["…"]], ["", "a"]) == 0.0


@needs_golden
@pytest.mark.parametrize(
    ("kind", "stem"),
    [("rouge1", False), ("rouge1", True), ("rouge2", False), ("rouge2", True), ("rougeL", False)],
)
def test_values_of_the_perl_script(kind: str, stem: bool) -> None:
    expected = json.loads((GOLDEN / "expected.json").read_text())["google_testdata"][kind]
    pairs = list(zip(texts("target.txt"), texts("prediction.txt"), strict=True))
    found = [rouge(kind, [[target]], [prediction], stem=stem) for target, prediction in pairs]
    for values, golden in zip(found, expected["stem" if stem else "no_stem"], strict=True):
        assert tuple(values) == pytest.approx(golden, abs=5e-5 / 2 + 1e-5)
    means = rouge(kind, [[target] for target, _ in pairs], [prediction for _, prediction in pairs], stem=stem)
    assert tuple(means) == pytest.approx([sum(column) / len(pairs) for column in zip(*found, strict=True)])


@needs_golden
def test_value_of_the_perl_script_for_lines() -> None:
    expected = json.loads((GOLDEN / "expected.json").read_text())["google_testdata"]["rougeLsum_stem_multi0"]
    target, prediction = ("\n".join(texts(f"{name}_multi.0.txt")) for name in ("target", "prediction"))
    assert tuple(rouge("rougeLsum", [[target]], [prediction])) == pytest.approx(expected, abs=1e-5)

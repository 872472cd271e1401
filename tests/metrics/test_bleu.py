import json
import math
from pathlib import Path

import pytest

from lorakit.metrics.bleu import bleu

GOLDEN = Path(__file__).parents[2] / "../shared/golden/e2e"


def test_identical_texts_score_one() -> None:
    assert bleu([["the cat sat on the mat ."]], ["The cat sat on the mat."]) == pytest.approx(1.0)


def test_by_hand() -> None:
    # 1-grams 4/5, 2-grams 3/4, 3-grams 2/3, 4-grams 1/2; as long as the reference
    expected = math.exp(sum(math.log(p) for p in (4 / 5, 3 / 4, 2 / 3, 1 / 2)) / 4)
    assert bleu([["a b c d e"]], ["a b c d f"]) == pytest.approx(expected)


def test_short_output_is_penalised_against_the_closest_reference() -> None:
    # all n-grams hit; 4 tokens against references of 5 and 9: exp(1 - 5/4)
    assert bleu([["a b c d e", "a b c d e f g h i"]], ["a b c d"]) == pytest.approx(math.exp(1 - 5 / 4))


def test_number_of_references_may_differ() -> None:
    one, two = ["a b c d e"], ["p q r s t", "v w x y z"]
    assert bleu([one, two], ["a b c d e", "v w x y z"]) == pytest.approx(1.0)
    assert bleu([two, one], ["v w x y z", "a b c d e"]) == pytest.approx(1.0)


def test_empty_output_scores_zero() -> None:
    assert bleu([["a b c d e"]], [""]) == 0.0


def test_official_script_on_its_own_example() -> None:
    if not GOLDEN.is_dir():
        pytest.skip("../shared/golden is absent")
    expected = json.loads((GOLDEN / "expected.json").read_text())["example_inputs"]["python_mode_-p"]["BLEU"]
    blocks = (GOLDEN / "example-inputs/devel-conc.txt").read_text(encoding="utf-8").strip().split("\n\n")
    outputs = (GOLDEN / "example-inputs/baseline-output.txt").read_text(encoding="utf-8").strip().split("\n")
    assert bleu([block.split("\n") for block in blocks], outputs) == pytest.approx(expected, abs=1e-12)

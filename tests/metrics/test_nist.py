import json
import math
from itertools import zip_longest
from pathlib import Path

import pytest
from sacrebleu import corpus_bleu

from lorakit.metrics.nist import _penalty, _tokens, nist, nist_perl

GOLDEN = Path(__file__).parents[2] / "../shared/golden/e2e"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="../shared/golden/e2e is absent")
SYSTEMS = ("example", "tgen_test", "slug_test")
MADE_UP = (
    [
        ["The Élan serves 0 calories, well-known since 1,950.", "Élan: 0 calories & £20!"],
        ["A quiet bar by the river.", "By the river, there is a quiet bar (0 stars)."],
        ["It is 5-6 miles away."],
        ["Cheap food.", "Cheap food here.", "Food is cheap there."],
    ],
    ["The ÉLAN has 0 calories, 0 stars.", "", "it is 5-6 miles away", "Cheap food, by the river, here."],
)


def test_by_hand() -> None:
    # 2 words in the references, so log2(2 / 1) for each; the bigram tells nothing beyond its first word
    assert nist([["a b"]], ["a b"]) == nist_perl([["a b"]], ["a b"]) == pytest.approx(1.0)
    # every word log2(3); two thirds of the reference's length: half of it
    assert nist([["a b c"]], ["a b"]) == pytest.approx(math.log2(3) / 2)


def test_what_is_rare_counts_more() -> None:
    references = [["the inn"], ["the bar"], ["the spa"]]
    assert nist(references, ["x inn", "x x", "x x"]) > nist(references, ["the x", "x x", "x x"])


def test_hits_are_clipped_by_the_reference_that_has_most() -> None:
    once, twice = nist([["a b", "c c"]], ["a a"]), nist([["a b", "c c"]], ["c c"])
    assert once == pytest.approx(math.log2(4 / 1) / 2)  # one of two a
    assert twice > math.log2(4 / 2) - 1e-9  # both c, and the bigram


def test_the_two_differ_in_the_reference_length() -> None:
    # means 2 and (6 + 6) / 2 = 6, together 8; all 14 tokens, times 2 texts, by 3 references: 9.33
    references, texts = [["a b"], ["c d e f g h", "i j k l m n"]], ["a b", "c d e f g h"]
    assert nist(references, texts) > nist_perl(references, texts)
    ratio = nist_perl(references, texts) / nist(references, texts)
    assert ratio == pytest.approx(math.exp(math.log(0.5) / math.log(1.5) ** 2 * math.log(8 / (28 / 3)) ** 2))


def test_nothing_said() -> None:
    assert nist([["a b c"], ["d"]], ["", ""]) == nist_perl([["a b c"], ["d"]], ["", ""]) == 0.0
    assert nist([["", "."]], [""]) >= 0.0
    assert nist_perl([["", ""]], ["a"]) == 0.0


def test_made_up_texts_as_both_official_scripts_score_them() -> None:
    """An empty text, texts of fewer than five tokens, capitals beyond ASCII, and the word that Perl takes for false."""
    assert nist(*MADE_UP) == pytest.approx(3.065281538275461, abs=1e-12)
    assert nist_perl(*MADE_UP) == pytest.approx(3.4734, abs=5e-5)


@needs_golden
@pytest.mark.parametrize("name", SYSTEMS)
def test_tokens_are_the_official_ones(name: str) -> None:
    golden = json.loads((GOLDEN / f"tokenized/{name}.mteval.json").read_text(encoding="utf-8"))
    for tokens in [*golden["sys"], *(tokens for several in golden["refs"] for tokens in several)]:
        assert _tokens(" ".join(tokens)) == [token.lower() for token in tokens]


@needs_golden
@pytest.mark.parametrize("name", SYSTEMS)
def test_official_values(name: str) -> None:
    golden = json.loads((GOLDEN / f"tokenized/{name}.mteval.json").read_text(encoding="utf-8"))
    expected = json.loads((GOLDEN / "expected.json").read_text())
    if name == "example":
        python, perl = expected["example_inputs"]["exact"]["NIST_py"], expected["example_inputs"]["nist_perl_formula"]
    else:
        python = expected[f"{name}_exact"]["NIST_py"]
        system = expected["systems_vs_testset_w_refs.csv"][name.replace("_test", ".tsv")]
        perl = system["nist_perl_formula"]
        assert perl == pytest.approx(system["perl_mode"]["NIST"], abs=5e-5)
    references = [[" ".join(tokens) for tokens in several] for several in golden["refs"]]
    predictions = [" ".join(tokens) for tokens in golden["sys"]]
    assert nist(references, predictions) == pytest.approx(python, abs=1e-9)
    assert nist_perl(references, predictions) == pytest.approx(perl, abs=1e-9)


@needs_golden
@pytest.mark.parametrize("name", SYSTEMS)
def test_the_counts_behind_the_official_values(name: str) -> None:
    """What BLEU and NIST divide: n-gram hits, lengths of texts and references, and the penalties of both modes."""
    golden = json.loads((GOLDEN / f"tokenized/{name}.mteval.json").read_text(encoding="utf-8"))
    expected = json.loads((GOLDEN / "expected.json").read_text())
    exact = expected["example_inputs"]["exact"] if name == "example" else expected[f"{name}_exact"]
    said, references = golden["sys"], golden["refs"]
    assert (len(said), sum(map(len, references))) == (exact["n"], exact["n_refs"])

    streams = [[" ".join(t) if t else None for t in stream] for stream in zip_longest(*references)]
    found = corpus_bleu([" ".join(tokens) for tokens in said], streams, lowercase=True, tokenize="none")
    assert (found.counts, found.totals) == (exact["bleu_hits"], exact["bleu_cand_lens"])
    assert found.ref_len == exact["bleu_ref_len"] and found.score / 100 == pytest.approx(exact["BLEU_py"], abs=1e-9)

    mean = sum(sum(map(len, several)) / len(several) for several in references)
    assert sum(map(len, said)) == exact["NIST_sys_len"]
    assert mean == pytest.approx(exact["NIST_avg_ref_len"], abs=1e-6)
    if name != "example":
        system = expected["systems_vs_testset_w_refs.csv"][name.replace("_test", ".tsv")]
        tokens = sum(len(tokens) for several in references for tokens in several)
        perl = tokens * len(said) / exact["n_refs"]
        assert (system["n_outputs"], system["n_refs"], system["sys_len"]) == (
            len(said),
            exact["n_refs"],
            exact["NIST_sys_len"],
        )
        assert _penalty(system["sys_len"], mean) == pytest.approx(system["nist_lp_python"], abs=1e-9)
        assert _penalty(system["sys_len"], perl) == pytest.approx(system["nist_lp_perl"], abs=1e-9)

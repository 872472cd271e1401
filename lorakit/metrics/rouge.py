"""ROUGE of generated texts (Lin 2004), by google-research's rouge-score, whose values are those of ROUGE-1.5.5.

Words are stemmed (Porter). `rougeL` takes a text as one sequence of words; `rougeLsum` takes its lines as sentences, so
the two are equal unless there are line breaks. No text is split into sentences here.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


class Rouge(NamedTuple):
    """Means over the pairs of a prediction and a reference, 0 to 1."""

    precision: float
    recall: float
    f1: float


def rouge(kind: str, references: Sequence[Sequence[str]], predictions: Sequence[str], *, stem: bool = True) -> Rouge:
    """Precision, recall and F1: of unigrams, bigrams, or longest common subsequences.

    Args:
        kind: One of `KINDS`.
        references: One or more per prediction; each makes a pair with it.
        predictions: The generated texts.
        stem: Reduce words to their stems first.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([kind], use_stemmer=stem)
    pairs = [(text, said) for several, said in zip(references, predictions, strict=True) for text in several]
    scores = [scorer.score(reference, said)[kind] for reference, said in pairs]
    return Rouge(*(fmean(column) for column in zip(*scores, strict=True)))


def rouge_f1(kind: str, references: Sequence[Sequence[str]], predictions: Sequence[str]) -> float:
    """F1 with stemming, as `rouge`."""
    return rouge(kind, references, predictions).f1

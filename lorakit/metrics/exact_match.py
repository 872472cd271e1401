"""Whether a generated text is a reference, word for word."""

from collections.abc import Sequence


def exact_match(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> float:
    """The share of predictions that equal one of their references, white space around both ignored, 0 to 1."""
    hits = [
        text.strip() in {reference.strip() for reference in several}
        for several, text in zip(references, predictions, strict=True)
    ]
    return sum(hits) / len(hits)

"""BLEU of generated texts, by sacrebleu."""

from collections.abc import Sequence
from itertools import zip_longest


def bleu(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> float:
    """Corpus BLEU, 0 to 1: case ignored, mteval-13a tokens, the reference of the closest length.

    This gives what the official E2E script (tuetschek/e2e-metrics) gives.

    Args:
        references: One or more per prediction; their number may differ.
        predictions: The generated texts.
    """
    from sacrebleu import corpus_bleu

    assert len(references) == len(predictions) and all(references), "every prediction needs a reference"
    streams = [list(stream) for stream in zip_longest(*references)]  # sacrebleu takes None where a reference is missing
    return float(corpus_bleu(list(predictions), streams, lowercase=True, tokenize="13a", force=True).score) / 100

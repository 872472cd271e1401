"""Official metrics by name: of labels, and of generated texts. Each module is one family."""

from collections.abc import Callable, Sequence

from lorakit.metrics.bleu import bleu
from lorakit.metrics.classification import accuracy, f1, f1_macro, f1_weighted, matthews
from lorakit.metrics.exact_match import exact_match
from lorakit.metrics.regression import pearson, spearman

LABEL_METRICS: dict[str, Callable[[Sequence[float], Sequence[float]], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "f1_macro": f1_macro,
    "f1_weighted": f1_weighted,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}
"""(labels, predictions) → value."""

TEXT_METRICS: dict[str, Callable[[Sequence[Sequence[str]], Sequence[str]], float]] = {
    "exact_match": exact_match,
    "bleu": bleu,
}
"""(references of each prediction, predictions) → value."""

LACKING: dict[str, Callable[[], str | None]] = {}
"""Metric → what tells why it cannot be computed on this machine; None where it can."""

SLOW: frozenset[str] = frozenset()
"""Metrics that take seconds to start, and are therefore not computed while a model trains."""

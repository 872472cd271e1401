"""Official metrics by name: of labels, and of generated texts. Each module is one family."""

from collections.abc import Callable, Sequence
from functools import partial

from lorakit.metrics import coco
from lorakit.metrics.bleu import bleu
from lorakit.metrics.classification import accuracy, f1, f1_macro, f1_weighted, matthews
from lorakit.metrics.exact_match import exact_match
from lorakit.metrics.nist import nist, nist_perl
from lorakit.metrics.regression import pearson, spearman
from lorakit.metrics.rouge import KINDS, rouge_f1

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
    "nist": nist,
    "nist_perl": nist_perl,
    "meteor": coco.meteor,
    "rouge_l": coco.rouge_l,
    "cider": coco.cider,
    **{kind: partial(rouge_f1, kind) for kind in KINDS},
}
"""(references of each prediction, predictions) → value."""

LACKING: dict[str, Callable[[], str | None]] = dict.fromkeys(("meteor", "rouge_l", "cider"), coco.lacking)
"""Metric → what tells why it cannot be computed on this machine; None where it can."""

SLOW: frozenset[str] = frozenset({"meteor", "rouge_l", "cider"})
"""Metrics that take seconds to start, and are therefore not computed while a model trains."""

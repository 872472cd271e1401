"""Correlations of predicted numbers, by scipy, and their errors. All take the labels first, then the predictions."""

import math
import warnings
from collections.abc import Sequence


def pearson(labels: Sequence[float], predictions: Sequence[float]) -> float:
    """Pearson's correlation, -1 to 1; nan where it is undefined: fewer than two rows, or either side constant."""
    from scipy.stats import pearsonr

    if _undefined(labels, predictions):
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns of nearly constant input, which is still defined
        return float(pearsonr(labels, predictions).statistic)


def spearman(labels: Sequence[float], predictions: Sequence[float]) -> float:
    """Spearman's rank correlation (ties share their mean rank), -1 to 1; nan where it is undefined, as `pearson`."""
    from scipy.stats import spearmanr

    if _undefined(labels, predictions):
        return math.nan
    return float(spearmanr(labels, predictions).statistic)


def _undefined(labels: Sequence[float], predictions: Sequence[float]) -> bool:
    finite = all(map(math.isfinite, predictions))
    return not finite or len(set(labels)) < 2 or len(set(predictions)) < 2


def residuals(labels: Sequence[float], predictions: Sequence[float]) -> dict[str, float]:
    """How far the predictions are from the labels, on the labels' own scale: one or more rows, all finite.

    Returns:
        `mean error` (above 0: predicted too much), `mean absolute error`, `root mean squared error`, `largest error`.
    """
    errors = [predicted - label for label, predicted in zip(labels, predictions, strict=True)]
    count = len(errors)
    return {
        "mean error": math.fsum(errors) / count,
        "mean absolute error": math.fsum(map(abs, errors)) / count,
        "root mean squared error": math.sqrt(math.fsum(error * error for error in errors) / count),
        "largest error": max(map(abs, errors)),
    }

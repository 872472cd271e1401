"""Metrics of predicted classes, by scikit-learn. All take class indices: the labels first, then the predictions."""

import math
from collections.abc import Sequence


def accuracy(labels: Sequence[float], predictions: Sequence[float]) -> float:
    """The share of predictions that equal their label, 0 to 1."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predictions))


def f1(labels: Sequence[float], predictions: Sequence[float]) -> float:
    """F1 of class 1 among classes 0 and 1, 0 to 1, as GLUE scores MRPC and QQP; 0 without a true positive."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, pos_label=1, average="binary", zero_division=0.0))


def f1_macro(labels: Sequence[float], predictions: Sequence[float]) -> float:
    """The unweighted mean of the F1 of every class that occurs in the labels or the predictions, 0 to 1."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="macro", zero_division=0.0))


def f1_weighted(labels: Sequence[float], predictions: Sequence[float]) -> float:
    """The mean of the classes' F1, each class weighted by its share of the labels, 0 to 1."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="weighted", zero_division=0.0))


def matthews(labels: Sequence[float], predictions: Sequence[float]) -> float:
    """Matthews' correlation, -1 to 1, as GLUE scores CoLA; 0 where either side is constant."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predictions))


def confusion(labels: Sequence[int], predictions: Sequence[int], classes: int) -> list[list[int]]:
    """How often each class was predicted as each: one row per label, one column per prediction.

    Args:
        labels: Class indices, at least one.
        predictions: As many.
        classes: Their number; some may not occur.
    """
    from sklearn.metrics import confusion_matrix

    matrix: list[list[int]] = confusion_matrix(labels, predictions, labels=range(classes)).tolist()
    return matrix


def per_class(labels: Sequence[int], predictions: Sequence[int], classes: int) -> list[tuple[float, float, float]]:
    """Precision, recall and F1 of every class, 0 to 1; nan where the definition divides by zero.

    Args:
        labels: Class indices, at least one.
        predictions: As many.
        classes: Their number; some may not occur.
    """
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(labels, predictions, labels=range(classes), zero_division=math.nan)[:3]
    return list(zip(*(column.tolist() for column in columns), strict=True))

"""Metrics of predicted classes, by scikit-learn. All take class indices: the labels first, then the predictions."""

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


def matthews(labels: Sequence[float], predictions: Sequence[float]) -> float:
    """Matthews' correlation, -1 to 1, as GLUE scores CoLA; 0 where either side is constant."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predictions))

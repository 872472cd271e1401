import math

import pytest

from lorakit.metrics import LABEL_METRICS
from lorakit.metrics.classification import accuracy, confusion, f1, f1_macro, f1_weighted, matthews, per_class

LABELS = [1, 1, 1, 0, 0, 0, 0, 1]
PREDICTIONS = [1, 1, 0, 0, 0, 1, 1, 0]
# true positives 2, false negatives 2, false positives 2, true negatives 2


def test_accuracy() -> None:
    assert accuracy([0, 1, 2, 2], [0, 1, 2, 0]) == 0.75


def test_f1_is_of_class_one() -> None:
    assert f1([1, 1, 1, 0, 0], [1, 1, 0, 1, 0]) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))


def test_f1_without_a_positive_prediction_is_zero_and_silent() -> None:
    assert f1([1, 0], [0, 0]) == 0.0


def test_f1_macro_weighs_classes_equally() -> None:
    # class 0: 3 hits of 3, one false alarm: 6/7; class 1: 1 hit of 2: 2/3
    assert f1_macro([0, 0, 0, 1, 1], [0, 0, 0, 0, 1]) == pytest.approx((6 / 7 + 2 / 3) / 2)


def test_f1_macro_counts_a_class_that_is_never_predicted() -> None:
    assert f1_macro([0, 0, 1], [0, 0, 0]) == pytest.approx((4 / 5 + 0) / 2)


def test_f1_weighted_weighs_classes_by_their_rows() -> None:
    assert f1_weighted([0, 0, 0, 1, 1], [0, 0, 0, 0, 1]) == pytest.approx((3 * 6 / 7 + 2 * 2 / 3) / 5)
    assert f1_weighted([0, 0, 1], [0, 0, 0]) == pytest.approx((2 * 4 / 5 + 0) / 3)


def test_matthews() -> None:
    assert matthews(LABELS, PREDICTIONS) == pytest.approx(0.0)
    # tp 3, tn 2, fp 1, fn 1
    expected = (3 * 2 - 1 * 1) / ((4 * 4 * 3 * 3) ** 0.5)
    assert matthews([1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0, 1]) == pytest.approx(expected)


def test_matthews_of_a_constant_is_zero_and_silent() -> None:
    assert matthews([0, 1, 1], [1, 1, 1]) == 0.0


@pytest.mark.parametrize("name", ["accuracy", "f1", "f1_macro", "f1_weighted", "matthews"])
def test_integers_and_whole_floats_score_alike(name: str) -> None:
    metric = LABEL_METRICS[name]
    assert metric(LABELS, PREDICTIONS) == metric(LABELS, [float(value) for value in PREDICTIONS])


def test_confusion_counts_labels_down_and_predictions_across() -> None:
    assert confusion([0, 0, 2, 2, 2], [0, 2, 2, 2, 0], 4) == [[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]]


def test_per_class_by_hand() -> None:
    never_predicted, predicted_only, absent = 2, 3, 4
    scores = per_class([0, 0, 0, 1, 2, 1], [0, 0, 1, 1, 0, 3], 5)
    assert scores[0] == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert scores[1] == pytest.approx((1 / 2, 1 / 2, 1 / 2))
    assert scores[never_predicted] == pytest.approx((math.nan, 0.0, 0.0), nan_ok=True)
    assert scores[predicted_only] == pytest.approx((0.0, math.nan, 0.0), nan_ok=True)
    assert scores[absent] == pytest.approx((math.nan, math.nan, math.nan), nan_ok=True)

import math

import pytest

from lorakit.metrics.regression import pearson, residuals, spearman


def test_pearson() -> None:
    # deviations (-1.5, -.5, .5, 1.5) and (-1.75, -.75, .25, 2.25): 6.5 / sqrt(5 * 8.75)
    assert pearson([1, 2, 3, 4], [0, 1, 2, 4]) == pytest.approx(6.5 / math.sqrt(5 * 8.75))


def test_pearson_ignores_scale_and_offset() -> None:
    assert pearson([1, 2, 3, 5], [10, 8, 6, 2]) == pytest.approx(-1.0)


def test_spearman_is_of_ranks() -> None:
    # ranks 1 2 3 4 against 1 3 2 4: 1 - 6 * 2 / (4 * 15)
    assert spearman([1, 2, 3, 4], [0.1, 50.0, 7.0, 1000.0]) == pytest.approx(0.8)


def test_spearman_gives_ties_their_mean_rank() -> None:
    # ranks 1, 2.5, 2.5 against 1, 2, 3: 1.5 / sqrt(1.5 * 2)
    assert spearman([1, 2, 2], [1, 2, 3]) == pytest.approx(1.5 / math.sqrt(3))


@pytest.mark.parametrize("metric", [pearson, spearman])
@pytest.mark.parametrize(
    ("labels", "predictions"),
    [([1, 2, 3], [2.0, 2.0, 2.0]), ([3, 3, 3], [1, 2, 3]), ([1], [2]), ([], []), ([1, 2, 3], [1, math.nan, 2])],
)
def test_undefined_is_nan_and_silent(metric, labels, predictions) -> None:
    assert math.isnan(metric(labels, predictions))


def test_nearly_constant_predictions_are_silent() -> None:
    assert -1 <= pearson([1, 2, 3], [1e8, 1e8, 1e8 + 1e-7]) <= 1


def test_residuals_by_hand() -> None:
    assert residuals([1.0, 2.0, 4.0], [2.0, 2.0, 1.0]) == pytest.approx(
        {
            "mean error": -2 / 3,
            "mean absolute error": 4 / 3,
            "root mean squared error": math.sqrt(10 / 3),
            "largest error": 3.0,
        }
    )

"""What the runs of a row measured, and whether that is the number that was reported."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lorakit.references import Paper
from lorakit.report.facts import RAW, on_paper_scale
from lorakit.trials.summary import lower_is_better

Verdict = Literal["inside", "above", "below", "failed", "not judged"]
_ROUNDING = 1e-9


def printed(metric: str, value: float) -> str:
    """A reported number with at least the decimals that the paper prints: 96.0, NIST 8.70."""
    least = 2 if metric in RAW else 1
    return f"{value:.{least}f}" if round(value, least) == value else f"{value:g}"


@dataclass(frozen=True)
class Judged:
    """A row with its verdict.

    Args:
        verdict: above is better than the tolerance, below is worse; of a loss too.
        why: In words.
        metrics: Metric → (statistic over the seeds, standard deviation of a sample), on the paper's scale.
    """

    verdict: Verdict
    why: str
    metrics: dict[str, tuple[float, float | None]]


def judge(
    contract: Paper, reported: Paper | None, values: Mapping[str, Sequence[float]], failures: Sequence[str]
) -> Judged:
    """Judge what was measured.

    Args:
        contract: Metric and statistic.
        reported: The row's number; None where there is none.
        values: Metric → the values of the seeds, as reports have them (0 to 1, NIST and CIDEr raw).
        failures: Why seeds failed; a row is never judged by the others alone.

    Returns:
        The verdict; of a row that failed without numbers.
    """
    metric = contract.metric
    if failures:
        return Judged("failed", "; ".join(failures), {})
    if reported and reported.unavailable:
        return Judged("not judged", f"not run: {reported.unavailable}", {})
    metrics = {name: summary(name, of_seeds, contract.statistic) for name, of_seeds in values.items()}
    if metric not in metrics or math.isnan(metrics[metric][0]):
        return Judged("failed", f"{metric} is undefined", metrics)
    if reported is None or reported.tolerance is None:
        lacking = "no number for this row" if reported is None else "no tolerance for it"
        return Judged("not judged", f"the recipe has {lacking}", metrics)
    gain = metrics[metric][0] - reported.value
    better, words = (-gain, ("lower", "higher")) if lower_is_better(metric) else (gain, ("higher", "lower"))
    near = f"{reported.value:g} ± {reported.tolerance:g}"
    if abs(gain) <= reported.tolerance + _ROUNDING:
        return Judged("inside", f"within {near}", metrics)
    verdict: Verdict = "above" if better > 0 else "below"
    far = f"{words[verdict == 'below']} than {near}, by {abs(gain) - reported.tolerance:.2f}"
    return Judged(verdict, f"{far}: {'better' if better > 0 else 'worse'}", metrics)


def summary(metric: str, values: Sequence[float], statistic: Literal["median", "mean"]) -> tuple[float, float | None]:
    """(median or mean, standard deviation of a sample) on the paper's scale; nan where a value is."""
    scaled = [on_paper_scale(metric, value) for value in values]
    if not scaled or any(map(math.isnan, scaled)):
        return math.nan, None
    middle = statistics.median(scaled) if statistic == "median" else statistics.mean(scaled)
    return middle, statistics.stdev(scaled) if len(scaled) > 1 else None

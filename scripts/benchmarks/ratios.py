"""The statistics: ratios of interleaved rounds, goals, and whether two loss curves are one."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """A number that was measured in rounds.

    Args:
        middle: The median.
        low: The smallest of a round.
        high: The largest of a round.
    """

    middle: float
    low: float
    high: float


def measured(values: Sequence[float]) -> Measured:
    """Median and spread of what the rounds gave."""
    return Measured(statistics.median(values), min(values), max(values))


def ratio(one: Sequence[float], other: Sequence[float]) -> Measured:
    """How many times `other` is `one`, round by round: a machine that slows down slows both of a round.

    Args:
        one: A number per round.
        other: The same of what it is compared with, in the same rounds.
    """
    return measured([a / b for a, b in zip(one, other, strict=True)])


def curve_difference(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest difference of two loss curves at a step, as a share of the larger of the two losses there.

    Infinite where a loss is no number, or the curves have not the same steps.
    """
    if len(one) != len(other) or not one:
        return float("inf")
    found = 0.0
    for a, b in zip(one, other, strict=True):
        if not (math.isfinite(a) and math.isfinite(b)):
            return float("inf")
        found = max(found, abs(a - b) / max(abs(a), abs(b), 1e-12))
    return found


@dataclass(frozen=True)
class Goal:
    """What a number should be; exactly one of the two is given.

    Args:
        least: Not less than this.
        most: Not more than this.
    """

    least: float | None = None
    most: float | None = None

    def met(self, value: float) -> bool:
        """Whether a number reaches it."""
        assert (self.least is None) != (self.most is None)
        return value >= self.least if self.least is not None else value <= (self.most or 0.0)


@dataclass(frozen=True)
class Line:
    """One row of the table of goals.

    Args:
        what: Was measured.
        against: What.
        value: The number, in `unit`.
        unit: "x" a ratio, "s" seconds, "%" a share, "GB" and "MB" bytes.
        goal: If there is one.
    """

    what: str
    against: str
    value: Measured
    unit: str = "x"
    goal: Goal | None = None

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None where there is none."""
        return None if self.goal is None else self.goal.met(self.value.middle)

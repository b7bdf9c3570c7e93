"""What runs with several seeds have in a column: mean, deviation and confidence interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from vlds.report.numbers import Interval

STUDENT_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045,
)  # fmt: skip
"""97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom."""
NORMAL = 1.960
"""That of the normal distribution, which t approaches."""


@dataclass(frozen=True)
class Number:
    """What the runs of a row have in a column."""

    values: Sequence[float]
    published: float | None = None

    @property
    def mean(self) -> float | None:
        """None if no run has a value."""
        return statistics.mean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the sample (n - 1); None for one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def interval(self) -> Interval | None:
        """95 % confidence interval of the mean (Student's t); None for one seed."""
        count = len(self.values)
        if count < 2:
            return None
        half = student_t(count - 1) * statistics.stdev(self.values) / math.sqrt(count)
        mean = statistics.mean(self.values)
        return Interval(mean - half, mean + half)


def student_t(freedom: int) -> float:
    """The 97.5 % quantile of Student's t; above the table by the first two terms of its expansion
    around the normal quantile (Abramowitz and Stegun, 26.7.5), right to three digits."""
    if freedom <= len(STUDENT_T):
        return STUDENT_T[freedom - 1]
    cubic = (NORMAL**3 + NORMAL) / 4
    quintic = (5 * NORMAL**5 + 16 * NORMAL**3 + 3 * NORMAL) / 96
    return NORMAL + cubic / freedom + quintic / freedom**2

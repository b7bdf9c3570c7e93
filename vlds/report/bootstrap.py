"""How far a score would move with other examples: percentile intervals of the bootstrap.

Examples are drawn anew, as many as there are and with replacement, and the score is computed on
each draw (Efron 1979, https://doi.org/10.1214/aos/1176344552); the interval holds the middle 95 %
of these scores. It tells of the examples, not of the seeds that a run was trained with. Draws
depend on the number of examples alone, so that two runs on the same examples meet the same draws,
and the interval of their difference is a paired one. CIDEr's draws keep the document frequencies of
all pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
"""(examples,) what each example adds to a mean; NaN for those that do not count."""

RESAMPLES = 1000
SEED = 0
PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True)
class Interval:
    """The middle 95 % of the resampled values."""

    low: float
    high: float


def interval_of_mean(values: Values, resamples: int = RESAMPLES) -> Interval:
    """Of the mean over the examples that count."""
    return percentiles(resampled_means(values, resamples))


def interval_of_difference(
    values: Values, baseline: Values, resamples: int = RESAMPLES
) -> Interval:
    """Of the mean of `values` less that of `baseline`, the same examples drawn for both."""
    assert len(values) == len(baseline)
    return percentiles(resampled_means(values, resamples) - resampled_means(baseline, resamples))


def resampled_means(values: Values, resamples: int) -> Values:
    """(resamples,) the mean of each draw; NaN where nothing in a draw counts."""
    rng = np.random.default_rng(SEED)
    counted = ~np.isnan(values)
    filled = np.where(counted, values, 0.0)
    means = np.empty(resamples)
    for number in range(resamples):
        drawn = rng.integers(0, len(values), len(values))
        counts = counted[drawn].sum()
        means[number] = filled[drawn].sum() / counts if counts else np.nan
    return means


def percentiles(means: Values) -> Interval:
    """The interval that these span."""
    low, high = np.nanpercentile(means, PERCENTILES)
    return Interval(float(low), float(high))

"""How far a score would move with other pictures: bootstrap percentile intervals.

A resample draws samples (a picture, a pair or a clip, each with all of its examples), as many as
there are and with replacement. Its score is the mean over the examples of what was drawn; the
interval holds the middle 95 % of these scores (Efron 1979, https://doi.org/10.1214/aos/1176344552;
Field and Welsh 2007, https://doi.org/10.1111/j.1467-9868.2007.00593.x). Questions about one picture
tend to be right or wrong together, so that resamples of single questions vary too little.

An interval covers the choice of samples, not of training seeds. Draws depend on the
number of samples alone: two runs on the same samples meet the same draws, and the interval of their
difference is a paired one. CIDEr's draws keep the document frequencies of all pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from vlds.report.numbers import Interval

Values = NDArray[np.float64]
"""(examples,) what each example adds to a mean; NaN for those that do not count."""
Groups = NDArray[np.int64]
"""(examples,) number of each example's sample, counted from 0 without gaps."""

RESAMPLES = 1000
SEED = 0
PERCENTILES = (2.5, 97.5)


def groups_of(samples: Iterable[str]) -> Groups:
    """Samples numbered in the order in which their first examples come."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in samples], np.int64)


def interval_of_mean(values: Values, groups: Groups, resamples: int = RESAMPLES) -> Interval:
    """Of the mean over the examples that count."""
    return percentiles(resampled_means([values], groups, resamples)[:, 0])


def interval_of_difference(
    values: Values, baseline: Values, groups: Groups, resamples: int = RESAMPLES
) -> Interval:
    """Of the mean of `values` less that of `baseline`, the same samples drawn for both."""
    means = resampled_means([values, baseline], groups, resamples)
    return percentiles(means[:, 0] - means[:, 1])


def resampled_means(columns: Sequence[Values], groups: Groups, resamples: int) -> Values:
    """(resamples, columns) the means of each draw; NaN where nothing in a draw counts."""
    num = int(groups.max()) + 1
    counted = [~np.isnan(values) for values in columns]
    sums = [
        np.bincount(groups, np.where(counts, values, 0.0), num)
        for values, counts in zip(columns, counted, strict=True)
    ]
    table = np.stack([*sums, *(np.bincount(groups, counts, num) for counts in counted)])
    rng = np.random.default_rng(SEED)
    totals = np.empty((resamples, len(table)))
    for index in range(resamples):
        times_drawn = np.bincount(rng.integers(0, num, num), minlength=num)
        totals[index] = table @ times_drawn.astype(np.float64)
    drawn_sums, drawn_counts = np.split(totals, 2, axis=1)
    return np.divide(
        drawn_sums, drawn_counts, out=np.full_like(drawn_sums, np.nan), where=drawn_counts > 0
    )


def percentiles(means: Values) -> Interval:
    """The interval that these span."""
    low, high = np.nanpercentile(means, PERCENTILES)
    return Interval(float(low), float(high))

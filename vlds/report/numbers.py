"""Numbers: as people read them (scores, bytes, ticks of an axis); bootstrap intervals of one run's
scores; and means over seeds, with the rule by which one row of a table is called the best."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlds.recipe.paths import STARTED_IN


@dataclass(frozen=True)
class Interval:
    """The middle 95 % of the resampled values."""

    low: float
    high: float


def score_text(value: float | None) -> str:
    """Three decimals; a dash where there is no score."""
    return "-" if value is None else f"{value:.3f}"


def interval_text(interval: Interval | None) -> str:
    """Both ends in brackets; "" where there is no interval."""
    return "" if interval is None else f"[{interval.low:.3f}, {interval.high:.3f}]"


def bytes_text(count: float) -> str:
    """Bytes in the unit that leaves at most four digits before the point."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:,.2f} TB"


def speed_text(speed: float) -> str:
    """Examples a second: whole ones where there are ten."""
    return f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers that span low..high in about `count` steps of 1, 2 or 5 times 10^n."""
    if not high > low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    # 1e-9: a division such as 0.3 / 0.1 may come out just above a whole number.
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(multiple * step, 12) for multiple in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers above 0 that span low..high: 1, 2 and 5 times 10^n, or powers of ten alone
    where there are many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if last - first <= 2 else (1,)
    stride = max(1, (last - first) // 6)
    marks = [
        factor * 10.0**power
        for power in range(first, last + stride + 1, stride)
        for factor in factors
    ]
    begin = max(index for index, mark in enumerate(marks) if mark <= low * (1 + 1e-9))
    end = min(index for index, mark in enumerate(marks) if mark >= high * (1 - 1e-9))
    return marks[begin : max(end, begin + 1) + 1]


def tick_text(value: float) -> str:
    """A tick's label without needless zeros; thousands as k, tiny ones as 5e-5."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    if 0 < abs(value) < 1e-3:
        digits, _, power = f"{value:.4e}".partition("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{value:g}"


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """Means of neighbours where there are more points than can be seen; only finite ones."""
    finite = [point for point in points if math.isfinite(point[1])]
    width = math.ceil(len(finite) / most) or 1
    groups = [finite[start : start + width] for start in range(0, len(finite), width)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]


# Bootstrap percentile intervals: how far a score would move with other pictures.
#
# A resample draws samples (a picture, a pair or a clip, each with all of its examples), as many as
# there are and with replacement. Its score is the mean over the examples of what was drawn; the
# interval holds the middle 95 % of these scores (Efron 1979,
# https://doi.org/10.1214/aos/1176344552; Field and Welsh 2007,
# https://doi.org/10.1111/j.1467-9868.2007.00593.x). Questions about one picture tend to be right or
# wrong together, so that resamples of single questions vary too little.
#
# An interval covers the choice of samples, not of training seeds. Draws depend on the number of
# samples alone: two runs on the same samples meet the same draws, and the interval of their
# difference is a paired one. CIDEr's draws keep the document frequencies of all pictures.

Values = NDArray[np.float64]
"""(examples,) what each example adds to a mean; NaN for those that do not count."""
Groups = NDArray[np.int64]
"""(examples,) number of each example's sample, counted from 0 without gaps."""

RESAMPLES = 1000
SEED = 0  # fixed, so that a report that is made again says the same
PERCENTILES = (2.5, 97.5)


def groups_of(samples: Iterable[str]) -> Groups:
    """Number the samples in the order in which their first examples come."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in samples], np.int64)


def interval_of_mean(values: Values, groups: Groups, resamples: int = RESAMPLES) -> Interval:
    """The interval of the mean over the examples that count."""
    return percentiles(resampled_means([values], groups, resamples)[:, 0])


def interval_of_difference(
    values: Values, baseline: Values, groups: Groups, resamples: int = RESAMPLES
) -> Interval:
    """The interval of the mean of `values` less that of `baseline`, the same samples drawn for
    both."""
    means = resampled_means([values, baseline], groups, resamples)
    return percentiles(means[:, 0] - means[:, 1])


def resampled_means(columns: Sequence[Values], groups: Groups, resamples: int) -> Values:
    """(resamples, columns) the means of each draw; NaN where nothing in a draw counts."""
    # Sums and counts of each sample come first: a draw then costs one product with the number of
    # times that each sample was drawn, however many examples it has.
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
    low, high = np.nanpercentile(means, PERCENTILES)
    return Interval(float(low), float(high))


# Runs that differ in their seed alone, and what such a group has in a column of a table.

SEED_KEYS = ("seed", "output", STARTED_IN)
"""Keys of the recipe in which runs may differ that count as seeds of one run."""
FEWEST_SEEDS = 3
"""That two rows share before one is called better: with two, an interval is six times as wide as
with three, and whether it holds 0 is mostly chance."""

STUDENT_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045,
)  # fmt: skip
"""97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom."""
NORMAL = 1.960
"""The same quantile of the normal distribution, which t approaches."""


@dataclass(frozen=True)
class Number:
    """The values that the runs of a row have in a column."""

    values: Sequence[float]
    published: float | None = None
    seeds: Sequence[str] = ()
    """The seed of each value's run."""

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
        freedom = count - 1
        if freedom <= len(STUDENT_T):
            quantile = STUDENT_T[freedom - 1]
        else:
            # The first two terms of t's expansion around the normal quantile (Abramowitz and
            # Stegun, 26.7.5) are right to three digits here.
            cubic = (NORMAL**3 + NORMAL) / 4
            quintic = (5 * NORMAL**5 + 16 * NORMAL**3 + 3 * NORMAL) / 96
            quantile = NORMAL + cubic / freedom + quintic / freedom**2
        half = quantile * statistics.stdev(self.values) / math.sqrt(count)
        mean = statistics.mean(self.values)
        return Interval(mean - half, mean + half)

    def is_above(self, other: Number) -> bool:
        """True if on common seeds, of which there are enough, the whole 95 % interval of the
        differences is above 0. Another seed may draw the means the other way."""
        # Not strict: numbers without seeds have no pairs.
        others = dict(zip(other.seeds, other.values, strict=False))
        paired = zip(self.seeds, self.values, strict=False)
        differences = [value - others[seed] for seed, value in paired if seed in others]
        interval = Number(differences).interval
        if interval is None or len(differences) < FEWEST_SEEDS:
            return False
        return interval.low > 0


def clear_best(numbers: Sequence[Number], *, lower_is_better: bool) -> int | None:
    """Index of the number with the best mean, if its seeds tell it from each other one that has a
    mean; None if they do not, or fewer than two have one."""
    sign = -1 if lower_is_better else 1
    means = [
        (sign * number.mean, index)
        for index, number in enumerate(numbers)
        if number.mean is not None
    ]
    if len(means) < 2:
        return None
    _, best = max(means, key=lambda entry: entry[0])
    for _, other in means:
        pair = (numbers[best], numbers[other])
        above, below = pair if sign > 0 else pair[::-1]
        if other != best and not above.is_above(below):
            return None
    return best


def best_note(is_any: bool) -> str:
    """The rule of `clear_best`, for readers of a table; `is_any`: whether it has a best mean."""
    return (
        f"{'Bold: a best mean' if is_any else 'No best mean is bold, because each'} needs "
        f"{FEWEST_SEEDS} seeds or more in common with every other row, and a 95 % interval "
        "(Student's t) of the differences seed by seed that does not hold 0."
    )


def groups_of_seeds(recipes: Mapping[str, Mapping[str, Any]]) -> list[dict[str, list[str]]]:
    """Runs, by their names, whose recipes are the same but for SEED_KEYS: seed -> names. A run
    whose recipe is not known is alone."""
    groups: list[tuple[object, dict[str, list[str]]]] = []
    for name, recipe in recipes.items():
        rest = {key: value for key, value in recipe.items() if key not in SEED_KEYS}
        seeds = next((seeds for known, seeds in groups if rest and known == rest), None)
        if seeds is None:
            groups.append((rest, seeds := {}))
        seeds.setdefault(str(recipe.get("seed")), []).append(name)
    return [seeds for _, seeds in groups]

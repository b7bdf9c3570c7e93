"""Means over seeds, with their confidence intervals, and the rule by which one row of a table is
called the best."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlds.recipe.paths import STARTED_IN


@dataclass(frozen=True)
class Interval:
    """The ends of a 95 % interval."""

    low: float
    high: float


SEED_KEYS = ("seed", "output", STARTED_IN)
"""Keys of the recipe in which runs may differ that count as seeds of one run."""
FEWEST_SEEDS = 3
"""Seeds that two rows must share before one is called better: with two, an interval is six times as
wide as with three, and whether it holds 0 is mostly chance."""

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
        difference = self.minus(other)
        interval = difference.interval
        return interval is not None and len(difference.values) >= FEWEST_SEEDS and interval.low > 0

    def minus(self, other: Number) -> Number:
        """The differences on the seeds that both have, and that of the published values."""
        # Not strict: numbers without seeds have no pairs.
        others = dict(zip(other.seeds, other.values, strict=False))
        paired = zip(self.seeds, self.values, strict=False)
        common = [(seed, value - others[seed]) for seed, value in paired if seed in others]
        published = None
        if self.published is not None and other.published is not None:
            published = self.published - other.published
        return Number([value for _, value in common], published, [seed for seed, _ in common])


def clear_best(numbers: Sequence[Number], *, lower_is_better: bool) -> int | None:
    """Index of the number with the best mean, if it is above each other one by the rule of
    `Number.is_above`; None if it is not, or if fewer than two have a mean."""
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
        # Where the lowest is the best, the other one must be above it.
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
    """Groups of runs whose recipes differ in SEED_KEYS alone, each as seed -> names. A run whose
    recipe is not known is alone."""
    # A list, because recipes are nested dicts, which cannot be keys.
    groups: list[tuple[object, dict[str, list[str]]]] = []
    for name, recipe in recipes.items():
        rest = {key: value for key, value in recipe.items() if key not in SEED_KEYS}
        seeds = next((seeds for known, seeds in groups if rest and known == rest), None)
        if seeds is None:
            groups.append((rest, seeds := {}))
        seeds.setdefault(str(recipe.get("seed")), []).append(name)
    return [seeds for _, seeds in groups]

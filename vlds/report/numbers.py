"""Means over seeds, with their confidence intervals, and the rule by which one row of a table is
called the best."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
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

NO_DEVIATION = 1e-9
"""Of values that differ in their last bits alone, such as differences of equal scores."""

OUTSIDE = 0.05
"""What an interval leaves out, on both sides together."""
NEARLY_NORMAL = 1000
"""Degrees of freedom from which Student's t is taken for the normal distribution."""


def student_p(distance: float, freedom: int) -> float:
    """Two-sided p-value of a distance in standard errors, by Student's t with `freedom` degrees of
    freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4, which end after freedom / 2 terms)."""
    if freedom > NEARLY_NORMAL:
        return math.erfc(abs(distance) / math.sqrt(2))
    angle = math.atan2(abs(distance), math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    is_odd = freedom % 2
    term = cosine if is_odd else 1.0
    series = term if freedom > 1 else 0.0
    for number in range(3 if is_odd else 2, freedom - 1, 2):
        term *= (number - 1) / number * cosine**2
        series += term
    inner = 2 / math.pi * (angle + sine * series) if is_odd else sine * series
    return max(0.0, 1 - inner)


@cache
def student_quantile(freedom: int) -> float:
    """The distance that is exceeded, on one of both sides, with the probability OUTSIDE."""
    low, high = 0.0, 100.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if student_p(middle, freedom) > OUTSIDE else (low, middle)
    return low


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
        """95 % confidence interval of the mean (Student's t); None for one seed, and for equal
        values, which do not say how far others would be."""
        count, deviation = len(self.values), self.deviation
        if deviation is None or deviation < NO_DEVIATION:
            return None
        half = student_quantile(count - 1) * deviation / math.sqrt(count)
        mean = statistics.mean(self.values)
        return Interval(mean - half, mean + half)

    def is_above(self, other: Number) -> bool:
        """True if on common seeds, of which there are enough, the whole 95 % interval of the
        differences is above 0. Another seed may draw the means the other way."""
        difference = self.minus(other)
        low = difference.interval.low if difference.interval else difference.mean
        return len(difference.values) >= FEWEST_SEEDS and low is not None and low > 0

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

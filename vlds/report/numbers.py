"""Numbers as people read them: scores, counts, bytes, ticks of an axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """The middle 95 % of the resampled values."""

    low: float
    high: float


def score_text(value: float | None) -> str:
    """Three decimals; a dash where there is no score."""
    return "-" if value is None else f"{value:.3f}"


def difference_text(value: float) -> str:
    """Three decimals and always a sign."""
    return f"{value:+.3f}"


def interval_text(interval: Interval) -> str:
    """Both ends in brackets."""
    return f"[{interval.low:.3f}, {interval.high:.3f}]"


def bytes_text(count: float) -> str:
    """Bytes in the unit that leaves at most four digits before the point."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:,.2f} TB"


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers that span low..high in about `count` steps of 1, 2 or 5 times 10^n."""
    if not high > low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
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

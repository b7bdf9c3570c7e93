"""The sentences on top of a page: how good a run is at each task, how far above what it must beat,
and where it is weakest; of two runs, whether they can be told apart."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlds.report.baselines import BLIND, FREQUENT, FROZEN, frequent_answers
from vlds.report.examples import groups_by_way
from vlds.report.numbers import student_p
from vlds.report.report import Report, RunReport
from vlds.report.run_tables import direction
from vlds.report.scores import (
    SIGNIFICANT,
    Difference,
    TaskResult,
    Units,
    Values,
    difference,
    resampled,
)
from vlds.report.tables import interval_text, p_text, score_text

ENOUGH = 20
"""Examples of a group, and of the rest, from which the two are compared."""
WEAKEST_NOTE = (
    f"A group is named only if its score is below that of the other examples at the "
    f"{100 * SIGNIFICANT:g} % level, divided by the number of groups (two-sided t test; the larger "
    "of the pooled standard error and that of leaving out one picture, or what else brackets draw, "
    f"after another). Groups of fewer than {ENOUGH} examples, or of one such unit, are not tried."
)


class Lead(NamedTuple):
    """A sentence: TASK: SCORE INTERVAL text."""

    task: str
    score: str
    interval: str
    text: str
    names_group: bool = False
    """True if it says which group is the weakest."""


class Weakest(NamedTuple):
    """The group with the lowest score of those that can be told apart from the rest."""

    name: str
    score: float
    examples: int
    rest: float
    """Score of the other examples."""


def run_leads(run: RunReport, resamples: int) -> list[Lead]:
    """A sentence for each task of a run that has a score."""
    leads = []
    for name, task in run.scores.tasks.items():
        metric = next(iter(task.metrics), None)
        value = None if metric is None else run.score(name, metric)
        if metric is None or value is None:
            continue
        result = run.result(name, metric)
        frequent = frequent_answers(result) if result else None
        rivals = {
            FREQUENT: frequent.in_words if frequent else "the most frequent answer",
            BLIND: "the same model without pictures",
            FROZEN: "the model before training",
        }
        gaps = []
        for label, words in rivals.items():
            if (other := run.score(name, metric, label)) is None:
                continue
            baseline = run.baselines.get(label, {}).get(name)
            paired = difference(result, baseline, resamples)
            chance = ""
            if isinstance(paired, Difference) and not paired.is_sure:
                chance = f", which can be chance ({p_text(paired.p)})"
            gaps.append(f"{gap_text(value - other)} {words}{chance}")
        size = f"{task.examples:,} examples" if task.examples is not None else ""
        size = " in ".join(filter(None, [size, result.drawn if result else ""]))
        data = " of ".join(filter(None, [size, task.data_name]))
        of_what = metric + direction(task, metric) + (f" on {data}" if data else "")
        text = "; ".join(filter(None, [of_what, ", ".join(gaps)])) + "."
        weakest = weakest_group(result) if result else None
        if isinstance(weakest, Weakest):
            text += (
                f" Weakest: {weakest.name}, {score_text(weakest.score)} on {weakest.examples:,} "
                f"examples (the others: {score_text(weakest.rest)})."
            )
        elif weakest is not None:
            text += f" {weakest}"
        interval = interval_text(result.interval if result else None)
        leads.append(Lead(name, score_text(value), interval, text, isinstance(weakest, Weakest)))
    return leads


def gap_text(gap: float) -> str:
    """ "0.120 above", as it is read before what is compared with."""
    if abs(gap) < 0.0005:
        return "equal to"
    return f"{abs(gap):.3f} {'above' if gap > 0 else 'below'}"


def weakest_group(result: TaskResult) -> Weakest | str | None:
    """The weakest group, or in words that none can be told apart from the rest; None where there
    are no groups to compare."""
    if result.values is None:
        return None
    values = result.values
    units = resampled(result.units, values)
    sign = -1 if result.headline in result.task.lower_is_better else 1
    tried: list[tuple[float, Weakest]] = []
    ways: dict[str, None] = {}
    for way, names in groups_by_way(result).items():
        numbers: dict[str, int] = {}
        codes = np.array([-1 if n is None else numbers.setdefault(n, len(numbers)) for n in names])
        counts = (codes >= 0) & ~np.isnan(values)
        sizes = np.bincount(codes[counts], minlength=len(numbers))
        spread = float(np.var(values[counts])) if counts.any() else 0.0
        for name, number in numbers.items():
            inside = counts & (codes == number)
            size, others = int(sizes[number]), int(sizes.sum() - sizes[number])
            if min(size, others) < ENOUGH:
                continue
            outside = counts & ~inside
            score, rest = float(values[inside].mean()), float(values[outside].mean())
            found = _standard_error(values, inside, outside, units)
            if found is None:
                continue
            # A group that is all wrong has no spread of its own, so the spread of all examples is
            # the least that counts.
            error = max(found.error, (spread * (1 / size + 1 / others)) ** 0.5)
            distance = sign * (rest - score) / error if error else 0.0
            # Only a group below the others can be the weakest.
            p = student_p(distance, found.freedom) if distance > 0 else 1.0
            way = way.replace("_", " ")
            ways[way] = None
            tried.append((p, Weakest(f"{way} {name}", score, size, rest)))
    if not tried:
        return None
    below = [group for p, group in tried if p < SIGNIFICANT / len(tried)]
    if not below:
        # With their names: other groups, such as patients, may be what a resample draws.
        kinds = ", ".join(ways)
        return f"None of {len(tried)} groups ({kinds}) can be told apart from the rest."
    return min(below, key=lambda group: sign * group.score)


class _Spread(NamedTuple):
    """How far chance moves the difference of two groups' means."""

    error: float
    """Its standard error."""
    freedom: int
    """Degrees of freedom of that."""


def _standard_error(
    values: Values, inside: NDArray[np.bool_], outside: NDArray[np.bool_], units: Units
) -> _Spread | None:
    """The jackknife's: how far the difference moves if one picture (or patient, ...) after another
    is left out, so that several examples of one count once. None if one holds a whole group, or if
    too few are left: nothing then tells the group from its picture.

    The sum of squares alone would be too small for few units: of three equally good groups in five
    patients it would name one in every tenth run.
    """
    left, shares = [], []
    for group in (inside, outside):
        counts = np.bincount(units, group)
        sums = np.bincount(units, np.where(group, values, 0.0))
        if (counts == counts.sum()).any():
            return None
        left.append((sums.sum() - sums) / (counts.sum() - counts))
        shares.append(counts / counts.sum())
    # Units of none of the two groups leave the difference as it is.
    weights = np.square(shares).sum(0)
    is_used = weights > 0
    num = np.count_nonzero(is_used)
    whole = values[inside].mean() - values[outside].mean()
    moved = (left[0] - left[1] - whole)[is_used]
    # As many as equal units: one that holds most examples leaves little to the others.
    freedom = int(weights.sum() ** 2 / (weights**2).sum() - 1 + 1e-9)
    if freedom < 1:
        return None
    return _Spread(float((moved**2).sum() * (num - 1) / num) ** 0.5, freedom)


def pair_leads(report: Report) -> list[Lead]:
    """A sentence for each task that two runs have: the second less the first."""
    (first, one), (second, other) = report.runs.items()
    differences = report.differences.get(second, [])
    leads = []
    for (task, metric), found in zip(report.headlines, differences, strict=False):
        low, high = one.score(task, metric), other.score(task, metric)
        if not isinstance(found, Difference) or low is None or high is None:
            continue
        entry = other.scores.tasks[task]
        told = "are told apart" if found.is_sure else "are not told apart"
        text = (
            f"{metric}{direction(entry, metric)} of {second}, {gap_text(found.value)} {first} "
            f"({score_text(low)}): higher on {found.better:,} and lower on {found.worse:,} of "
            f"{other.results[task].examples:,} examples. The two {told} ({p_text(found.p)})."
        )
        result = other.result(task, metric)
        interval = interval_text(result.interval if result else None)
        leads.append(Lead(task, score_text(high), interval, text))
    return leads

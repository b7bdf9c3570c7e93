"""Each task's scores of a run, from its newest predictions: checked against the log, with a
bootstrap interval where the score is a mean over examples; and whether two runs can be told
apart."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlds.data.shards.sample import joined
from vlds.report.numbers import Interval
from vlds.report.predictions import AGAIN, Predictions
from vlds.report.read import headline_of
from vlds.tasks.base import Task, task_of

RAISED = (LookupError, TypeError, AttributeError, ArithmeticError)
"""What tasks raise on damaged or foreign references, which they do not check."""
LOGGED_TOLERANCE = 1e-6
"""Largest difference between a logged score and that of the predictions."""

TOLERANCE = 1e-9
"""Largest difference between a score and the mean of its examples."""

Logged = Mapping[tuple[int | None, str], Mapping[str, float]]
"""Step and label of a task's list -> scores; training logs nothing under the step None."""


class DamagedReference(ValueError):
    """A reference that the task cannot read."""


def checked_scores(task: Task, predicted: Predictions) -> Mapping[str, float]:
    """The task's scores, whatever was logged; {} where no reference is known. Afterwards
    `answer_of` and `correct` can read each reference.

    Errors: DamagedReference; ValueError where the scores cannot be computed on this machine.
    """

    def damaged(key: str, error: Exception) -> DamagedReference:
        return DamagedReference(
            f"{predicted.file}, line {predicted.lines[key]}: its reference is not one of "
            f"{type(task).__name__} ({error!r:.200}); {AGAIN}"
        )

    # Tasks do not check references. Read each one first, so that the error names its line.
    for key, reference in predicted.references.items():
        if reference is not None:
            try:
                task.answer_of(reference)
                task.correct(predicted.predictions[key], reference)
            except (ValueError, *RAISED) as error:
                raise damaged(key, error) from None
    try:
        return task.score(predicted.predictions, predicted.references)
    except RAISED as error:
        # `score` does not say at which reference it raised. Bisect: score a beginning of the
        # examples, with all later references unknown.
        keys = list(predicted.references)
        scored, raising = 0, len(keys)
        while raising - scored > 1:
            middle = (scored + raising) // 2
            known = {key: predicted.references[key] for key in keys[:middle]}
            try:
                task.score(predicted.predictions, dict.fromkeys(keys) | known)
            except RAISED:
                raising = middle
            except ValueError:  # for example, none of these can be scored
                scored = middle
            else:
                scored = middle
        raise damaged(keys[raising - 1], error) from None


def scores_of_predictions(
    tasks: Mapping[str, Task],
    predictions: Mapping[str, Predictions],
    logged: Logged,
    notes: list[str],
) -> dict[str, Mapping[str, float]]:
    """Score what a run predicted: its name -> scores; {} where all references are unknown, or where
    the scores can neither be computed here nor were logged. Damaged predictions are left out.
    What is left out, and scores that were logged otherwise, get a note."""
    scores: dict[str, Mapping[str, float]] = {}
    for name, predicted in predictions.items():
        task, earlier = tasks[task_of(predicted.label)], logged.get((predicted.step, name), {})
        try:
            computed = checked_scores(task, predicted)
        except ValueError as error:
            # Any other error comes from this machine; the logged scores are still right.
            if isinstance(error, DamagedReference) or not earlier:
                notes.append(f"No scores of {name}'s newest predictions: {error}")
            if not isinstance(error, DamagedReference):
                scores[name] = earlier
            continue
        # Scores may be missing on this machine only: the official ones need Java.
        if task.left_out() is not None:
            computed = {**earlier, **computed}
        scores[name] = computed
        # Name one score that the log has otherwise: the headline if it is one, else the first.
        for metric, value in sorted(earlier.items(), key=lambda item: item[0] != task.headline):
            known = computed.get(metric)
            if known is None:
                what = f"no {metric}, and metrics.jsonl has {value:.6g}"
            elif not np.isclose(known, value, LOGGED_TOLERANCE, LOGGED_TOLERANCE, equal_nan=True):
                what = f"{metric} {known:.6g}, and metrics.jsonl has {value:.6g}"
            else:
                continue
            notes.append(f"{name}: {predicted.file} gives {what}; the former is shown")
            break
    return scores


# Bootstrap percentile intervals: how far a score would move with other pictures.
#
# A resample draws units, as many as there are and with replacement. A unit is the largest that is
# known: a group (a patient, document or scene) where the data have some, else a sample (a picture,
# pair or clip), each with all of its examples. Its score is the mean over the examples of what was
# drawn; the interval holds the middle 95 % of these scores (Efron 1979,
# https://doi.org/10.1214/aos/1176344552; Field and Welsh 2007,
# https://doi.org/10.1111/j.1467-9868.2007.00593.x). Questions about one picture, and pictures of
# one patient, tend to be right or wrong together, so that resamples of single ones vary too little.
#
# An interval covers the choice of units, not of training seeds. Draws depend on the number of units
# alone: two runs on the same units meet the same draws, and the interval of their difference is a
# paired one. CIDEr's draws keep the document frequencies of all pictures.

Values = NDArray[np.float64]
"""(examples,) what each example adds to a mean; NaN for those that do not count."""
Units = NDArray[np.int64]
"""(examples,) number of each example's unit, counted from 0 without gaps."""

RESAMPLES = 1000
OUTSIDE = 2.5
"""Percent of the draws below an interval, and as many above."""
FEW_UNITS = 20
"""Of fewer groups, percentiles are too narrow to be passed over in silence: of 5 in a simulation,
80 % of the intervals held the score; of 10, 90 %; of 20, 92 %."""
SEED = 0  # fixed, so that a report that is made again says the same


def numbered(names: Iterable[Hashable]) -> Units:
    """Number the names of units in the order in which their first examples come."""
    # ["a", "b", "a"] -> 0 1 0
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)


def units_of(task: Task, predicted: Predictions) -> Units | None:
    """The unit of each example: those of samples that share a group, directly or over others, are
    one. None where the predictions do not say which sample an example is of."""
    ids = list(predicted.references)
    # An example of such a task is a whole sample, and predictions of earlier versions have no other
    # name of it.
    samples = ids if task.unit == "sample" else [predicted.samples.get(key) for key in ids]
    if None in samples:
        return None
    pairs = zip(ids, samples, strict=True)
    return numbered(joined([[sample, *predicted.groups.get(key, ())] for key, sample in pairs]))


def interval_of_mean(values: Values, units: Units, resamples: int = RESAMPLES) -> Interval:
    """The interval of the mean over the examples that count."""
    counted = np.isfinite(values)
    if (same := set(values[counted].tolist())) in ({0.0}, {1.0}):
        # All draws are alike, which is no reason to be sure: the exact interval of Clopper and
        # Pearson for as many units, none of which (or each of which) is right.
        least = (OUTSIDE / 100) ** (1 / len(np.unique(units[counted])))
        return Interval(least, 1.0) if same == {1.0} else Interval(0.0, 1 - least)
    return percentiles(resampled_means([values], units, resamples)[:, 0])


def interval_of_difference(
    values: Values, baseline: Values, units: Units, resamples: int = RESAMPLES
) -> Interval:
    """The interval of the mean of `values` less that of `baseline`, the same units drawn for
    both."""
    means = resampled_means([values, baseline], units, resamples)
    return percentiles(means[:, 0] - means[:, 1])


def resampled_means(columns: Sequence[Values], units: Units, resamples: int) -> Values:
    """(resamples, columns) the means of each draw; NaN where nothing in a draw counts."""
    # Sums and counts of each unit come first: a draw then costs one product with the number of
    # times that each unit was drawn, however many examples it has.
    num = int(units.max()) + 1
    counted = [~np.isnan(values) for values in columns]
    sums = [
        np.bincount(units, np.where(counts, values, 0.0), num)
        for values, counts in zip(columns, counted, strict=True)
    ]
    table = np.stack([*sums, *(np.bincount(units, counts, num) for counts in counted)])
    rng = np.random.default_rng(SEED)
    totals = np.empty((resamples, len(table)))
    for index in range(resamples):
        # Of 3 units, the draw 0 2 2 -> 1 0 2 times.
        times_drawn = np.bincount(rng.integers(0, num, num), minlength=num)
        totals[index] = table @ times_drawn.astype(np.float64)
    # The columns of `totals` are all sums, then all counts.
    drawn_sums, drawn_counts = np.split(totals, 2, axis=1)
    return np.divide(
        drawn_sums, drawn_counts, out=np.full_like(drawn_sums, np.nan), where=drawn_counts > 0
    )


def percentiles(means: Values) -> Interval:
    low, high = np.nanpercentile(means, (OUTSIDE, 100 - OUTSIDE))
    return Interval(float(low), float(high))


# Whether two runs on the same examples can be told apart: if they were equally good, either of them
# could have given either one's answers to a unit, so the sign of the unit's difference would be a
# coin's. The test flips these signs. With one question a unit, which is right or wrong, it is
# McNemar's exact test; with several it counts a unit once, as the intervals do. An interval of few
# unlike examples is too narrow: 4 against 0 of 20 leave 0 out, and have p = 0.125.

FLIPS = 10_000
ALL_FLIPS = 13
"""Up to so many units with a difference, all patterns of signs are counted instead of drawn."""
SIGNIFICANT = 0.05


def flip_test(differences: Values, units: Units) -> float:
    """Two-sided p-value of a mean difference of 0, signs flipped unit by unit.

    `differences`: (examples,), NaN for those that do not count.
    """
    sums = np.bincount(units, np.nan_to_num(differences))
    sums = sums[np.abs(sums) > TOLERANCE]
    # Sums of the same numbers in another order differ in their last digits.
    reached = abs(sums.sum()) * (1 - TOLERANCE)
    if (count := len(sums)) <= ALL_FLIPS:
        signs = 1 - 2 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)
        return float((np.abs(signs @ sums) >= reached).mean())
    rng = np.random.default_rng(SEED)
    further = 0
    for _ in range(FLIPS // 100):  # in parts, which bounds the memory
        signs = 1 - 2 * rng.integers(0, 2, (100, count), dtype=np.int8)
        further += int((np.abs(signs @ sums) >= reached).sum())
    return (further + 1) / (FLIPS + 1)  # the signs that came out are one of the patterns


class NoMean(Exception):
    """Why a score is not a mean over examples that can be resampled."""


@dataclass(frozen=True)
class TaskResult:
    """One task of a run."""

    task: Task
    predictions: Predictions
    headline: str
    """The score that stands for the task."""
    scores: Mapping[str, float]
    interval: Interval | None
    """The headline score's."""
    reason: str = ""
    """Why there is no interval."""
    values: Values | None = field(default=None, repr=False)
    """(examples,) what each example adds to the headline score, in the order of their ids."""
    units: Units | None = field(default=None, repr=False)
    """(examples,) number of each example's unit, in that order; None where the predictions do not
    say which sample an example is of, and examples are resampled instead."""

    @property
    def examples(self) -> int:
        """Those that count in the scores."""
        return self.task.num_scored(self.predictions.references)

    @property
    def value(self) -> float:
        """The headline score."""
        return self.scores[self.headline]

    @property
    def drawn(self) -> str:
        """What a resample draws, if the data have groups: "5 groups (patient)"; else ""."""
        groups = self.predictions.groups
        if self.units is None or not groups:
            return ""
        fields = {group.field for of_sample in groups.values() for group in of_sample}
        pairs = zip(self.predictions.references, self.units.tolist(), strict=True)
        num_grouped = len({unit for key, unit in pairs if key in groups})
        text = f"{num_grouped:,} group{'s' * (num_grouped > 1)} ({', '.join(sorted(fields))})"
        rest = int(self.units.max()) + 1 - num_grouped
        return text + (f" and {rest:,} sample{'s' * (rest > 1)} without one" if rest else "")


@dataclass(frozen=True)
class Difference:
    """How much more a run scores than another, on the same examples."""

    value: float
    interval: Interval
    p: float
    """Of `flip_test`."""
    better: int
    """Examples on which the run scores more."""
    worse: int

    @property
    def is_sure(self) -> bool:
        """True if the test tells the two apart at the 5 % level."""
        return self.p < SIGNIFICANT


def results_of(
    tasks: Mapping[str, Task],
    predictions: Mapping[str, Predictions],
    scores: Mapping[str, Mapping[str, float]],
    resamples: int,
) -> dict[str, TaskResult]:
    """The result of each of the predictions that have scores; without intervals if `resamples` is
    0."""
    results = {}
    for name, predicted in predictions.items():
        if not (scored := scores[name]):
            continue
        task = tasks[task_of(predicted.label)]
        headline = headline_of(scored, task.headline)
        assert headline is not None
        units = units_of(task, predicted)
        values, interval, reason = None, None, ""
        if resamples:
            try:
                values = example_values(
                    task, headline, predicted.predictions, predicted.references, scored[headline]
                )
                drawn = resampled(units, values)
                # Units are counted from 0, so a largest of 0 is a single one.
                if drawn.max(initial=0) == 0:
                    noun = "group" if predicted.groups else "sample"
                    raise NoMean(f"one {noun} alone does not tell how far another would lie")
                interval = interval_of_mean(values, drawn, resamples)
            except NoMean as error:
                reason = str(error)
        results[name] = TaskResult(
            task, predicted, headline, scored, interval, reason, values, units
        )
    return results


def example_values(
    task: Task,
    name: str,
    predictions: Mapping[str, str],
    references: Mapping[str, Any],
    score: float,
) -> Values:
    """What each example adds to the score called `name`, in the references' order; NaN for those
    that do not count.

    Errors: NoMean where the score is not a mean over examples, cannot be computed here, or is
    another one on these predictions.
    """
    try:
        scores = task.example_scores(name, predictions, references)
    except ValueError as error:
        raise NoMean(str(error)) from error
    if scores is None:
        raise NoMean(f"{name} is not a mean over examples")
    # The task gives values of the examples with a reference alone.
    values = np.full(len(references), np.nan)
    values[[reference is not None for reference in references.values()]] = scores
    if not np.isclose(mean_of(values), score, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
        raise NoMean(f"its predictions do not give the {name} that was logged")
    return values


def mean_of(values: Values) -> float:
    """The mean of the values that count; NaN where none does."""
    counted = values[~np.isnan(values)]
    return float(counted.mean()) if len(counted) else np.nan


def resampled(units: Units | None, values: Values) -> Units:
    """What a resample draws: units, or examples if their samples are unknown."""
    return np.arange(len(values)) if units is None else units


def difference(
    result: TaskResult | None, baseline: TaskResult | None, resamples: int
) -> Difference | str:
    """The first less the second, both on the same draws; or why they cannot be compared."""
    if result is None or baseline is None:
        return "not scored in both"
    if result.predictions.references != baseline.predictions.references:
        return "other examples"
    if result.values is None or baseline.values is None or result.interval is None:
        return "no interval"
    # Equal examples are of equal samples and groups, which one of the runs may not know: the larger
    # units, of which there are fewer, count.
    known = [units for units in (result.units, baseline.units) if units is not None]
    units = resampled(min(known, key=np.max, default=None), result.values)
    interval = interval_of_difference(result.values, baseline.values, units, resamples)
    each = result.values - baseline.values
    return Difference(
        mean_of(result.values) - mean_of(baseline.values),
        interval,
        flip_test(each, units),
        int((each > TOLERANCE).sum()),
        int((each < -TOLERANCE).sum()),
    )


def resampling_notes(runs: Mapping[str, Mapping[str, TaskResult]]) -> list[str]:
    """Whose intervals draw groups; whose draw single examples, because their samples are unknown;
    which tasks have no interval, and why. Runs (name -> task -> result) with the same reason share
    a note."""
    unknown = "the predictions do not say which sample each example is of"
    by_group: dict[tuple[str, str], list[str]] = {}
    are_few = False
    by_example: dict[str, list[str]] = {}
    without: dict[tuple[str, str], list[str]] = {}
    for name, results in runs.items():
        for task, result in results.items():
            if result.interval and result.units is not None and result.drawn:
                by_group.setdefault((task, result.drawn), []).append(name)
                # Where all examples score alike, the interval is the exact one.
                are_few |= bool(result.units.max() < FEW_UNITS - 1) and result.value not in (0, 1)
            if result.interval and result.units is None:
                by_example.setdefault(task, []).append(name)
            if result.reason:
                without.setdefault((task, result.reason), []).append(name)

    def whose(task: str, names: Sequence[str]) -> str:
        return f"{task} of {', '.join(names)}" if len(runs) > 1 else task

    return [
        *(
            f"For {whose(task, names)} {drawn} were drawn instead of single samples, each with "
            "all of its samples; groups that share a sample count as one."
            for (task, drawn), names in by_group.items()
        ),
        *([f"Of fewer than {FEW_UNITS} groups, brackets are still too narrow."] * are_few),
        *(
            f"For {whose(task, names)} single examples were drawn: {unknown}. Where several are of "
            "one picture, this interval is too narrow; evaluate the run again."
            for task, names in by_example.items()
        ),
        *(
            f"No interval for {whose(task, names)}: {reason}."
            for (task, reason), names in without.items()
        ),
    ]

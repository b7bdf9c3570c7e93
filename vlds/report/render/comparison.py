"""The table of `vlds compare`: its columns, what is in its cells, and what the numbers mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vlds.report.compute.compared_columns import (
    ANSWERS,
    MEMORY,
    SPEED,
    STORED,
    TIME,
    TRAINS,
)
from vlds.report.compute.compared_scores import CIDER
from vlds.report.compute.comparison import ComparedRow, Comparison
from vlds.report.compute.facts import speed_text
from vlds.report.compute.seed_values import FEWEST_SEEDS, Number
from vlds.report.numbers import bytes_text
from vlds.report.render.table import Cell, Row, Table
from vlds.runtime.durations import duration_text

PUBLISHED = "paper "


@dataclass(frozen=True)
class Heading:
    """How a cost is shown."""

    title: str
    text: Callable[[float], str]
    unit: str


COSTS: Mapping[str, Heading] = {
    TRAINS: Heading("trains", lambda value: f"{value:.2f} %", "percent"),
    STORED: Heading("stores", bytes_text, "bytes"),
    MEMORY: Heading("peak memory", bytes_text, "bytes"),
    SPEED: Heading("samples/s", speed_text, "samples_per_second"),
    ANSWERS: Heading("answers/s", speed_text, "answers_per_second"),
    TIME: Heading("time to", duration_text, "seconds"),
}


def comparison_table(comparison: Comparison) -> Table:
    """What trains, then scores, then the other costs; the best of each score is marked."""
    order = [n for n in comparison.costs if n == TRAINS] + comparison.values
    order += [name for name in comparison.costs if name != TRAINS]
    rows = [
        Row(row.name, [cell(comparison, row, name) for name in order], [seeds_text(row)])
        for row in comparison.rows
    ]
    return Table(["", *(head(comparison, name) for name in order)], rows)


def head(comparison: Comparison, name: str) -> str:
    """The head of a column; a task's metric stands below it."""
    if name == TIME and comparison.target is not None:
        target = comparison.target
        score = f"{target.percent:g}" if target.row is None else f"of {target.row}"
        return f"{COSTS[TIME].title}\n{target.task} {score}"
    if name in COSTS:
        return COSTS[name].title
    return "\n".join(filter(None, [name, comparison.metrics.get(name)]))


def seeds_text(row: ComparedRow) -> str:
    """How many runs a row is the mean of."""
    seeds = f"{row.wanted} seed{'s' * (row.wanted != 1)}"
    return seeds if len(row.runs) == row.wanted else f"{len(row.runs)} of {seeds}"


def cell(comparison: Comparison, row: ComparedRow, name: str) -> Cell:
    """A mean cost; or mean, deviation and interval of a score. With the published value."""
    number = row.numbers[name]
    if (heading := COSTS.get(name)) is not None:
        text = "-" if number.mean is None else heading.text(number.mean)
        some = name == TIME and 0 < len(number.values) < len(row.runs)
        reached = [f"{len(number.values)} of {len(row.runs)} runs"] if some else []
        shared = [row.partition] if name == MEMORY and comparison.partitions_differ else []
        return Cell(text, notes=[*published(number, heading.text), *reached, *filter(None, shared)])
    interval = number.interval
    return Cell(
        score_text(number),
        "number best" if comparison.best(name) is row else "number",
        f"[{interval.low:.1f}, {interval.high:.1f}]" if interval else "",
        published(number, lambda value: f"{value:.1f}"),
    )


def score_text(number: Number) -> str:
    """ "65.2 +/- 0.3"; without the deviation for one seed."""
    if number.mean is None:
        return "-"
    deviation = "" if number.deviation is None else f" \u00b1 {number.deviation:.1f}"
    return f"{number.mean:.1f}{deviation}"


def published(number: Number, text: Callable[[float], str]) -> list[str]:
    """A note with the published value, if there is one."""
    return [] if number.published is None else [f"{PUBLISHED}{text(number.published)}"]


def notes(comparison: Comparison, has_intervals: bool = True) -> list[str]:
    """What the numbers mean, and what is missing."""
    metrics = ", ".join(f"{metric} of {task}" for task, metric in comparison.metrics.items())
    scales = comparison.scales
    but = ", but for CIDEr, which goes up to 1,000" if CIDER in scales else ""
    lines = [f"Scores are 100 times their value, so percents{but}: {metrics}."]
    listed = "; ".join(f"{', '.join(tasks)} ({scale})" for scale, tasks in scales.items())
    if comparison.has_average:
        mixed = "" if len(scales) == 1 else (
            f", although their scales differ: {listed}. It is as papers publish it, and mostly "
            "their largest score"
        )  # fmt: skip
        lines.append(f"The average is the mean of the columns before it{mixed}.")
    elif len(comparison.columns) > 1:
        lines.append(f"There is no average, because the scales of the scores differ: {listed}.")
    if len(comparison.rows) > 1:
        is_any = any(comparison.best(name) for name in comparison.values)
        lines.append(
            f"{'Bold: a best mean' if is_any else 'No best mean is bold, because each'} needs "
            f"{FEWEST_SEEDS} seeds or more in common with every other row, and a 95 % interval "
            "(Student's t) of the differences seed by seed that does not hold 0."
        )
    if comparison.partitions_differ:
        lines.append(
            "Peak memory is that of one rank. The rows do not divide it over ranks alike, as each "
            "says, so compare it within those that do."
        )
    if any(len(row.runs) > 1 for row in comparison.rows):
        spread = "\u00b1: standard deviation of the sample (n - 1) over the seeds."
        interval = " Brackets: 95 % confidence interval of the mean (Student's t)."
        lines.append(spread + interval * has_intervals)
    if TIME in comparison.costs:
        lines.append(
            "Time: of training alone, until the first evaluation that reaches the score; runs that "
            "never do are left out."
        )
    if comparison.target is not None and comparison.target.row is not None:
        target = comparison.target
        lines.append(f"The score to reach is the mean of {target.row}, {target.percent:.1f}.")
    if ANSWERS in comparison.costs:
        lines.append("Answers/s: of the evaluations, with whatever a method adds to the model.")
    return [*lines, *comparison.notes]


def has_published(comparison: Comparison) -> bool:
    """True if a value was published."""
    numbers = [number for row in comparison.rows for number in row.numbers.values()]
    return any(number.published is not None for number in numbers)

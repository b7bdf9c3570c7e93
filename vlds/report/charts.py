"""Charts: positions of lines, ticks and values, which the page draws as inline SVG, or bars; the
charts of a training; and tables of the answers that a run confuses with each other."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from vlds.report.examples import TaskAnswers
from vlds.report.read import Curve
from vlds.report.report import Report
from vlds.report.tables import Cell, Table, TableRow
from vlds.runtime.checks import is_number

WIDTH, HEIGHT = 320, 170
LEFT, RIGHT, TOP, BOTTOM = 46, 18, 12, 34
"""Units of a chart's margins, in which ticks and titles stand; on the right, half of "1500k"."""
MOST_POINTS = 240
"""Points of a curve; more could not be told apart at this width."""
MOST_DOTS = 12
"""Curves with at most so many points show each one."""
MOST_BANDS = 60
"""Stripes of a chart that show their values under the pointer."""
LOG_RANGE = (1e-30, 1e30)
"""Values that a log scale shows."""
COLOURS, DASHES = 6, 3
"""Curves take turns with the style sheet's colours, then with its dashes."""
OTHERS = {"learning rate": "learning_rate", "gradient norm": "gradient_norm"}
"""Title of a chart -> key in metrics.jsonl."""
MOST_PAIRS = 10
"""Pairs of an answer and what was said instead that are shown."""
MOST_ANSWERS = 6
"""Tasks with at most so many answers get a matrix."""
OTHER = "other"

Curves = Mapping[str, Curve]
"""Name of a run -> its curve."""


class Tick(NamedTuple):
    """A number at an axis."""

    at: float
    text: str


class CurveLine(NamedTuple):
    """One curve."""

    look: str
    path: str
    dots: list[tuple[float, float]]


class Band(NamedTuple):
    """A stripe of a chart, and the values in it."""

    left: float
    width: float
    text: str


class ScatterPoint(NamedTuple):
    """One point with its deviation up and down, in the units of the axes."""

    x: float
    y: float
    deviation: float
    look: str
    text: str
    label: str = ""
    """What stands beside it."""


class Mark(NamedTuple):
    """A point of a scatter chart in its place."""

    x: float
    y: float
    top: float
    bottom: float
    look: str
    text: str
    label: str


class Bar(NamedTuple):
    """One value of a curve that has one or two."""

    label: str
    look: str
    value: str
    share: float


@dataclass(frozen=True)
class Chart:
    """Lines in a frame of WIDTH x HEIGHT units, or bars."""

    title: str
    spoken: str = ""
    """What the curves do, for those who do not see them."""
    scale: str = ""
    """linear or log, where the page has both."""
    last: str = ""
    """The last value, where there is one curve."""
    bars: list[Bar] = field(default_factory=list)
    lines: list[CurveLine] = field(default_factory=list)
    x_ticks: list[Tick] = field(default_factory=list)
    y_ticks: list[Tick] = field(default_factory=list)
    bands: list[Band] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    x_title: str = "step"


def charts_of(
    title: str,
    curves: Curves,
    y_range: tuple[float, float] | None = None,
    both_scales: bool = False,
) -> list[Chart]:
    """A chart of some curves: lines, or bars if none has more than two points. With `both_scales`
    also one on a log scale, if the values allow it. A curve's colour depends on its position in
    `curves`, empty ones included."""
    shown = {name: thinned(points, MOST_POINTS) for name, points in curves.items()}
    values = [point for points in shown.values() for point in points]
    longest = max(map(len, shown.values()), default=0)
    if longest == 0:
        return []
    if longest > 2:
        low, high = LOG_RANGE
        is_log = both_scales and all(low < y < high for _, y in values)
        scales = ("linear", "log") if is_log else ("",)
        return [line_chart(title, shown, y_range, scale) for scale in scales]
    if len(values) == 1:
        ((x, y),) = values
        return [Chart(f"{title}, step {x:,.0f}", last=f"{y:.4g}")]
    # Bars are shares of the range, which charts of scores have in common, or of the longest one;
    # all values may be 0.
    highest = y_range[1] if y_range else max(abs(y) for _, y in values) or 1.0
    bars = [
        Bar(f"{name} step {x:,.0f}".strip(), look(index), f"{y:.4g}", abs(y) / highest)
        for index, (name, points) in enumerate(shown.items())
        for x, y in points
    ]
    return [Chart(title, bars=bars)]


def line_chart(
    title: str, curves: Curves, y_range: tuple[float, float] | None = None, scale: str = ""
) -> Chart:
    """Lines, axes and values."""
    points = [point for curve in curves.values() for point in curve]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x_ticks = ticks(min(0.0, *xs), max(xs))
    is_log = scale == "log"
    y_ticks = log_ticks(min(ys), max(ys)) if is_log else ticks(*(y_range or (min(0, *ys), max(ys))))
    x_of = axis(x_ticks, LEFT, WIDTH - RIGHT)
    # SVG counts y from the top.
    y_of = axis(y_ticks, HEIGHT - BOTTOM, TOP, math.log10 if is_log else float)
    dotted = max(map(len, curves.values())) <= MOST_DOTS
    lines, courses = [], []
    for index, (name, curve) in enumerate(curves.items()):
        # The index counts empty curves, so that a run has one colour in all charts.
        if curve:
            spots = [(x_of(x), y_of(y)) for x, y in curve]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
            lines.append(CurveLine(look(index), path, spots if dotted else spots[-1:]))
            courses.append(f"{name} from {curve[0][1]:.3g} to {curve[-1][1]:.3g}".strip())
    spoken = [title, "log scale" if is_log else "", "; ".join(courses)]
    return Chart(
        title,
        spoken=", ".join(filter(None, spoken)),
        scale=scale,
        last=f"{ys[-1]:.3g}" if len(curves) == 1 else "",
        lines=lines,
        x_ticks=[Tick(x_of(value), tick_text(value)) for value in x_ticks],
        y_ticks=[Tick(y_of(value), tick_text(value)) for value in y_ticks],
        bands=bands(curves, x_of),
    )


def scatter_chart(title: str, points: Sequence[ScatterPoint], x_title: str) -> Chart:
    """Points over a log scale."""
    x_ticks = log_ticks(min(point.x for point in points), max(point.x for point in points))
    low = min(point.y - point.deviation for point in points)
    y_ticks = ticks(low, max(point.y + point.deviation for point in points))
    x_of = axis(x_ticks, LEFT, WIDTH - RIGHT, math.log10)
    y_of = axis(y_ticks, HEIGHT - BOTTOM, TOP)
    marks = [
        Mark(x_of(x), y_of(y), y_of(y + spread), y_of(y - spread), look, text, label)
        for x, y, spread, look, text, label in points
    ]
    return Chart(
        title,
        spoken=f"{title}: {'; '.join(point.text for point in points)}",
        x_ticks=[Tick(x_of(value), tick_text(value)) for value in x_ticks],
        y_ticks=[Tick(y_of(value), tick_text(value)) for value in y_ticks],
        marks=marks,
        x_title=x_title,
    )


def axis(
    marks: Sequence[float], begin: float, end: float, warp: Callable[[float], float] = float
) -> Callable[[float], float]:
    """Value -> position, in tenths of a unit; the first mark is at `begin`, the last at `end`."""
    low, high = warp(marks[0]), warp(marks[-1])
    return lambda value: round(begin + (warp(value) - low) / (high - low) * (end - begin), 1)


def bands(curves: Curves, x_of: Callable[[float], float]) -> list[Band]:
    """Adjacent stripes, each with the values of the curves at its step, or at the nearest one."""
    steps = sorted({x for curve in curves.values() for x, _ in curve})
    stride = math.ceil(len(steps) / MOST_BANDS)
    chosen = steps[::-stride][::-1]  # includes the last one
    # A stripe reaches half way to its neighbours; the outer ones reach 4 units beyond their step.
    edges = [x_of((a + b) / 2) for a, b in pairwise(chosen)]
    edges = [x_of(chosen[0]) - 4, *edges, x_of(chosen[-1]) + 4]
    stripes = []
    for step, (left, right) in zip(chosen, pairwise(edges), strict=True):
        texts = [f"step {step:,.0f}"]
        for name, curve in curves.items():
            if curve and curve[0][0] <= step <= curve[-1][0]:
                # The nearest point is the first one from this step on, or the one before it.
                index = bisect_left(curve, step, key=lambda point: point[0])
                around = curve[max(0, index - 1) : index + 1]
                _, value = min(around, key=lambda point: abs(point[0] - step))
                texts.append(f"{name} {value:.4g}".strip())
        stripes.append(Band(left, round(right - left, 1), "\n".join(texts)))
    return stripes


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
    # Over more than two powers of ten, 2 and 5 would crowd the axis; from 12 powers on, only every
    # second one is marked, from 18 on every third.
    factors = (1, 2, 5) if last - first <= 2 else (1,)
    stride = max(1, (last - first) // 6)
    marks = [
        factor * 10.0**power
        for power in range(first, last + stride + 1, stride)
        for factor in factors
    ]
    # Keep what lies inside, and one mark on each side; at least two, or the axis has no length.
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
    # 500 points, of which 240 may stay -> groups of 3, the last one of 2.
    finite = [point for point in points if math.isfinite(point[1])]
    width = math.ceil(len(finite) / most) or 1
    groups = [finite[start : start + width] for start in range(0, len(finite), width)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]


def look(index: int) -> str:
    """CSS classes of a curve: its colour and its dashes."""
    # With 6 colours and 3 dashes: 0 -> c0 d0, 6 -> c0 d1, 17 -> c5 d2, 18 -> c0 d0 again.
    return f"c{index % COLOURS} d{index // COLOURS % DASHES}"


class ChartGroup(NamedTuple):
    """Charts under one heading."""

    id: str
    title: str
    charts: list[Chart]

    @property
    def has_log(self) -> bool:
        """True if the page can switch to a log scale."""
        return any(chart.scale == "log" for chart in self.charts)


def training_charts(report: Report) -> list[ChartGroup]:
    """Charts that each show all runs; groups without any logged values are left out."""
    several = len(report.runs) > 1
    runs = {name if several else "": run.inputs for name, run in report.runs.items()}

    def by_title(curves: Mapping[str, Mapping[str, Curve]]) -> dict[str, dict[str, Curve]]:
        # Title -> run -> curve; a run without the curve has an empty one, so that colours stay.
        titles = dict.fromkeys(title for of_run in curves.values() for title in of_run)
        return {t: {name: of_run.get(t, []) for name, of_run in curves.items()} for t in titles}

    losses = by_title({name: run.losses for name, run in runs.items()})
    # "" is the loss over all tasks. With a single task the two are the same, so show one.
    loss_charts = [
        chart
        for task, curves in losses.items()
        if task or len(losses) != 2
        for chart in charts_of(task or "all tasks", curves, both_scales=True)
    ]
    score_charts = []
    for task, curves in by_title({name: run.score_curves for name, run in runs.items()}).items():
        # The table has the last value and that before the training: a chart shows the others.
        # Scores in 0..1 share a scale, so that their charts compare; one above 1 (CIDEr) has its
        # own.
        if any(step > 0 for points in curves.values() for step, _ in points[:-1]):
            fits = all(0 <= y <= 1 for points in curves.values() for _, y in points)
            score_charts += charts_of(task, curves, y_range=(0.0, 1.0) if fits else None)
    others = {
        title: {
            name: [
                (line["step"], line[key])
                for line in run.lines
                if key in line and is_number(line[key])
            ]
            for name, run in runs.items()
        }
        for title, key in OTHERS.items()
    }
    groups = [
        ChartGroup("loss", "Loss", loss_charts),
        ChartGroup("course", "Score during training", score_charts),
        ChartGroup(
            "optimizer",
            "Learning rate and gradient norm",
            [chart for title, curves in others.items() for chart in charts_of(title, curves)],
        ),
    ]
    return [group for group in groups if group.charts]


class Confusion(NamedTuple):
    """What one task's answers are taken for."""

    task: str
    table: Table
    """Few answers: how often each was said (across) where each is right (down); darker: a larger
    share of its row. Many: the most frequent mistakes, and the number of others."""


def confusions(answers: Mapping[str, TaskAnswers]) -> list[Confusion]:
    """The mistakes of each task whose answers repeat; counts of captions or names would say
    nothing."""
    found = []
    for task, of_task in answers.items():
        examples = [
            (entry.answer, entry.prediction, entry.correct)
            for entry in of_task.examples.values()
            if entry.answer is not None
        ]
        asked = Counter(answer for answer, _, _ in examples)
        wrong = Counter((answer, said) for answer, said, correct in examples if correct is False)
        # Where most answers occur once, what was said instead says nothing about an answer.
        if not wrong or 2 * len(asked) > asked.total():
            continue
        if 2 <= len(asked) <= MOST_ANSWERS:
            found.append(Confusion(task, matrix_table(asked, examples)))
            continue
        rows = []
        for (answer, said), count in wrong.most_common(MOST_PAIRS):
            share = f"{100 * count / asked[answer]:.0f} %"
            cells = [Cell(said or "(nothing)", ""), Cell(f"{count:,}"), Cell(share)]
            rows.append(TableRow(answer, cells))
        left = wrong.total() - sum(count for _, count in wrong.most_common(MOST_PAIRS))
        if left:
            rows.append(TableRow("all others", [Cell("", ""), Cell(f"{left:,}"), Cell("")]))
        heads = ["right answer", "said instead", "times", "share\nof this answer"]
        found.append(Confusion(task, Table(heads, rows, numbers_from=2)))
    return found


def matrix_table(asked: Counter[str], examples: Sequence[tuple[str, str, bool | None]]) -> Table:
    """The matrix of a task's confusions. The column OTHER holds what is not among its answers."""
    given = Counter((answer, said if said in asked else OTHER) for answer, said, _ in examples)
    # A task may have an answer of this name; then the column holds both.
    columns = [answer for answer, _ in asked.most_common()]
    if any(said == OTHER for _, said in given) and OTHER not in columns:
        columns.append(OTHER)
    rows = []
    for answer, count in asked.most_common():
        counts = [given[answer, column] for column in columns]
        rows.append(TableRow(answer, [Cell(f"{n:,}", shade=n / count) for n in counts]))
    return Table(["answer \\ said", *columns], rows)

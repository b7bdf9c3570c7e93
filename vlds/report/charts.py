"""Charts of curves: positions of lines, ticks and values. The page draws them as inline SVG."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from vlds.report.numbers import log_ticks, thinned, tick_text, ticks
from vlds.report.read import Curve, Metrics
from vlds.report.report import Report, TaskAnswers
from vlds.report.tables import Cell, Row, Table
from vlds.runtime.checks import is_number

WIDTH, HEIGHT = 320, 170
LEFT, RIGHT, TOP, BOTTOM = 40, 12, 12, 34
MOST_POINTS = 240
MOST_DOTS = 12
"""Curves with at most so many points show each one."""
MOST_BANDS = 60
"""Stripes of a chart that show their values under the pointer."""
LOG_RANGE = (1e-30, 1e30)
"""Values that a log scale shows."""
COLOURS, DASHES = 6, ("", "6 3", "2 3")
"""Curves take turns with the style sheet's colours, then with these dashes."""

Curves = Mapping[str, Curve]
"""Name of a run -> its curve."""


class Tick(NamedTuple):
    """A number at an axis."""

    at: float
    text: str


class Line(NamedTuple):
    """One curve."""

    look: str
    path: str
    dots: list[tuple[float, float]]


class Band(NamedTuple):
    """A stripe of a chart, and the values in it."""

    left: float
    width: float
    text: str


class Spot(NamedTuple):
    """One point with its deviation up and down, in the units of the axes."""

    x: float
    y: float
    deviation: float
    look: str
    text: str
    label: str = ""
    """Beside it."""


class Mark(NamedTuple):
    """A spot in its place."""

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
    lines: list[Line] = field(default_factory=list)
    x_ticks: list[Tick] = field(default_factory=list)
    y_ticks: list[Tick] = field(default_factory=list)
    bands: list[Band] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    x_title: str = "step"


def by_task(runs: Mapping[str, Mapping[str, Curve]]) -> dict[str, dict[str, Curve]]:
    """Task -> run -> curve; a run without the task has an empty one, so that colours stay."""
    tasks = dict.fromkeys(task for curves in runs.values() for task in curves)
    return {task: {name: curves.get(task, []) for name, curves in runs.items()} for task in tasks}


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
    longest = max(map(len, shown.values()), default=0)
    if longest == 0:
        return []
    if longest <= 2:
        return [bar_chart(title, shown)]
    low, high = LOG_RANGE
    logged = all(low < y < high for points in shown.values() for _, y in points)
    if not (both_scales and logged):
        return [line_chart(title, shown, y_range)]
    return [line_chart(title, shown, y_range, scale) for scale in ("linear", "log")]


def bar_chart(title: str, curves: Curves) -> Chart:
    """The values of curves that are too short for a line; a single one is a number."""
    values = [point for points in curves.values() for point in points]
    if len(values) == 1:
        ((x, y),) = values
        return Chart(f"{title}, step {x:,.0f}", last=f"{y:.4g}")
    highest = max(abs(y) for _, y in values) or 1.0
    bars = [
        Bar(f"{name} step {x:,.0f}".strip(), look(index), f"{y:.4g}", abs(y) / highest)
        for index, (name, points) in enumerate(curves.items())
        for x, y in points
    ]
    return Chart(title, bars=bars)


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
    y_of = axis(y_ticks, HEIGHT - BOTTOM, TOP, math.log10 if is_log else float)
    dotted = max(map(len, curves.values())) <= MOST_DOTS
    lines = []
    for index, curve in enumerate(curves.values()):
        if curve:
            spots = [(x_of(x), y_of(y)) for x, y in curve]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
            lines.append(Line(look(index), path, spots if dotted else spots[-1:]))
    return Chart(
        title,
        spoken=", ".join(filter(None, [title, "log scale" if is_log else "", spoken(curves)])),
        scale=scale,
        last=f"{ys[-1]:.3g}" if len(curves) == 1 else "",
        lines=lines,
        x_ticks=[Tick(x_of(value), tick_text(value)) for value in x_ticks],
        y_ticks=[Tick(y_of(value), tick_text(value)) for value in y_ticks],
        bands=bands(curves, x_of),
    )


def spot_chart(title: str, spots: Sequence[Spot], x_title: str) -> Chart:
    """Spots over a log scale."""
    x_ticks = log_ticks(min(spot.x for spot in spots), max(spot.x for spot in spots))
    low = min(spot.y - spot.deviation for spot in spots)
    y_ticks = ticks(low, max(spot.y + spot.deviation for spot in spots))
    x_of = axis(x_ticks, LEFT, WIDTH - RIGHT, math.log10)
    y_of = axis(y_ticks, HEIGHT - BOTTOM, TOP)
    marks = [
        Mark(x_of(x), y_of(y), y_of(y + spread), y_of(y - spread), look, text, label)
        for x, y, spread, look, text, label in spots
    ]
    return Chart(
        title,
        spoken=f"{title}: {'; '.join(spot.text for spot in spots)}",
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
    """Adjacent stripes, each with the values at its step."""
    steps = sorted({x for curve in curves.values() for x, _ in curve})
    stride = math.ceil(len(steps) / MOST_BANDS)
    chosen = steps[::-stride][::-1]  # includes the last one
    edges = [x_of((a + b) / 2) for a, b in pairwise(chosen)]
    edges = [x_of(chosen[0]) - 4, *edges, x_of(chosen[-1]) + 4]
    return [
        Band(left, round(right - left, 1), values_at(curves, step))
        for step, (left, right) in zip(chosen, pairwise(edges), strict=True)
    ]


def values_at(curves: Curves, step: float) -> str:
    """Each curve's value at a step, or at the nearest one."""
    texts = [f"step {step:,.0f}"]
    for name, curve in curves.items():
        if curve and curve[0][0] <= step <= curve[-1][0]:
            index = bisect_left(curve, step, key=lambda point: point[0])
            nearest = min(curve[max(0, index - 1) : index + 1], key=lambda p: abs(p[0] - step))
            texts.append(f"{name} {nearest[1]:.4g}".strip())
    return "\n".join(texts)


def look(index: int) -> str:
    """CSS classes of a curve: its colour and its dashes."""
    return f"c{index % COLOURS} d{index // COLOURS % len(DASHES)}"


def spoken(curves: Curves) -> str:
    """Where each curve begins and ends."""
    return "; ".join(
        f"{name} from {curve[0][1]:.3g} to {curve[-1][1]:.3g}".strip()
        for name, curve in curves.items()
        if curve
    )


# The curves of a training: losses, scores, learning rate and gradient norm.


OTHERS = {"learning rate": "learning_rate", "gradient norm": "gradient_norm"}
"""Title of a chart -> key in metrics.jsonl."""


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
    losses = by_task({name: run.losses for name, run in runs.items()})
    scores = by_task({name: run.score_curves for name, run in runs.items()})
    others = by_task({name: other_curves(run.lines) for name, run in runs.items()})
    groups = [
        ChartGroup(
            "loss",
            "Loss",
            [
                chart
                for task, curves in losses.items()
                if task or len(losses) != 2  # of a single task, both are the same
                for chart in charts_of(task or "all tasks", curves, both_scales=True)
            ],
        ),
        ChartGroup(
            "course",
            "Score during training",
            [chart for task, curves in scores.items() for chart in score_charts(task, curves)],
        ),
        ChartGroup(
            "optimizer",
            "Learning rate and gradient norm",
            [chart for title, curves in others.items() for chart in charts_of(title, curves)],
        ),
    ]
    return [group for group in groups if group.charts]


def score_charts(task: str, curves: Mapping[str, Curve]) -> list[Chart]:
    """Scores from 0 to 1; those above 1 (CIDEr) stretch their own chart. A score that was taken
    once stands in the table."""
    if max(map(len, curves.values())) < 2:
        return []
    fits = all(0 <= y <= 1 for points in curves.values() for _, y in points)
    return charts_of(task, curves, y_range=(0.0, 1.0) if fits else None)


def other_curves(lines: Iterable[Metrics]) -> dict[str, Curve]:
    """Curves of the logged values in OTHERS, by title."""
    curves: dict[str, Curve] = {}
    for line in lines:
        for title, key in OTHERS.items():
            if key in line and is_number(line[key]):
                curves.setdefault(title, []).append((line["step"], line[key]))
    return {title: curves[title] for title in OTHERS if title in curves}


# Which answers a run confuses with which.


MOST_PAIRS = 10
MOST_ANSWERS = 6
"""Tasks with at most so many answers get a matrix."""
OTHER = "other"


class Confusion(NamedTuple):
    """One task's mistakes."""

    task: str
    pairs: Table
    matrix: Table | None
    """Answers down, what was said across; for few answers."""


def confusions(answers: Mapping[str, TaskAnswers]) -> list[Confusion]:
    """Of each task whose answers repeat; counts of captions or names would say nothing."""
    confused = (confusion(task, entry) for task, entry in answers.items())
    return [entry for entry in confused if entry is not None]


def confusion(task: str, answers: TaskAnswers) -> Confusion | None:
    """One task's; None if nothing was wrong, or if most answers occur only once."""
    examples = [
        (entry.answer, entry.prediction, entry.correct)
        for entry in answers.examples.values()
        if entry.answer is not None
    ]
    asked = Counter(answer for answer, _, _ in examples)
    wrong = Counter((answer, said) for answer, said, correct in examples if correct is False)
    if not wrong or 2 * len(asked) > asked.total():
        return None
    matrix = None
    if 2 <= len(asked) <= MOST_ANSWERS:
        given = Counter((answer, said if said in asked else OTHER) for answer, said, _ in examples)
        matrix = matrix_table(asked, given)
    return Confusion(task, pair_table(asked, wrong), matrix)


def pair_table(asked: Counter[str], wrong: Counter[tuple[str, str]]) -> Table:
    """The most frequent mistakes, and the number of others."""
    rows = [
        Row(
            answer,
            [
                Cell(prediction or "(nothing)", ""),
                Cell(f"{count:,}"),
                Cell(f"{100 * count / asked[answer]:.0f} %"),
            ],
        )
        for (answer, prediction), count in wrong.most_common(MOST_PAIRS)
    ]
    left = wrong.total() - sum(count for _, count in wrong.most_common(MOST_PAIRS))
    if left:
        rows.append(Row("all others", [Cell("", ""), Cell(f"{left:,}"), Cell("")]))
    return Table(["answer", "said instead", "times", "share\nof this answer"], rows, numbers_from=2)


def matrix_table(asked: Counter[str], given: Counter[tuple[str, str]]) -> Table:
    """How often each answer was said where each is right; darker: a larger share of its row."""
    columns = [answer for answer, _ in asked.most_common()]
    if any(prediction == OTHER for _, prediction in given) and OTHER not in columns:
        columns.append(OTHER)
    rows = [
        Row(
            answer,
            [
                Cell(f"{given[answer, column]:,}", shade=given[answer, column] / count)
                for column in columns
            ],
        )
        for answer, count in asked.most_common()
    ]
    return Table(["answer \\ said", *columns], rows)

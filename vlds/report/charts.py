"""Line charts as inline SVG, whose colours are the page's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vlds.report.inputs import Curve
from vlds.report.numbers import thinned, tick_text, ticks
from vlds.runtime.shown import escape

WIDTH, HEIGHT = 320, 170
LEFT, RIGHT, TOP, BOTTOM = 40, 12, 12, 34
MOST_POINTS = 240
MOST_DOTS = 12
"""Curves of so few points show each of them."""
COLOURS, DASHES = 6, ("", "6 3", "2 3")
"""Curves take turns with the style sheet's colours, then with these dashes."""

Curves = Mapping[str, Curve]
"""Name of a run -> its curve."""


def by_task(runs: Mapping[str, Mapping[str, Curve]]) -> dict[str, dict[str, Curve]]:
    """Task -> run -> curve; a run without the task has an empty one, so that colours stay."""
    tasks = dict.fromkeys(task for found in runs.values() for task in found)
    return {task: {name: found.get(task, []) for name, found in runs.items()} for task in tasks}


def line_chart(
    title: str,
    curves: Curves,
    x_label: str = "step",
    y_range: tuple[float, float] | None = None,
) -> str:
    """Curves in a frame of 320 x 170 units; it fills the width that it is given. A name keeps its
    colour wherever it is at the same place in `curves`, empty ones included."""
    shown = {name: thinned(points, MOST_POINTS) for name, points in curves.items()}
    points = [point for curve in shown.values() for point in curve]
    if not points:
        return ""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x_ticks = ticks(min(0.0, *xs), max(xs))
    y_ticks = ticks(*(y_range or (min(0.0, *ys), max(ys))))

    def x_of(value: float) -> float:
        share = (value - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y_of(value: float) -> float:
        share = (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    grid = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_of(value):.1f}" '
        f'y2="{y_of(value):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y_of(value) + 4:.1f}" text-anchor="end">'
        f"{tick_text(value)}</text>"
        for value in y_ticks
    )
    labels = "".join(
        f'<text x="{x_of(value):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">'
        f"{tick_text(value)}</text>"
        for value in x_ticks
    )
    dotted = max(map(len, shown.values())) <= MOST_DOTS
    lines = "".join(
        curve_line(name, place, [(x_of(x), y_of(y)) for x, y in curve], curve[-1][1], dotted)
        for place, (name, curve) in enumerate(shown.items())
        if curve
    )
    last = f" <b>{ys[-1]:.3g}</b>" if len(shown) == 1 else ""
    return (
        f'<figure class="chart"><figcaption>{escape(title)}{last}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}, {escape(spoken(shown))}">{grid}{labels}'
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{escape(x_label)}</text>'
        f"{lines}</svg></figure>"
    )


def curve_line(name: str, place: int, points: Curve, last_value: float, dotted: bool) -> str:
    """One curve, with a name to read where a pointer rests on it."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    seen = points if dotted else points[-1:]
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in seen)
    told = f"<title>{escape(name)} {last_value:.3g}</title>" if name else ""
    return f'<g class="curve {look(place)}">{told}<polyline points="{path}"/>{dots}</g>'


def look(place: int) -> str:
    """Classes of the curve at a place: its colour and its dashes."""
    return f"c{place % COLOURS} d{place // COLOURS % len(DASHES)}"


def spoken(curves: Curves) -> str:
    """What the curves do, for those who do not see them."""
    return "; ".join(
        f"{name} from {curve[0][1]:.3g} to {curve[-1][1]:.3g}".strip()
        for name, curve in curves.items()
        if curve
    )


def legend(names: Sequence[str]) -> str:
    """Which curve is whose."""
    entries = "".join(
        f'<li><svg viewBox="0 0 28 8" aria-hidden="true"><g class="curve {look(place)}">'
        f'<polyline points="1,4 27,4"/></g></svg>{escape(name)}</li>'
        for place, name in enumerate(names)
    )
    return f'<ul class="legend">{entries}</ul>'

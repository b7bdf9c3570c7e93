"""A line chart as inline SVG, whose colours are the page's."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from vlds.report.numbers import thinned, tick_text, ticks

WIDTH, HEIGHT = 320, 170
LEFT, RIGHT, TOP, BOTTOM = 40, 12, 12, 34
MOST_POINTS = 240


def line_chart(
    title: str,
    points: Sequence[tuple[float, float]],
    x_label: str = "step",
    y_range: tuple[float, float] | None = None,
) -> str:
    """One curve in a frame of 320 x 170 units; it fills the width that it is given."""
    shown = thinned(points, MOST_POINTS)
    if not shown:
        return ""
    xs, ys = [x for x, _ in shown], [y for _, y in shown]
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
    path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in shown)
    last = f'<circle cx="{x_of(xs[-1]):.1f}" cy="{y_of(ys[-1]):.1f}" r="3"/>'
    return (
        f'<figure class="chart"><figcaption>{escape(title)} <b>{ys[-1]:.3g}</b></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}, '
        f'from {ys[0]:.3g} to {ys[-1]:.3g}">{grid}{labels}'
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{escape(x_label)}</text>'
        f'<polyline points="{path}"/>{last}</svg></figure>'
    )

"""The report as one PNG: loss curves, scores beside each other, a few samples of a single run."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from vlds.data.shards.open_picture import open_picture
from vlds.report.compute.collect import Report
from vlds.report.compute.facts import size_facts
from vlds.report.numbers import score_text, thinned
from vlds.report.read.samples import GalleryEntry
from vlds.report.render.cards import reference_lines
from vlds.report.render.charts import COLOURS, DASHES, by_task
from vlds.runtime.regular_file import read_file
from vlds.runtime.shown import visible

WIDTH = 12.0
"""Inches; 100 pixels each."""
LOSS_HEIGHT, SCORE_HEIGHT, SAMPLE_HEIGHT, HEAD_HEIGHT = 2.4, 3.0, 3.4, 0.8
BAR_HEIGHT = 0.3
MOST_SAMPLES = 6
LONGEST_LINE = 150
SHADES = ("#c9ced6", "#8fa3bd", "#5b84c4", "#1f4f9f")
HATCHES = ("", "//", "..", "")
LINES = ("#1f5fbf", "#c2510c", "#1a7f4b", "#a3268a", "#7a5a1e", "#4b5563")
"""The page's colours of curves."""
STYLES = ("-", "--", ":")

assert (len(LINES), len(STYLES)) == (COLOURS, len(DASHES))

Row = tuple[float, Callable[[Any, Report], None]]
"""Height in inches, and what draws it."""


def picture_bytes(report: Report) -> bytes:
    """One run, or several in the same panels, as a PNG."""
    rows = rows_of(report)
    height = HEAD_HEIGHT + sum(height for height, _ in rows)
    figure = Figure(figsize=(WIDTH, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title_of(report), fontsize=11, x=0.01, ha="left")
    if rows:
        heights = [height for height, _ in rows]
        parts = figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, (_, draw) in zip(parts, rows, strict=True):
            draw(part, report)
    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    return drawn.getvalue()


def rows_of(report: Report) -> list[Row]:
    """What there is something for."""
    runs = report.runs.values()
    rows: list[Row] = []
    if any(run.run.losses for run in runs):
        rows.append((LOSS_HEIGHT, draw_losses))
    if len(runs) > 1:
        # The names of the runs stand at the bars, or alone where there are none.
        return [*rows, (1 + BAR_HEIGHT * len(runs), draw_bars)]
    if report.headlines:
        rows.append((SCORE_HEIGHT, draw_scores))
    if report.only.run.gallery:
        rows.append((SAMPLE_HEIGHT, draw_samples))
    return rows


def title_of(report: Report) -> str:
    """The run with its facts, or how many there are."""
    if len(report.runs) > 1:
        return f"{len(report.runs)} runs"
    ((name, run),) = report.runs.items()
    facts = [f"{what}: {value}" for what, value in size_facts(run.scores).items()]
    # Lines break between facts, not inside one.
    kept = textwrap.wrap("   ".join(fact.replace(" ", "\u00a0") for fact in facts), 130)
    return plain("\n".join([name, *kept]))


def draw_losses(part: Any, report: Report) -> None:
    """One panel a task, one curve a run."""
    losses = by_task({name: run.run.losses for name, run in report.runs.items()})
    panels = part.subplots(1, len(losses), squeeze=False)[0]
    for axes, (task, curves) in zip(panels, losses.items(), strict=True):
        for place, curve in enumerate(curves.values()):
            points = thinned(curve, 400)
            axes.plot([x for x, _ in points], [y for _, y in points], **look(place))
        axes.set_title(plain(f"loss, {task or 'all tasks'}"), fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.set_ylim(bottom=0)
        tidy(axes)


def look(place: int) -> dict[str, str]:
    """Colour and dashes of the run at a place."""
    return {
        "color": LINES[place % COLOURS],
        "linestyle": STYLES[place // COLOURS % len(STYLES)],
    }


def tidy(axes: Any) -> None:
    """Small numbers, and no box around the panel."""
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def draw_bars(part: Any, report: Report) -> None:
    """One panel a task, one bar a run with its interval; a key of the curves before each name."""
    names = list(report.runs)
    headlines = report.headlines or [("", "")]
    panels = part.subplots(1, len(headlines), squeeze=False, sharey=True)[0]
    for axes, (task, metric) in zip(panels, headlines, strict=True):
        for place, run in enumerate(report.runs.values()):
            value, result = run.score(task, metric), run.result(task, metric)
            axes.barh(place, value or 0.0, color=look(place)["color"], height=0.6, alpha=0.35)
            axes.plot([0, value or 0.0], [place, place], **look(place))
            if value is not None and result is not None and result.interval is not None:
                ends = [[value - result.interval.low], [result.interval.high - value]]
                axes.errorbar(value, place, xerr=ends, color="black", capsize=3, linewidth=1)
            axes.annotate(
                score_text(value), (0, place), xytext=(3, 6), textcoords="offset points",
                fontsize=7, va="center",
            )  # fmt: skip
        axes.set_title(plain(f"{task}, {metric}" if task else ""), fontsize=10)
        axes.set_yticks(range(len(names)), [plain(textwrap.fill(name, 28)) for name in names])
        axes.set_xlim(left=0)
        tidy(axes)
    panels[0].invert_yaxis()


def draw_scores(part: Any, report: Report) -> None:
    """One panel a task, one bar a model, its score on top and the run's own with its interval."""
    run = report.only
    tasks = {name: task for name, task in run.scores.tasks.items() if task.metrics}
    panels = part.subplots(1, len(tasks), squeeze=False)[0]
    for axes, (name, task) in zip(panels, tasks.items(), strict=True):
        metric, columns = task.metrics[0], run.scores.columns
        values = [task.by_column.get(label, {}).get(metric) for label in columns]
        bars = axes.bar(range(len(columns)), [value or 0.0 for value in values])
        for place, bar in enumerate(bars):
            bar.set_facecolor(SHADES[place % len(SHADES)])
            bar.set_hatch(HATCHES[place % len(HATCHES)])
            bar.set_edgecolor("white")
        tops = [value or 0.0 for value in values]
        result = run.result(name, metric)
        if result is not None and result.interval is not None:
            ends = [[result.value - result.interval.low], [result.interval.high - result.value]]
            axes.errorbar(len(columns) - 1, result.value, yerr=ends, color="black", capsize=3)
            tops[-1] = result.interval.high
        for place, (top, value) in enumerate(zip(tops, values, strict=True)):
            axes.annotate(
                score_text(value), (place, top), xytext=(0, 2), textcoords="offset points",
                fontsize=8, ha="center",
            )  # fmt: skip
        axes.set_xticks(range(len(columns)), [plain(textwrap.fill(c, 12)) for c in columns])
        axes.set_title(plain(f"{name}, {metric}"), fontsize=10)
        axes.set_xlim(-0.6, max(len(columns), 3) - 0.4)
        axes.set_ylim(0, 1.1 * max(1.0, *(value or 0.0 for value in values)))
        tidy(axes)


def draw_samples(part: Any, report: Report) -> None:
    """A few samples, of all tasks in turn."""
    run = report.only.run
    chosen = in_turn(run.gallery)[:MOST_SAMPLES]
    panels = part.subplots(1, MOST_SAMPLES, squeeze=False)[0]
    for axes in panels:
        axes.axis("off")
    for axes, entry in zip(panels, chosen, strict=False):
        pictures = [
            open_picture(read_file(path))
            for name in entry.images
            if (path := run.folder / name).is_file()
        ]
        if pictures:
            axes.imshow(beside(pictures))
            axes.set_anchor("N")
        verdict = {True: "right", False: "WRONG", None: ""}[entry.correct]
        sure = "" if entry.confidence is None else f"{100 * entry.confidence:.0f} % sure"
        lines = [entry.prompt, f"answer: {reference_lines(entry)[0]}", f"model: {entry.prediction}"]
        lines.append("  ".join(filter(None, [verdict, sure])))
        text = "\n".join(textwrap.fill(shorten(line), 30) for line in lines if line)
        axes.set_title(plain(visible(text)), fontsize=8, loc="left", y=-0.08, va="top")


def in_turn(entries: Sequence[GalleryEntry]) -> list[GalleryEntry]:
    """The first of every task, then the second of every task, ..."""
    seen: dict[str, int] = {}
    turns = []
    for entry in entries:
        turns.append(seen.get(entry.task, 0))
        seen[entry.task] = turns[-1] + 1
    return [entries[place] for place in sorted(range(len(entries)), key=lambda n: turns[n])]


def beside(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures side by side on white, with a gap."""
    gap = max(2, pictures[0].width // 16)
    width = sum(image.width for image in pictures) + gap * (len(pictures) - 1)
    joined = Image.new("RGB", (width, max(image.height for image in pictures)), "white")
    left = 0
    for image in pictures:
        joined.paste(image.convert("RGB"), (left, 0))
        left += image.width + gap
    return joined


def shorten(line: str) -> str:
    """A line that leaves room for the others."""
    return line if len(line) <= LONGEST_LINE else line[: LONGEST_LINE - 4] + " ..."


def plain(text: str) -> str:
    """Text in which matplotlib reads no formula."""
    return text.replace("$", r"\$")

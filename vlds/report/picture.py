"""The report as one PNG: loss curves, scores beside each other, a few samples."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from vlds.report.inputs import GalleryEntry, RunInputs, read_run
from vlds.report.numbers import score_text, thinned
from vlds.report.page import named_apart, reference_lines
from vlds.report.tables import fact_rows

WIDTH = 12.0
"""Inches; 100 pixels each."""
LOSS_HEIGHT, SCORE_HEIGHT, SAMPLE_HEIGHT, HEAD_HEIGHT = 2.4, 3.0, 3.4, 0.8
MOST_SAMPLES = 6
SHADES = ("#c9ced6", "#8fa3bd", "#5b84c4", "#1f4f9f")
HATCHES = ("", "//", "..", "")


def write_picture(run_folders: Sequence[Path], path: Path) -> None:
    """Draw one or several runs, one below the other.

    Errors: ValueError where a folder holds no run.
    """
    runs = named_apart([read_run(folder) for folder in run_folders])
    heights = [sum(height for height, _ in rows_of(run)) + HEAD_HEIGHT for run in runs.values()]
    figure = Figure(figsize=(WIDTH, sum(heights)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    blocks = figure.subfigures(len(runs), 1, height_ratios=heights, squeeze=False)[:, 0]
    for block, (name, run) in zip(blocks, runs.items(), strict=True):
        draw_run(block, name, run)
    figure.savefig(path, format="png")


def rows_of(run: RunInputs) -> list[tuple[float, Any]]:
    """Height and drawing of each row that the run has something for."""
    rows: list[tuple[float, Any]] = []
    if run.losses:
        rows.append((LOSS_HEIGHT, draw_losses))
    if any(task.metrics for task in run.scores.tasks.values()):
        rows.append((SCORE_HEIGHT, draw_scores))
    if run.gallery:
        rows.append((SAMPLE_HEIGHT, draw_samples))
    return rows


def draw_run(block: Any, name: str, run: RunInputs) -> None:
    """Title with the facts, then the rows."""
    facts = [f"{what}: {value}" for what, value in fact_rows(run.scores)]
    # Lines break between facts, not inside one.
    kept = textwrap.wrap("   ".join(fact.replace(" ", "\u00a0") for fact in facts), 130)
    title = "\n".join([name, *kept])
    block.suptitle(title.replace("$", r"\$"), fontsize=11, x=0.01, ha="left")
    rows = rows_of(run)
    if rows:
        parts = block.subfigures(
            len(rows), 1, height_ratios=[height for height, _ in rows], squeeze=False
        )[:, 0]
        for part, (_, draw) in zip(parts, rows, strict=True):
            draw(part, run)


def draw_losses(part: Any, run: RunInputs) -> None:
    """One panel a curve."""
    panels = part.subplots(1, len(run.losses), squeeze=False)[0]
    for axes, (task, curve) in zip(panels, run.losses.items(), strict=True):
        points = thinned(curve, 400)
        axes.plot([x for x, _ in points], [y for _, y in points], color=SHADES[-1])
        axes.set_title(plain(f"loss, {task or 'all tasks'}"), fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)


def draw_scores(part: Any, run: RunInputs) -> None:
    """One panel a task, one bar a model, its score on top."""
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
        axes.bar_label(bars, [score_text(value) for value in values], fontsize=8)
        axes.set_xticks(range(len(columns)), [plain(textwrap.fill(c, 12)) for c in columns])
        axes.set_title(plain(f"{name}, {metric}"), fontsize=10)
        axes.set_xlim(-0.6, max(len(columns), 3) - 0.4)
        axes.set_ylim(0, 1.1 * max(1.0, *(value or 0.0 for value in values)))
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)


def draw_samples(part: Any, run: RunInputs) -> None:
    """A few samples, of all tasks in turn."""
    chosen = in_turn(run.gallery)[:MOST_SAMPLES]
    panels = part.subplots(1, MOST_SAMPLES, squeeze=False)[0]
    for axes in panels:
        axes.axis("off")
    for axes, entry in zip(panels, chosen, strict=False):
        pictures = [
            Image.open(path) for name in entry.images if (path := run.folder / name).is_file()
        ]
        if pictures:
            axes.imshow(beside(pictures))
            axes.set_anchor("N")
        verdict = {True: "right", False: "WRONG", None: ""}[entry.correct]
        lines = [entry.prompt, f"answer: {reference_lines(entry)[0]}", f"model: {entry.prediction}"]
        text = "\n".join(textwrap.fill(line, 30) for line in [*lines, verdict] if line)
        axes.set_title(plain(text), fontsize=8, loc="left", y=-0.08, va="top")


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


def plain(text: str) -> str:
    """Text in which matplotlib reads no formula."""
    return text.replace("$", r"\$")

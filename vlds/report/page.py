"""The report as one HTML file: no script, no network, pictures inside."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path

from PIL import Image

from vlds.report.charts import line_chart
from vlds.report.inputs import Curve, GalleryEntry, RunInputs, read_run
from vlds.report.style import STYLE
from vlds.report.tables import comparison_table, detail_table, fact_table, score_table

SMALL_PICTURE = 128
"""Pictures below this size are enlarged with hard edges."""

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def build_report(run_folders: list[Path]) -> str:
    """The page about one or several runs.

    Errors: ValueError where a folder holds no run.
    """
    runs = named_apart([read_run(folder) for folder in run_folders])
    title = next(iter(runs)) if len(runs) == 1 else f"{len(runs)} runs"
    comparison = ""
    if len(runs) > 1:
        beside = comparison_table({name: run.scores for name, run in runs.items()})
        comparison = f"<h3>Side by side</h3>{beside}"
    sections = "".join(run_section(name, run) for name, run in runs.items())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(title)}: report</title><style>{STYLE}</style></head><body>"
        f"<h1>Report</h1>{comparison}{sections}</body></html>\n"
    )


def named_apart(runs: Sequence[RunInputs]) -> dict[str, RunInputs]:
    """Runs by name; by the whole path where names are not different."""
    names = [run.name for run in runs]
    return {run.name if names.count(run.name) == 1 else str(run.folder): run for run in runs}


def run_section(name: str, run: RunInputs) -> str:
    """All about one run; parts that it lacks are left out."""
    details = detail_table(run.scores)
    folded = f"<details><summary>All scores</summary>{details}</details>" if details else ""
    recipe = (
        f"<details><summary>Recipe</summary><pre>{escape(run.recipe)}</pre></details>"
        if run.recipe
        else ""
    )
    losses = {task or "all tasks": curve for task, curve in run.losses.items()}
    scores = {task: curve for task, curve in run.score_curves.items() if len(curve) > 1}
    return (
        f'<section><h2>{escape(name)}</h2><p class="faint">{escape(str(run.folder))}</p>'
        + titled("Scores", score_table(run.scores) + folded)
        + titled("Size and speed", fact_table(run.scores))
        + titled("Loss", charts(losses, None))
        + titled("Score during training", charts(scores, (0.0, 1.0)))
        + titled("Samples", gallery(run))
        + recipe
        + "</section>"
    )


def titled(title: str, content: str) -> str:
    """A heading over what is there."""
    return f"<h3>{escape(title)}</h3>{content}" if content else ""


def charts(curves: Mapping[str, Curve], y_range: tuple[float, float] | None) -> str:
    """A panel for each curve; scores above 1 (CIDEr) stretch their own panel."""
    panels = ""
    for name, curve in curves.items():
        fits = y_range is not None and all(y_range[0] <= y <= y_range[1] for _, y in curve)
        panels += line_chart(name, curve, y_range=y_range if fits else None)
    return f'<div class="charts">{panels}</div>' if panels else ""


def gallery(run: RunInputs) -> str:
    """Sample pictures, task by task."""
    tasks = list(dict.fromkeys(entry.task for entry in run.gallery))
    return "".join(
        f'<h4>{escape(task)}</h4><div class="gallery">'
        + "".join(sample(entry, run.folder) for entry in run.gallery if entry.task == task)
        + "</div>"
        for task in tasks
    )


def sample(entry: GalleryEntry, folder: Path) -> str:
    """Pictures, prompt, reference and prediction of one example."""
    pictures = "".join(picture(folder / name, entry.id) for name in entry.images)
    reference = "<br>".join(map(escape, reference_lines(entry)))
    return (
        f'<figure class="sample"><div class="pictures">{pictures}</div><figcaption><dl>'
        f"<dt>input</dt><dd>{escape(entry.prompt)}</dd>"
        f"<dt>answer</dt><dd>{reference}</dd>"
        f"<dt>model</dt><dd>{escape(entry.prediction) or '(nothing)'} {mark(entry.correct)}</dd>"
        "</dl></figcaption></figure>"
    )


def reference_lines(entry: GalleryEntry) -> list[str]:
    """The reference as lines; at most five of them."""
    given = [entry.reference] if isinstance(entry.reference, str) else list(entry.reference)
    return given[:5] + (["..."] if len(given) > 5 else [])


def mark(correct: bool | None) -> str:
    """Right or wrong in a word, a sign and a colour."""
    if correct is None:
        return ""
    kind, sign = ("right", "&#10003;") if correct else ("wrong", "&#10007;")
    return f'<span class="mark {kind}">{sign} {kind}</span>'


def picture(path: Path, alternative: str) -> str:
    """A picture inside the page; a word in its place where the file is gone."""
    if not path.is_file():
        return f'<span class="faint">{escape(path.name)} is missing</span>'
    data = path.read_bytes()
    with Image.open(BytesIO(data)) as image:
        kind, size = Image.MIME[image.format or "PNG"], image.size
    tiny = ' class="tiny"' if max(size) < SMALL_PICTURE else ""
    encoded = base64.b64encode(data).decode()
    return (
        f'<img{tiny} width="{size[0]}" height="{size[1]}" alt="picture of {escape(alternative)}" '
        f'src="data:{kind};base64,{encoded}">'
    )

"""The report as one HTML file: no script, no network, pictures inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vlds.report.beside import merged
from vlds.report.cards import gallery
from vlds.report.charts import by_task, legend, line_chart
from vlds.report.collect import Report, RunReport
from vlds.report.details import folded_details
from vlds.report.facts import size_facts
from vlds.report.inputs import Curve
from vlds.report.style import STYLE
from vlds.report.tables import comparison_table, difference_table, fact_table, score_table
from vlds.runtime.shown import escape

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def build_page(report: Report) -> str:
    """The page about one or several runs."""
    first, *others = report.runs
    title = f"{len(report.runs)} runs" if others else first
    body = compared(report) if others else single(report)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(title)}: report</title><style>{STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1>{body}</body></html>\n"
    )


def single(report: Report) -> str:
    """All about one run; parts that it lacks are left out."""
    run = report.only
    scores = score_table(run)
    return (
        f'<p class="faint">{escape(str(run.run.folder))}</p>{notes(run.notes)}'
        + titled("Scores", scores and scores + notes(report.interval_notes))
        + folded_details(run.scores)
        + titled("Training, size and speed", fact_table({**run.facts, **size_facts(run.scores)}))
        + curves(report)
        + titled("Samples", gallery(report))
        + recipe_fold(run)
    )


def compared(report: Report) -> str:
    """Several runs: what they share in one table and one chart, then the rest of each."""
    differences = difference_table(report)
    return (
        titled("Side by side", comparison_table(report) + notes(report.interval_notes))
        + titled(
            f"Compared with {report.baseline}",
            differences
            and "<p>Paired differences: the same examples are drawn for both runs. Bold: "
            f"the interval does not hold 0.</p>{differences}",
        )
        + curves(report)
        + titled("All scores", folded_details(merged(report)))
        + titled("Samples", gallery(report))
        + titled("Runs", "".join(run_fold(name, run) for name, run in report.runs.items()))
    )


def run_fold(name: str, run: RunReport) -> str:
    """What is of one run alone among several."""
    beside = score_table(run) if len(run.scores.columns) > 1 else ""
    return (
        f"<h3>{escape(name)}</h3>"
        f'<p class="faint">{escape(str(run.run.folder))}</p>{notes(run.notes)}{beside}'
        f"<details><summary>Training, size and speed</summary>"
        f"{fact_table({**run.facts, **size_facts(run.scores)})}</details>" + recipe_fold(run)
    )


def recipe_fold(run: RunReport) -> str:
    """The recipe, folded."""
    text = run.run.recipe
    return f"<details><summary>Recipe</summary><pre>{escape(text)}</pre></details>" if text else ""


def curves(report: Report) -> str:
    """Losses, then scores over the steps, all runs in one chart each."""
    runs = {name: run.run for name, run in report.runs.items()}
    names = "" if len(runs) == 1 else legend(list(runs))
    losses = by_task({name: run.losses for name, run in runs.items()})
    scores = by_task({name: run.score_curves for name, run in runs.items()})
    followed = {task: found for task, found in scores.items() if max(map(len, found.values())) > 1}
    loss_charts = "".join(line_chart(task or "all tasks", found) for task, found in losses.items())
    score_charts = "".join(score_chart(task, found) for task, found in followed.items())
    return titled("Loss", grid(names, loss_charts)) + titled(
        "Score during training", grid(names, score_charts)
    )


def score_chart(task: str, found: Mapping[str, Curve]) -> str:
    """Scores from 0 to 1; those above 1 (CIDEr) stretch their own chart."""
    fits = all(0 <= y <= 1 for points in found.values() for _, y in points)
    return line_chart(task, found, y_range=(0.0, 1.0) if fits else None)


def grid(names: str, charts: str) -> str:
    """Charts beside each other under their legend."""
    return f'{names}<div class="charts">{charts}</div>' if charts else ""


def titled(title: str, content: str) -> str:
    """A heading over what is there."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def notes(lines: Sequence[str]) -> str:
    """What else there is to say, small."""
    return "".join(f'<p class="faint">{escape(line)}</p>' for line in lines)

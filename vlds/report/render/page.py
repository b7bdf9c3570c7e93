"""The report as one HTML file: no network, pictures inside, and one script to explore predictions,
without which all else is there."""

from __future__ import annotations

from pathlib import Path

from vlds.report.compute.answers import answers_of
from vlds.report.compute.report import Report
from vlds.report.compute.seeds import seed_notes
from vlds.report.render import charts
from vlds.report.render.cards import gallery
from vlds.report.render.confusion import confusions
from vlds.report.render.explorer import explore
from vlds.report.render.tables import (
    comparison_table,
    difference_table,
    fact_table,
    folded_details,
    headline_heads,
    score_table,
)
from vlds.report.render.training_curves import training_charts
from vlds.runtime.templating import page

LONG_TEXT = 220
"""Characters of a text beyond which it is folded."""
TEMPLATES = Path(__file__).with_name("templates")


def build_page(report: Report) -> str:
    """The page about one or several runs."""
    several = len(report.runs) > 1
    answers = {name: answers_of(run) for name, run in report.runs.items()}
    recipes = {name: run.recipe for name, run in report.runs.items() if run.recipe is not None}
    mistakes = {name: found for name, entry in answers.items() if (found := confusions(entry))}
    explorer = explore(answers, recipes)
    groups = training_charts(report)
    scores = comparison_table(report) if several else score_table(report.only)
    differences = difference_table(report, ["run", *headline_heads(report)])
    cards = gallery(report)
    parts = {
        "scores": "Scores" if scores.rows else "",
        "differences": "Differences" if differences.rows else "",
        "facts": "Size and speed" if not several and fact_table(report.only).rows else "",
        **{group.id: group.title for group in groups},
        "samples": "Samples" if cards else "",
        "mistakes": "Mistakes" if mistakes else "",
        "predictions": "All predictions" if explorer else "",
        "runs": "Runs" if several else "",
    }
    return page(
        TEMPLATES / "report.html",
        TEMPLATES / "explore.js" if explorer else None,
        title=f"{len(report.runs)} runs" if several else report.baseline,
        report=report,
        several=several,
        parts={id: name for id, name in parts.items() if name},
        scores=scores,
        score_notes=[*report.interval_notes, *seed_notes(report)],
        differences=differences,
        all_scores=report.merged(),
        charts=groups,
        names=[(name, charts.look(place)) for place, name in enumerate(report.runs)],
        gallery=cards,
        mistakes_of=mistakes,
        explorer=explorer,
        folded_details=folded_details,
        fact_table=fact_table,
        score_table=score_table,
        LONG_TEXT=LONG_TEXT,
        frame=charts,
    )

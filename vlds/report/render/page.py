"""The report as one HTML file: no network, pictures inside. One script explores predictions; the
rest works without it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vlds.data.shards.thumbnail import PagePicture, page_picture
from vlds.report.compute.answers import answers_of
from vlds.report.compute.report import Report, seed_notes
from vlds.report.read.samples import GalleryEntry
from vlds.report.render import charts, tables
from vlds.report.render.confusion import confusions
from vlds.report.render.explorer import explore
from vlds.report.render.training_curves import training_charts
from vlds.runtime.regular_file import read_file
from vlds.runtime.templating import page

TEMPLATES = Path(__file__).with_name("templates")


def build_page(report: Report) -> str:
    """The page about one or several runs."""
    several = len(report.runs) > 1
    answers = {name: answers_of(run) for name, run in report.runs.items()}
    recipes = {name: run.recipe for name, run in report.runs.items() if run.recipe is not None}
    confused = {name: confusions(by_task) for name, by_task in answers.items()}
    mistakes = {name: entries for name, entries in confused.items() if entries}
    explorer = explore(answers, recipes)
    groups = training_charts(report)
    scores = tables.comparison_table(report) if several else tables.score_table(report.only)
    differences = tables.difference_table(report, ["run", *tables.headline_heads(report)])
    cards = gallery(report)
    parts = {
        "scores": "Scores" if scores.rows else "",
        "differences": "Differences" if differences.rows else "",
        "facts": "Size and speed" if not several and tables.fact_table(report.only).rows else "",
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
        charts=groups,
        gallery=cards,
        mistakes_of=mistakes,
        explorer=explorer,
        tables=tables,
        frame=charts,
    )


@dataclass(frozen=True)
class Card:
    """One example."""

    id: str
    prompt: str
    references: list[str]
    pictures: dict[str, PagePicture | None]
    """Name of the file -> picture; None where the file is gone or damaged."""
    predictions: dict[str, GalleryEntry] = field(default_factory=dict)
    """Run -> its prediction."""


def gallery(report: Report) -> dict[str, list[Card]]:
    """Cards of each task; the same example (task, id, prompt, reference) of several runs is one."""
    cards: dict[str, dict[tuple[str, str, str], Card]] = {}
    for name, run in report.runs.items():
        for entry in run.inputs.gallery:
            asked = (entry.id, entry.prompt, str(entry.reference))
            of_task = cards.setdefault(entry.task, {})
            if asked not in of_task:
                files = [run.inputs.folder / image for image in entry.images]
                pictures = {
                    file.name: page_picture(read_file(file)) if file.is_file() else None
                    for file in files
                }
                of_task[asked] = Card(entry.id, entry.prompt, reference_lines(entry), pictures)
            of_task[asked].predictions[name] = entry
    return {task: list(of_task.values()) for task, of_task in cards.items()}


def reference_lines(entry: GalleryEntry) -> list[str]:
    """The reference as lines; at most five of them."""
    given = [entry.reference] if isinstance(entry.reference, str) else list(entry.reference)
    return given[:5] + (["..."] if len(given) > 5 else [])

"""The report as one HTML file (no network, pictures inside; one script explores predictions, and
the rest works without it), as Markdown, or as CSV."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from vlds.data.shards.pictures import PagePicture, page_picture
from vlds.recipe.config import Recipe
from vlds.report import charts, run_tables
from vlds.report.charts import confusions, training_charts
from vlds.report.collect import report_on
from vlds.report.read import GalleryEntry, RunInputs
from vlds.report.report import MADE, Report, TaskAnswers, answers_of, prompts_of
from vlds.report.run_tables import (
    csv_text,
    difference_table,
    fact_table,
    folded_details,
    headline_heads,
    own_first,
    runs_table,
    score_table,
    seed_notes,
)
from vlds.report.scores import RESAMPLES
from vlds.report.tables import Cell, Table, TableRow, markdown_table, markdown_text
from vlds.runtime.disk import check_writable
from vlds.runtime.files import read_file, write_whole
from vlds.runtime.limited import page, visible_tree

MOST_EXAMPLES = 20_000
"""Examples on the page, over all tasks."""
MOST_SURE_WRONG = 5_000
"""Examples in addition: the surest mistakes."""
MOST_BYTES = 24_000_000
"""Bytes of the examples as JSON."""
MOST_TEXT = 300
"""Characters of a text that are shown."""
SURE = 0.8
"""Probability from which a prediction counts as sure."""
SHOWN_MISTAKES = 12
"""Mistakes in the table for readers without the script."""
MOST_REFERENCES = 5
"""Lines of a reference on a card."""

TEMPLATES = Path(__file__).with_name("templates")

Runs = Mapping[str, Mapping[str, TaskAnswers]]
"""Run -> task -> what it said."""
Key = tuple[str, str]
"""Task and id of an example."""


class Explorer(NamedTuple):
    """All predictions, bounded, for the page's script to filter and search."""

    data: object
    """JSON for the script."""
    sure_wrong: Table
    """The surest mistakes, for readers without the script."""
    notes: Sequence[str]


def explore(runs: Runs, recipes: Mapping[str, Recipe]) -> Explorer | None:
    """The predictions of all runs together; None where there are none."""
    by_task: dict[str, set[str]] = {}
    for tasks in runs.values():
        for task, answers in tasks.items():
            by_task.setdefault(task, set()).update(answers.examples)
    ids = {task: sorted(keys) for task, keys in by_task.items()}
    total = sum(map(len, ids.values()))
    if total == 0:
        return None
    mistakes = [
        (run, (task, key), entry)
        for run, tasks in runs.items()
        for task, answers in tasks.items()
        for key, entry in answers.examples.items()
        if entry.correct is False and entry.confidence is not None and entry.confidence >= SURE
    ]
    mistakes.sort(key=lambda mistake: -(mistake[2].confidence or 0))
    # The first examples of each task: all of small tasks, equally many of the others.
    first: set[Key] = set()
    # The smallest first, since what it leaves goes to the others: [10, 500] of 100 -> 10 and 90.
    by_size = sorted(ids.items(), key=lambda entry: len(entry[1]))
    for index, (task, keys) in enumerate(by_size):
        share = (MOST_EXAMPLES - len(first)) // (len(by_size) - index)
        first |= {(task, key) for key in keys[:share]}
    # Several runs may make the same mistake: a dict keeps the place of the surest one.
    surest = dict.fromkeys(key for _, key, _ in mistakes if key not in first)
    chosen = [*first, *list(surest)[:MOST_SURE_WRONG]]
    task_index = {task: index for index, task in enumerate(ids)}
    chosen.sort(key=lambda key: (task_index[key[0]], key[1]))
    # Prompts are not in the predictions: they are looked up in the data, which takes a while.
    prompts: dict[Key, str] = {}
    for name, recipe in recipes.items():  # the first recipe whose data has an example gives it
        shown = {answers.label: task for task, answers in runs[name].items()}
        wanted = {
            label: {key for of, key in chosen if of == task and (of, key) not in prompts}
            for label, task in shown.items()
        }
        for label, key, prompt in prompts_of(recipe, wanted):
            prompts[shown[label], key] = prompt
    rows = script_rows(runs, chosen, task_index, prompts)
    ways = {  # of the first run that has the task
        task: next(tasks[task].ways for tasks in runs.values() if task in tasks) for task in ids
    }
    data = {
        "runs": list(runs),
        "tasks": [{"name": task, "ways": ways[task]} for task in ids],
        "sure": SURE,
        "rows": rows,
    }
    notes = []
    if len(rows) < total:
        notes.append(
            f"{len(rows):,} of {total:,} examples: the first ones of each task, and up to "
            f"{MOST_SURE_WRONG:,} of the surest mistakes. All are in the run's folder, in "
            "predictions/."
        )
    shown_rows = []
    for run, (task, key), entry in mistakes[:SHOWN_MISTAKES]:
        texts = (prompts.get((task, key), ""), entry.references, entry.prediction)
        cells = [Cell(clipped(text) or "-", "") for text in texts]
        cells.append(Cell(f"{100 * (entry.confidence or 0):.0f} %"))
        shown_rows.append(TableRow(task, cells, [key, run] if len(runs) > 1 else [key]))
    heads = ["task", "input", "answer", "said", "sure"]
    return Explorer(visible_tree(data), Table(heads, shown_rows, numbers_from=4), notes)


def script_rows(
    runs: Runs, chosen: Sequence[Key], task_index: Mapping[str, int], prompts: Mapping[Key, str]
) -> list[list[object]]:
    """Examples as the script reads them, until they are too many bytes for a page: index of the
    task, id, input, answer, groups; for each run its prediction, whether that is right, and how
    sure the run was, or null."""
    rows: list[list[object]] = []
    size = 0
    for task, key in chosen:
        entries = [
            tasks[task].examples.get(key) if task in tasks else None for tasks in runs.values()
        ]
        example = next(entry for entry in entries if entry is not None)
        row = [
            task_index[task],
            key,
            clipped(prompts.get((task, key), "")),
            clipped(example.references),
            example.groups,
            [
                entry and [clipped(entry.prediction), entry.correct, entry.confidence]
                for entry in entries
            ],
        ]
        # About what the row takes on the page, which has the same JSON without spaces.
        size += len(json.dumps(row))
        if size > MOST_BYTES:
            break
        rows.append(row)
    return rows


def clipped(text: str) -> str:
    """A text, cut to fit its line."""
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT].rstrip()} ..."


@dataclass(frozen=True)
class Card:
    """One example of the gallery."""

    id: str
    prompt: str
    references: list[str]
    """The reference as lines."""
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
            # Not the id alone: data that changed between runs may keep their ids.
            of_task = cards.setdefault(entry.task, {})
            if asked not in of_task:
                files = [run.inputs.folder / image for image in entry.images]
                pictures = {
                    file.name: page_picture(read_file(file)) if file.is_file() else None
                    for file in files
                }
                given = entry.reference
                lines = [given] if isinstance(given, str) else list(given)
                shown = lines[:MOST_REFERENCES] + ["..."] * (len(lines) > MOST_REFERENCES)
                of_task[asked] = Card(entry.id, entry.prompt, shown, pictures)
            of_task[asked].predictions[name] = entry
    return {task: list(of_task.values()) for task, of_task in cards.items()}


def build_page(report: Report) -> str:
    """The page about one or several runs."""
    several = len(report.runs) > 1
    answers = {name: answers_of(run) for name, run in report.runs.items()}
    recipes = {name: run.recipe for name, run in report.runs.items() if run.recipe is not None}
    confused = {name: confusions(by_task) for name, by_task in answers.items()}
    mistakes = {name: entries for name, entries in confused.items() if entries}
    explorer = explore(answers, recipes)
    groups = training_charts(report)
    all_scores = report.merged() if several else report.only.scores
    scores = runs_table(report, on_page=True) if several else score_table(report.only)
    differences = difference_table(report, ["run", *headline_heads(report)])
    cards = gallery(report)
    # Id of a part -> its title; parts with nothing to show get no link.
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
        details=folded_details(
            all_scores, all_scores.columns if several else own_first(all_scores)
        ),
        charts=groups,
        gallery=cards,
        mistakes_of=mistakes,
        explorer=explorer,
        tables=run_tables,
        frame=charts,
    )


def markdown(report: Report) -> str:
    """A table of the runs, their differences from the first, and what the brackets mean."""
    data = "; ".join(f"{task}: {text}" for task, text in report.data_texts.items())
    blocks = [markdown_table(runs_table(report, on_page=False))]
    blocks += [f"Data: {markdown_text(data)}."] if data else []
    heads = [f"{task} {metric}" for task, metric in report.headlines]
    differences = difference_table(report, [f"minus {report.baseline}", *heads])
    blocks += [markdown_table(differences)] if differences.rows else []
    lines = list(report.interval_notes)
    lines += [f"{name}: {note}" for name, run in report.runs.items() for note in run.notes]
    for name, run in report.runs.items():
        made = [f"{fact} {run.facts[fact]}" for fact in ("seed", *MADE) if fact in run.facts]
        lines += [f"{name}: {'; '.join(made)}"] if made else []
    blocks += map(markdown_text, lines)
    return "\n\n".join(blocks) + "\n"


FORMATS: Mapping[str, Callable[[Report], str]] = {
    "html": build_page,
    "md": markdown,
    "csv": csv_text,
}
"""Suffix of the file -> what makes its text."""


def report_text(runs: Sequence[RunInputs], suffix: str, resamples: int = RESAMPLES) -> str:
    """The report in one of FORMATS.

    Errors: ValueError where a run is named twice.
    """
    return FORMATS[suffix](report_on(runs, resamples, pictures=suffix == "html"))


def write_report(
    runs: Sequence[RunInputs], folder: Path, suffix: str = "html", resamples: int = RESAMPLES
) -> Path:
    """Write report.SUFFIX about one or several runs; returns its path.

    Errors: ValueError where a run is named twice, or `folder` cannot be written.
    """
    check_writable(folder, "--out")
    path = folder / f"report.{suffix}"
    write_whole(path, report_text(runs, suffix, resamples))
    return path

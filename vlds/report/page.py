"""The report as one HTML file: no network, pictures inside. One script explores predictions; the
rest works without it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from vlds.data.shards.pictures import PagePicture, page_picture
from vlds.recipe.config import Recipe
from vlds.report import charts, tables
from vlds.report.charts import confusions, training_charts
from vlds.report.collect import report_on
from vlds.report.numbers import RESAMPLES
from vlds.report.read import GalleryEntry, RunInputs
from vlds.report.report import (
    MADE,
    Answered,
    Report,
    RunReport,
    TaskAnswers,
    answers_of,
    prompts_of,
    seed_notes,
)
from vlds.report.tables import (
    Cell,
    Row,
    Table,
    csv_text,
    difference_table,
    markdown_table,
    markdown_text,
    paper_table,
    short_heads,
)
from vlds.runtime.disk import check_writable
from vlds.runtime.files import read_file, write_whole
from vlds.runtime.limited import page, visible_tree

# All predictions on the page, bounded, for its script to filter and search.


MOST_EXAMPLES = 20_000
"""On the page, over all tasks."""
MOST_SURE_WRONG = 5_000
"""In addition: the surest mistakes."""
MOST_BYTES = 24_000_000
"""Of the examples as JSON."""
MOST_TEXT = 300
"""Characters of a text that are shown."""
SURE = 0.8
"""Probability from which a prediction counts as sure."""
SHOWN_MISTAKES = 12
"""In the table for readers without the script."""

Runs = Mapping[str, Mapping[str, TaskAnswers]]
"""Run -> task -> what it said."""
Key = tuple[str, str]
"""Task and id of an example."""
Prompts = Mapping[Key, str]
"""What was asked."""


class Mistake(NamedTuple):
    """A wrong prediction that was sure."""

    run: str
    key: Key
    entry: Answered


class Explorer(NamedTuple):
    """What the page shows of all predictions."""

    data: object
    """For the script."""
    sure_wrong: Table
    notes: Sequence[str]


def explore(runs: Runs, recipes: Mapping[str, Recipe]) -> Explorer | None:
    """The predictions of all runs together; None where there are none."""
    ids = ids_of(runs)
    total = sum(map(len, ids.values()))
    if total == 0:
        return None
    mistakes = sorted(sure_mistakes(runs), key=lambda mistake: -(mistake.entry.confidence or 0))
    first = first_of_each(ids, MOST_EXAMPLES)
    besides = set(mistake.key for mistake in mistakes) - first
    surest = dict.fromkeys(mistake.key for mistake in mistakes if mistake.key in besides)
    chosen = [*first, *list(surest)[:MOST_SURE_WRONG]]
    task_index = {task: index for index, task in enumerate(ids)}
    chosen.sort(key=lambda key: (task_index[key[0]], key[1]))
    prompts = all_prompts(runs, recipes, chosen)
    rows = list(bounded(rows_of(runs, chosen, task_index, prompts), MOST_BYTES))
    data = {
        "runs": list(runs),
        "tasks": [{"name": task, "ways": ways_of(runs, task)} for task in ids],
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
    return Explorer(visible_tree(data), mistake_table(mistakes, prompts, len(runs) > 1), notes)


def ids_of(runs: Runs) -> dict[str, list[str]]:
    """Task -> ids of its examples, of all runs, in order."""
    ids: dict[str, set[str]] = {}
    for by_task in runs.values():
        for task, answers in by_task.items():
            ids.setdefault(task, set()).update(answers.examples)
    return {task: sorted(keys) for task, keys in ids.items()}


def first_of_each(ids: Mapping[str, Sequence[str]], most: int) -> set[Key]:
    """The first examples of each task: all of small tasks, equally many of the others."""
    chosen: set[Key] = set()
    by_size = sorted(ids.items(), key=lambda entry: len(entry[1]))
    for index, (task, keys) in enumerate(by_size):
        share = (most - len(chosen)) // (len(by_size) - index)
        chosen |= {(task, key) for key in keys[:share]}
    return chosen


def sure_mistakes(runs: Runs) -> list[Mistake]:
    """Wrong predictions of a probability of at least SURE."""
    return [
        Mistake(run, (task, key), entry)
        for run, by_task in runs.items()
        for task, answers in by_task.items()
        for key, entry in answers.examples.items()
        if entry.correct is False and entry.confidence is not None and entry.confidence >= SURE
    ]


def ways_of(runs: Runs, task: str) -> Sequence[str]:
    """Ways in which a task's examples are grouped, in the first run that has it."""
    return next((by_task[task].ways for by_task in runs.values() if task in by_task), ())


def all_prompts(runs: Runs, recipes: Mapping[str, Recipe], chosen: Sequence[Key]) -> Prompts:
    """The inputs of the chosen examples, from the data of the first recipes that have them."""
    prompts: dict[Key, str] = {}
    for name, recipe in recipes.items():
        shown = {answers.label: task for task, answers in runs[name].items()}
        wanted = {
            label: {key for of, key in chosen if of == task and (of, key) not in prompts}
            for label, task in shown.items()
        }
        for label, key, prompt in prompts_of(recipe, wanted):
            prompts[shown[label], key] = prompt
    return prompts


def rows_of(
    runs: Runs, chosen: Sequence[Key], task_index: Mapping[str, int], prompts: Prompts
) -> Iterator[list[object]]:
    """Index of the task, id, input, answer, groups; for each run its prediction, whether that is
    right, and how sure the run was."""
    for task, key in chosen:
        entries = [
            by_task[task].examples.get(key) if task in by_task else None
            for by_task in runs.values()
        ]
        example = next(entry for entry in entries if entry is not None)
        yield [
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


def bounded(rows: Iterator[list[object]], most: int) -> Iterator[list[object]]:
    """Rows until they are too many bytes for a page."""
    size = 0
    for row in rows:
        size += len(json.dumps(row))
        if size > most:
            return
        yield row


def clipped(text: str) -> str:
    """A text, cut to fit its line."""
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT].rstrip()} ..."


def mistake_table(mistakes: Sequence[Mistake], prompts: Prompts, several: bool) -> Table:
    """The surest mistakes, for readers without a script."""
    rows = []
    for mistake in mistakes[:SHOWN_MISTAKES]:
        task, key = mistake.key
        texts = (prompts.get(mistake.key, ""), mistake.entry.references, mistake.entry.prediction)
        cells = [Cell(clipped(text) or "-", "") for text in texts]
        sure = Cell(f"{100 * (mistake.entry.confidence or 0):.0f} %")
        rows.append(Row(task, [*cells, sure], [key, mistake.run] if several else [key]))
    return Table(["task", "input", "answer", "said", "sure"], rows, numbers_from=4)


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


# Writes the report: a page, Markdown to paste into a repository or an issue, or CSV.


def markdown(report: Report) -> str:
    """A table of the runs, their differences from the first, and what the brackets mean."""
    data = "; ".join(f"{task}: {text}" for task, text in report.data_texts.items())
    blocks = [markdown_table(paper_table(report))]
    blocks += [f"Data: {markdown_text(data)}."] if data else []
    differences = difference_table(report, [f"minus {report.baseline}", *short_heads(report)])
    blocks += [markdown_table(differences)] if differences.rows else []
    lines = list(report.interval_notes)
    lines += [f"{name}: {note}" for name, run in report.runs.items() for note in run.notes]
    lines += [f"{name}: {made}" for name, run in report.runs.items() if (made := how_made(run))]
    blocks += map(markdown_text, lines)
    return "\n\n".join(blocks) + "\n"


def how_made(run: RunReport) -> str:
    """When, where and with what a run was trained, in one line."""
    names = ("seed", *MADE)
    known = (name for name in names if name in run.facts)
    return "; ".join(f"{name} {run.facts[name]}" for name in known)


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

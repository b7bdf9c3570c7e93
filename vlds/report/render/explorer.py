"""All predictions on the page, bounded, for its script to filter and search."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from vlds.config import Recipe
from vlds.report.compute.answers import Answered, TaskAnswers
from vlds.report.read.questions import prompts_of
from vlds.report.render.table import Cell, Row, Table
from vlds.runtime.templating import visible_tree

MOST_EXAMPLES = 20_000
"""On the page, over all tasks."""
MOST_SURE_WRONG = 5_000
"""Besides them: the surest mistakes."""
MOST_BYTES = 24_000_000
"""Of the examples as JSON."""
MOST_TEXT = 300
"""Characters of a text."""
SURE = 0.8
"""Probability from which a prediction counts as sure."""
SHOWN_MISTAKES = 12
"""Without the script."""

Runs = Mapping[str, Mapping[str, TaskAnswers]]
"""Run -> task -> what it said."""
Key = tuple[str, str]
"""Task and id of an example."""
Prompts = Mapping[str, Mapping[str, str]]
"""Task -> id -> what was asked."""


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
    mistakes = sorted(sure_mistakes(runs), key=lambda made: -(made.entry.confidence or 0))
    first = first_of_each(ids, MOST_EXAMPLES)
    besides = set(mistake.key for mistake in mistakes) - first
    surest = dict.fromkeys(made.key for made in mistakes if made.key in besides)
    chosen = [*first, *list(surest)[:MOST_SURE_WRONG]]
    places = {task: place for place, task in enumerate(ids)}
    chosen.sort(key=lambda key: (places[key[0]], key[1]))
    prompts = all_prompts(runs, recipes, chosen)
    rows = list(bounded(rows_of(runs, chosen, places, prompts), MOST_BYTES))
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
    for found in runs.values():
        for task, answers in found.items():
            ids.setdefault(task, set()).update(answers.examples)
    return {task: sorted(keys) for task, keys in ids.items()}


def first_of_each(ids: Mapping[str, Sequence[str]], most: int) -> set[Key]:
    """The first examples of each task: all of small tasks, equally many of the others."""
    chosen: set[Key] = set()
    by_size = sorted(ids.items(), key=lambda entry: len(entry[1]))
    for place, (task, keys) in enumerate(by_size):
        share = (most - len(chosen)) // (len(by_size) - place)
        chosen |= {(task, key) for key in keys[:share]}
    return chosen


def sure_mistakes(runs: Runs) -> list[Mistake]:
    """Wrong predictions of a probability of at least SURE."""
    return [
        Mistake(run, (task, key), entry)
        for run, found in runs.items()
        for task, answers in found.items()
        for key, entry in answers.examples.items()
        if entry.correct is False and entry.confidence is not None and entry.confidence >= SURE
    ]


def ways_of(runs: Runs, task: str) -> Sequence[str]:
    """Ways in which a task's examples are grouped, in the first run that has it."""
    return next((found[task].ways for found in runs.values() if task in found), ())


def all_prompts(
    runs: Runs, recipes: Mapping[str, Recipe], chosen: Sequence[Key]
) -> dict[str, dict[str, str]]:
    """The inputs of the chosen examples, from the data of the first recipes that have them."""
    missing: dict[str, set[str]] = {}
    for task, key in chosen:
        missing.setdefault(task, set()).add(key)
    prompts: dict[str, dict[str, str]] = {}
    for name, recipe in recipes.items():
        labels = {answers.label: task for task, answers in runs[name].items()}
        wanted = {label: missing.get(task, ()) for label, task in labels.items()}
        for label, found in prompts_of(recipe, wanted).items():
            task = labels[label]
            prompts.setdefault(task, {}).update(found)
            missing[task] -= found.keys()
    return prompts


def rows_of(
    runs: Runs, chosen: Sequence[Key], places: Mapping[str, int], prompts: Prompts
) -> Iterator[list[object]]:
    """Index of the task, id, input, answer, groups; for each run its prediction, whether that is
    right, and how sure the run was."""
    for task, key in chosen:
        entries = [
            found[task].examples.get(key) if task in found else None for found in runs.values()
        ]
        example = next(entry for entry in entries if entry is not None)
        yield [
            places[task],
            key,
            clipped(prompts.get(task, {}).get(key, "")),
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
    """A text of a length that fits its line."""
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT].rstrip()} ..."


def mistake_table(mistakes: Sequence[Mistake], prompts: Prompts, several: bool) -> Table:
    """The surest mistakes, for readers without a script."""
    rows = []
    for made in mistakes[:SHOWN_MISTAKES]:
        task, key = made.key
        texts = (prompts.get(task, {}).get(key, ""), made.entry.references, made.entry.prediction)
        cells = [Cell(clipped(text) or "-", "") for text in texts]
        sure = Cell(f"{100 * (made.entry.confidence or 0):.0f} %")
        rows.append(Row(task, [*cells, sure], [key, made.run] if several else [key]))
    return Table(["task", "input", "answer", "said", "sure"], rows, numbers_from=4)

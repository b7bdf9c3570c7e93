"""Every example of a run with what it said: right or wrong, how sure, and of which part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import product
from typing import Any, NamedTuple

from vlds.metrics.tables import split as cell_of
from vlds.report.compute.collect import RunReport
from vlds.report.read.predictions import Predictions, newest_predictions, read_predictions
from vlds.tasks.base import SPLITS, Task, label_of

NOT_ITS_REFERENCES = (ValueError, KeyError, TypeError, AttributeError, IndexError)
"""What is raised where predictions are damaged, or their references are another task's; the report
says it with the scores."""


class Answered(NamedTuple):
    """One example and what a run said."""

    answer: str | None
    """The one that counts as right; None where the task has no such thing."""
    references: str
    """All that would be right, to read."""
    groups: tuple[str | None, ...]
    """The example's part, for each way of `TaskAnswers.ways`."""
    prediction: str
    correct: bool | None
    confidence: float | None


class TaskAnswers(NamedTuple):
    """One task of a run."""

    label: str
    """Of the task's list in the recipe."""
    task: Task
    ways: tuple[str, ...]
    """In which the task's scores are parted: answer_type, structural, ..."""
    examples: Mapping[str, Answered]
    """By id."""


def answers_of(run: RunReport) -> dict[str, TaskAnswers]:
    """The newest predictions of each task and list of test data that can be read, by the name that
    is shown."""
    if run.recipe is None:
        return {}
    tasks, files = run.recipe.tasks, newest_predictions(run.run.folder)
    found = {}
    for name, split in product(tasks, SPLITS):
        if (label := label_of(name, split)) not in files:
            continue
        with suppress(*NOT_ITS_REFERENCES):
            shown = run.shown_as.get(label, label)
            result = run.results.get(shown)
            ways = ways_of(result.scores if result else ())
            task, made = tasks[name], read_predictions(files[label])
            examples = {key: answered(task, key, made, ways) for key in made.predictions}
            found[shown] = TaskAnswers(label, task, ways, examples)
    return found


def ways_of(scores: Iterable[str]) -> tuple[str, ...]:
    """In which ways some scores are parted."""
    cells = filter(None, map(cell_of, scores))
    return tuple(dict.fromkeys(way for _, way, _ in cells))


def answered(task: Task, key: str, made: Predictions, ways: tuple[str, ...]) -> Answered:
    """One example."""
    reference, prediction = made.references[key], made.predictions[key]
    known = reference is not None
    answer = task.answer_of(reference) if known else None
    return Answered(
        answer=answer,
        references=references_text(reference) if answer is None else answer,
        groups=tuple(group_of(reference, way) for way in ways),
        prediction=prediction,
        correct=task.correct(prediction, reference) if known else None,
        confidence=made.confidences.get(key),
    )


def references_text(reference: Any) -> str:
    """A reference without a best answer: its texts, as lines."""
    texts = reference if isinstance(reference, list) else [reference]
    return "\n".join(text for text in texts if isinstance(text, str))


def group_of(reference: Any, way: str) -> str | None:
    """The part of an example, where its reference says it."""
    group = reference.get(way) if isinstance(reference, dict) else None
    return str(group) if isinstance(group, str | int | bool) else None

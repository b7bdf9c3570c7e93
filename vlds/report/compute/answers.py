"""Every example of a run with its answer: right or wrong, how sure, and in which groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from vlds.metrics.tables import split as cell_of
from vlds.report.compute.report import RunReport
from vlds.report.read.predictions import Predictions, texts_of
from vlds.tasks.base import Task, task_of


class Answered(NamedTuple):
    """One example and what a run said."""

    answer: str | None
    """The right one; None where several are right (captions)."""
    references: str
    """All right answers, as lines."""
    groups: tuple[str | None, ...]
    """The example's group, for each way of `TaskAnswers.ways`."""
    prediction: str
    correct: bool | None
    confidence: float | None


class TaskAnswers(NamedTuple):
    """One task of a run."""

    label: str
    """Of the task's list in the recipe."""
    ways: tuple[str, ...]
    """Ways in which the task's examples are grouped: answer_type, structural, ..."""
    examples: Mapping[str, Answered]
    """By id."""


def answers_of(run: RunReport) -> dict[str, TaskAnswers]:
    """What the run answered, by the name that is shown: on each list of its own data."""
    answers = {}
    for shown, made in run.predictions.items():
        if run.recipe is None or not made.is_own:
            continue
        task, result = run.recipe.tasks[task_of(made.label)], run.results.get(shown)
        ways = ways_of(result.scores if result else ())
        examples = {key: answered(task, key, made, ways) for key in made.predictions}
        answers[shown] = TaskAnswers(made.label, ways, examples)
    return answers


def ways_of(scores: Iterable[str]) -> tuple[str, ...]:
    """The ways of grouping that these scores have."""
    cells = filter(None, map(cell_of, scores))
    return tuple(dict.fromkeys(way for _, way, _ in cells))


def answered(task: Task, key: str, made: Predictions, ways: tuple[str, ...]) -> Answered:
    """One example."""
    reference, prediction = made.references[key], made.predictions[key]
    known = reference is not None
    answer = task.answer_of(reference) if known else None
    return Answered(
        answer=answer,
        references="\n".join(texts_of(reference)) if answer is None else answer,
        groups=tuple(group_of(reference, way) for way in ways),
        prediction=prediction,
        correct=task.correct(prediction, reference) if known else None,
        confidence=made.confidences.get(key),
    )


def group_of(reference: Any, way: str) -> str | None:
    """The group of an example, if its reference names one."""
    group = reference.get(way) if isinstance(reference, dict) else None
    return str(group) if isinstance(group, str | int | bool) else None

"""Scores predictions whose references may be damaged or another task's: what a task raises on them
becomes one error that names file and line."""

from __future__ import annotations

from collections.abc import Mapping

from vlds.report.read.predictions import AGAIN, Predictions
from vlds.tasks.base import Task

RAISED = (LookupError, TypeError, AttributeError, ArithmeticError)
"""By tasks on references that are not theirs: they do not check what they have written."""


class DamagedReference(ValueError):
    """A reference that the task cannot read."""


def checked_scores(task: Task, made: Predictions) -> Mapping[str, float]:
    """The task's scores; {} where no reference is known. Afterwards `answer_of` and `correct` can
    read each reference.

    Errors: DamagedReference; ValueError where the scores cannot be computed on this machine.
    """
    for key, reference in made.references.items():
        if reference is not None:
            try:
                task.answer_of(reference)
                task.correct(made.predictions[key], reference)
            except (ValueError, *RAISED) as error:
                raise damaged(task, made, key, error) from None
    try:
        return task.score(made.predictions, made.references)
    except RAISED as error:
        raise damaged(task, made, first_damaged(task, made), error) from None


def damaged(task: Task, made: Predictions, key: str, error: Exception) -> DamagedReference:
    """The error about one example."""
    return DamagedReference(
        f"{made.file}, line {made.lines[key]}: its reference is not one of {type(task).__name__} "
        f"({error!r:.200}); {AGAIN}"
    )


def first_damaged(task: Task, made: Predictions) -> str:
    """Id of the example whose reference makes `score` raise: the last of the shortest beginning
    that cannot be scored, all later ones without a reference."""
    keys = list(made.references)
    scored, raising = 0, len(keys)
    while raising - scored > 1:
        middle = (scored + raising) // 2
        known = {key: made.references[key] for key in keys[:middle]}
        try:
            task.score(made.predictions, dict.fromkeys(keys) | known)
        except RAISED:
            raising = middle
        except ValueError:  # such as nothing to score among these
            scored = middle
        else:
            scored = middle
    return keys[raising - 1]

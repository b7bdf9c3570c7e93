"""Answers of training data that are no class of their task's head: such an example has no class to
learn."""

from __future__ import annotations

from collections.abc import Sequence

from vlds.data.streams.source import Source
from vlds.evaluation.cut_texts import first_examples


def unknown_answers(sources: Sequence[Source]) -> list[str]:
    """What to tell a user where some of the first answers of a task are no class.

    Errors: ValueError where all of them are.
    """
    lines = []
    for source in sources:
        task = source.task
        if task.head is None:
            continue
        examples = [e for e in first_examples(source) if e.class_scores is not None]
        unknown = [e for e in examples if not any((e.class_scores or {}).values())]
        if not unknown:
            continue
        answer = task.answer_of(unknown[0].reference)
        place = f"tasks.{source.name}.head.classes"
        if len(unknown) == len(examples):
            known = ", ".join(task.head.names[:3])
            raise ValueError(
                f"{place}: none of the first {len(examples):,} answers is a class, such as "
                f"{answer!r:.60}; the classes are {known:.60}, ...: give the list of these data"
            )
        lines.append(
            f"{place}: {len(unknown):,} of the first {len(examples):,} answers are no class, such "
            f"as {answer!r:.60}; they train no class, and are scored as wrong"
        )
    return lines

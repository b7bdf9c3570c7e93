"""Which answers a run confuses with which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from vlds.report.compute.answers import TaskAnswers
from vlds.report.render.table import Cell, Row, Table

MOST_PAIRS = 10
MOST_ANSWERS = 6
"""Tasks with at most so many answers get a matrix."""
OTHER = "other"


class Confusion(NamedTuple):
    """One task's mistakes."""

    task: str
    pairs: Table
    matrix: Table | None
    """Answers down, what was said across; for few answers."""


def confusions(answers: Mapping[str, TaskAnswers]) -> list[Confusion]:
    """Of each task whose answers repeat; counts of captions or names would say nothing."""
    confused = (confusion(task, entry) for task, entry in answers.items())
    return [entry for entry in confused if entry is not None]


def confusion(task: str, answers: TaskAnswers) -> Confusion | None:
    """One task's; None if nothing was wrong, or if most answers occur only once."""
    examples = [
        (entry.answer, entry.prediction, entry.correct)
        for entry in answers.examples.values()
        if entry.answer is not None
    ]
    asked = Counter(answer for answer, _, _ in examples)
    wrong = Counter((answer, said) for answer, said, correct in examples if correct is False)
    if not wrong or 2 * len(asked) > asked.total():
        return None
    matrix = None
    if 2 <= len(asked) <= MOST_ANSWERS:
        given = Counter((answer, said if said in asked else OTHER) for answer, said, _ in examples)
        matrix = matrix_table(asked, given)
    return Confusion(task, pair_table(asked, wrong), matrix)


def pair_table(asked: Counter[str], wrong: Counter[tuple[str, str]]) -> Table:
    """The most frequent mistakes, and the number of others."""
    rows = [
        Row(
            answer,
            [
                Cell(prediction or "(nothing)", ""),
                Cell(f"{count:,}"),
                Cell(f"{100 * count / asked[answer]:.0f} %"),
            ],
        )
        for (answer, prediction), count in wrong.most_common(MOST_PAIRS)
    ]
    left = wrong.total() - sum(count for _, count in wrong.most_common(MOST_PAIRS))
    if left:
        rows.append(Row("all others", [Cell("", ""), Cell(f"{left:,}"), Cell("")]))
    return Table(["answer", "said instead", "times", "share\nof this answer"], rows, numbers_from=2)


def matrix_table(asked: Counter[str], given: Counter[tuple[str, str]]) -> Table:
    """How often each answer was said where each is right; darker: a larger share of its row."""
    columns = [answer for answer, _ in asked.most_common()]
    if any(prediction == OTHER for _, prediction in given) and OTHER not in columns:
        columns.append(OTHER)
    rows = [
        Row(
            answer,
            [
                Cell(f"{given[answer, column]:,}", shade=given[answer, column] / count)
                for column in columns
            ],
        )
        for answer, count in asked.most_common()
    ]
    return Table(["answer \\ said", *columns], rows)

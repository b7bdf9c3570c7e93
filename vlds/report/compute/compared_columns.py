"""The names of the columns in a table of runs: what a run costs, its tasks, and their average."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from vlds.runtime.near_names import guess

TRAINS, STORED, MEMORY = "trains", "stored", "memory"
SPEED, ANSWERS, TIME = "speed", "answers", "time"
COSTS = (TRAINS, STORED, MEMORY, SPEED, ANSWERS)
AVERAGE = "average"
"""The mean of the scores."""


def checked_columns(
    tasks: Sequence[str],
    scores: Mapping[str, str],
    targets: Collection[str],
    published: Mapping[str, Mapping[str, float]],
) -> list[str]:
    """The tasks in a table: those that `scores` names, or all.

    Errors: ValueError if a score, target or published value is of none of them; for a task that is
    called like another column.
    """
    for task in scores:
        if task not in tasks:
            raise ValueError(f"scores: {unknown(task, tasks)}")
    columns = list(scores) or list(tasks)
    for task in columns:
        if task in (*COSTS, TIME, AVERAGE):
            raise ValueError(
                f"scores: the task '{task}' is called like another column; rename it, or let a "
                "sweep's `scores` name the others"
            )
    for name in targets:
        if name not in (known := [*columns, AVERAGE]):
            raise ValueError(f"target: {unknown(name, known)}")
    for row, values in published.items():
        for name in values:
            if name not in (known := [TRAINS, *columns, AVERAGE]):
                raise ValueError(f"published.{row}: {unknown(name, known)}")
    return columns


def unknown(name: str, known: Sequence[str]) -> str:
    """The message about a name of no value."""
    return f"the table has no '{name}'; {guess(name, known)}it has {', '.join(known)}"

"""Scores of one or several models on some tasks, with size and speed of the run."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from vlds.evaluation.scores_json import Scored
from vlds.metrics.tables import split
from vlds.tasks.base import task_of


def headline_of(names: Iterable[str], named: str | None) -> str | None:
    """The score that stands for a task in every table, of those that it has: the one that its
    recipe or scores.json names, else the first; None where there is none."""
    known = list(names)
    return named if named in known else next(iter(known), None)


@dataclass(frozen=True)
class TaskScores:
    """One task: metrics of each model that was scored on it."""

    by_column: Mapping[str, Mapping[str, float]]
    """Label of the column -> metric -> value; a column without scores is absent."""
    examples: int | None = None
    """How many examples were scored."""
    data: str | None = None
    """Names, splits and fingerprint of their data sets, where known."""
    headline: str | None = None
    """The metric that stands for the task; default: the first."""
    lower_is_better: Collection[str] = ()
    """Scores of which the lowest is the best, as the task says."""
    is_same_data: bool = True
    """False where the columns may be of different data, so that none is the best."""

    @property
    def data_name(self) -> str:
        """Names and splits of the data sets; "" where they are not known."""
        return self.data.partition("@")[0] if self.data else ""

    @property
    def data_text(self) -> str:
        """Name and size of the data, in words; "" where neither is known."""
        size = f"{self.examples:,} examples" if self.examples is not None else ""
        return ", ".join(filter(None, [self.data_name, size]))

    @property
    def metrics(self) -> list[str]:
        """All metrics of all columns, the headline first."""
        names = list(dict.fromkeys(name for scores in self.by_column.values() for name in scores))
        headline = headline_of(names, self.headline)
        return sorted(names, key=lambda name: name != headline)

    def is_lower_better(self, metric: str) -> bool:
        """Of a score, or of a cell of its table."""
        cell = split(metric)
        return (cell[0] if cell else metric) in self.lower_is_better

    def best(self, metric: str, values: Iterable[float | None]) -> float | None:
        """The best of several models' values; None where fewer than two are known, or they may be
        of different data."""
        known = [value for value in values if value is not None]
        if len(known) < 2 or not self.is_same_data:
            return None
        return min(known) if self.is_lower_better(metric) else max(known)


@dataclass(frozen=True)
class Scores:
    """The scores of a run and of what it is compared with."""

    columns: Sequence[str]
    """Labels of the models, in order; the run's own is the last."""
    tasks: Mapping[str, TaskScores]
    trainable: Mapping[str, float] = field(default_factory=dict)
    """total, trainable, percent."""
    bytes_per_rank: Mapping[str, float] = field(default_factory=dict)
    """What -> bytes that each rank holds."""
    samples_per_second: Mapping[str, float] = field(default_factory=dict)
    """What -> examples a second, over all ranks."""


def scores_of(stored: Mapping[str, Scored], run_name: str, headlines: Mapping[str, str]) -> Scores:
    """What scores.json says of the run and of others. `headlines`: task -> the score that stands
    for it, where one is named."""
    others = dict.fromkeys(label for entry in stored.values() for label in entry.compared)
    tasks = {}
    for task, entry in stored.items():
        columns = {**entry.compared, run_name: entry.scores}
        scored = {label: scores for label, scores in columns.items() if scores}
        if scored:
            headline = headlines.get(task_of(task))
            tasks[task] = TaskScores(scored, entry.examples, entry.data, headline)
    return Scores([*others, run_name] if tasks else [], tasks)

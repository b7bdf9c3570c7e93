"""Scores of one or several models on some tasks, and the facts beside them: scores.json. What
`vlds evaluate` leaves under this name, the scores of one model, is read too."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlds.metrics.tables import split
from vlds.report.read.json_files import read_json
from vlds.runtime.checks import are_numbers, is_number
from vlds.runtime.metrics_file import are_weights
from vlds.runtime.whole_file import write_whole


@dataclass(frozen=True)
class TaskScores:
    """One task: metrics of each model that was scored on it."""

    by_column: Mapping[str, Mapping[str, float]]
    """Label of the column -> metric -> value; a column without scores is absent."""
    examples: int | None = None
    """How many examples were scored."""
    data: str | None = None
    """Names, splits and fingerprint of the data sets that they are of, where known."""
    headline: str | None = None
    """The metric that stands for the task; default: the first."""
    lower_is_better: Collection[str] = ()
    """Scores of which the lowest is the best; the task says so, scores.json does not."""

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
        return sorted(names, key=lambda name: name != self.headline) if self.headline else names

    def is_lower_better(self, metric: str) -> bool:
        """Of a score, or of a cell of its table."""
        cell = split(metric)
        return (cell[0] if cell else metric) in self.lower_is_better

    def best(self, metric: str, values: Iterable[float | None]) -> float | None:
        """The best of several models' values; None where fewer than two are known."""
        known = [value for value in values if value is not None]
        if len(known) < 2:
            return None
        return min(known) if self.is_lower_better(metric) else max(known)


@dataclass(frozen=True)
class Scores:
    """What scores.json holds."""

    columns: Sequence[str]
    """Labels of the models beside each other, in order."""
    tasks: Mapping[str, TaskScores]
    trainable: Mapping[str, float] = field(default_factory=dict)
    """total, trainable, percent."""
    bytes_per_rank: Mapping[str, float] = field(default_factory=dict)
    """What -> bytes that each rank holds."""
    samples_per_second: Mapping[str, float] = field(default_factory=dict)
    """What -> examples a second, over all ranks."""


def read_scores(path: Path) -> Scores:
    """scores.json; empty where there is none.

    Errors: ValueError naming the file, where it is of neither form.
    """
    if not path.is_file():
        return Scores((), {})
    tree = read_json(path)
    if is_evaluation(tree):
        name = path.parent.resolve().name
        tasks = {
            task: TaskScores({name: entry["scores"]}, entry["examples"], entry["data"])
            for task, entry in tree.items()
            if entry["scores"]
        }
        return Scores([name], tasks)
    try:
        return compared(tree)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: holds no scores as `vlds evaluate` or `vlds demo` writes them ({error!r}); "
            "write it anew, or remove it"
        ) from None


def is_evaluation(tree: Any) -> bool:
    """True for what `vlds evaluate` writes: task -> data, examples, scores."""
    return isinstance(tree, dict) and all(
        isinstance(entry, dict)
        and entry.keys() == {"data", "examples", "scores"}
        and isinstance(entry["data"], str | None)
        and is_number(entry["examples"])
        and are_numbers(entry["scores"])
        for entry in tree.values()
    )


def compared(tree: Mapping[str, Any]) -> Scores:
    """Scores of models beside each other."""
    columns = tree["columns"]
    if not isinstance(columns, list) or not all(isinstance(label, str) for label in columns):
        raise TypeError(f"columns: {columns!r}")
    for task, entry in tree["tasks"].items():
        check_entry(task, entry, columns)
    tasks = {
        task: TaskScores(
            {label: entry[label] for label in columns if entry.get(label)},
            entry.get("examples"),
            entry.get("data"),
            entry.get("headline"),
        )
        for task, entry in tree["tasks"].items()
    }
    facts = {
        name: tree.get(name) or {} for name in ("trainable", "bytes_per_rank", "samples_per_second")
    }
    if facts["trainable"] and not are_weights(facts["trainable"]):
        raise TypeError(f"trainable: {facts['trainable']!r}")
    for name in ("bytes_per_rank", "samples_per_second"):
        if not are_numbers(facts[name]):
            raise TypeError(f"{name}: {facts[name]!r}")
    return Scores(columns, tasks, **facts)


def check_entry(task: str, entry: Mapping[str, Any], columns: Sequence[str]) -> None:
    """Errors: TypeError where what stands for a task is not what `vlds demo` writes."""
    wrong = [label for label in columns if not are_numbers(entry.get(label) or {})]
    wrong += [k for k in ("data", "headline") if not isinstance(entry.get(k), str | None)]
    if entry.get("examples") is not None and not is_number(entry["examples"]):
        wrong.append("examples")
    if wrong:
        raise TypeError(f"{task}.{wrong[0]}: {entry[wrong[0]]!r}")


def write_scores(path: Path, scores: Scores) -> None:
    """Write scores.json."""
    tree = asdict(scores) | {"columns": list(scores.columns)}
    tree["tasks"] = {
        task: {label: entry.by_column.get(label) for label in scores.columns}
        | {"examples": entry.examples, "data": entry.data, "headline": entry.headline}
        for task, entry in scores.tasks.items()
    }
    write_whole(path, json.dumps(tree, indent=1) + "\n")

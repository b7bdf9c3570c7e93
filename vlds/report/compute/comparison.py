"""A table of runs: scores as mean and deviation over seeds, costs, and published values."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vlds.artifact import RECIPE
from vlds.report.compute.collect import read_recipe
from vlds.report.compute.compared_columns import (
    ANSWERS,
    AVERAGE,
    COSTS,
    MEMORY,
    SPEED,
    STORED,
    TIME,
    TRAINS,
    checked_columns,
)
from vlds.report.compute.compared_scores import metric_of, percents, scores_of
from vlds.report.compute.seed_values import Number
from vlds.report.read.inputs import RunInputs, entries_of, read_run
from vlds.tasks.base import Split


@dataclass(frozen=True)
class RowSpec:
    """One row that a table shall have."""

    name: str
    folders: Sequence[Path]
    """One run for each seed; those that are missing are not counted."""
    published: Mapping[str, float] = field(default_factory=dict)
    """Task, AVERAGE or TRAINS -> value in percent."""


@dataclass(frozen=True)
class TableSpec:
    """What a table shows."""

    title: str
    rows: Sequence[RowSpec]
    split: Split = "evaluate"
    scores: Mapping[str, str] = field(default_factory=dict)
    """Task -> score; default: all tasks that a run was scored on, and the score that stands for
    each."""
    target: tuple[str, float | str] | None = None
    """Task or AVERAGE, and the score in percent to reach, or the row whose mean that is."""


@dataclass(frozen=True)
class ComparedRow:
    """A row of the table."""

    name: str
    wanted: int
    """Runs that it shall have."""
    runs: Sequence[RunInputs]
    """Those that there are."""
    numbers: Mapping[str, Number]
    """Task, AVERAGE or one of the costs -> its values."""


@dataclass(frozen=True)
class Target:
    """A score to reach."""

    task: str
    """Or AVERAGE."""
    percent: float
    row: str | None
    """The row whose mean it is, if it is one."""


@dataclass(frozen=True)
class Comparison:
    """The table."""

    title: str
    columns: Sequence[str]
    """Tasks."""
    metrics: Mapping[str, str]
    """Task -> the score that is shown."""
    rows: Sequence[ComparedRow]
    target: Target | None
    notes: Sequence[str]
    lower_is_better: Collection[str] = ()
    """Tasks whose score is best where it is lowest."""

    @property
    def costs(self) -> list[str]:
        """The costs that some run knows, and the time to the target."""
        known = [n for n in COSTS if any(row.numbers[n].values for row in self.rows)]
        return [*known, TIME] if self.target else known

    @property
    def values(self) -> list[str]:
        """The scores, and their average if there are several."""
        return [*self.columns, AVERAGE] if len(self.columns) > 1 else list(self.columns)

    def best(self, name: str) -> float | None:
        """The best mean of a score; None where one row alone has it, and for an average over scores
        of which some are best where they are low."""
        means = [mean for row in self.rows if (mean := row.numbers[name].mean) is not None]
        if len(means) < 2 or (name == AVERAGE and self.lower_is_better):
            return None
        return min(means) if name in self.lower_is_better else max(means)


def compare(spec: TableSpec) -> Comparison:
    """Read the runs and compute the table.

    Errors: ValueError if no run is there, a file of one is damaged, or no run has an asked score.
    """
    notes: list[str] = []
    read = {row.name: read_runs(row, notes) for row in spec.rows}
    runs = [run for of_row in read.values() for run in of_row]
    if not runs:
        raise ValueError(f"{spec.title}: none of its runs has ended yet; train them first")
    known = [scores_of(run, spec.split) for run in runs]
    scored = dict.fromkeys(task for scores in known for task in scores)
    tasks = scored | dict.fromkeys(
        task for run in runs for task in entries_of(run.recipe_tree, "tasks")
    )
    targets = [spec.target[0]] if spec.target else []
    published = {row.name: row.published for row in spec.rows}
    columns = checked_columns(list(tasks), spec.scores, targets, published)
    columns = [task for task in columns if spec.scores or task in scored]
    metrics = {task: metric_of(task, spec.scores.get(task), known) for task in columns}
    target = target_of(spec, read, metrics, notes)
    rows = [
        ComparedRow(
            row.name, len(row.folders), read[row.name],
            numbers_of(row, read[row.name], metrics, spec.split, target, notes),
        )
        for row in spec.rows
    ]  # fmt: skip
    low = best_low(metrics, runs)
    return Comparison(spec.title, columns, metrics, rows, target, notes, low)


def best_low(metrics: Mapping[str, str], runs: Sequence[RunInputs]) -> set[str]:
    """The tasks whose score is best where it is lowest, as the runs' recipes say."""
    low: set[str] = set()
    waiting = set(metrics)
    for run in runs:
        if waiting.isdisjoint(entries_of(run.recipe_tree, "tasks")):
            continue  # to read a recipe takes longer than all else here
        if (recipe := read_recipe(run.folder, [])) is not None:
            found = waiting & recipe.tasks.keys()
            low |= {task for task in found if metrics[task] in recipe.tasks[task].lower_is_better}
            waiting -= found
    return low


def target_of(
    spec: TableSpec,
    runs: Mapping[str, Sequence[RunInputs]],
    metrics: Mapping[str, str],
    notes: list[str],
) -> Target | None:
    """The score to reach; None, with a note, if no run of its row has one."""
    if spec.target is None:
        return None
    task, value = spec.target
    if not isinstance(value, str):
        return Target(task, value, None)
    found = [percents(scores_of(run, spec.split), metrics).get(task) for run in runs[value]]
    known = [percent for percent in found if percent is not None]
    if not known:
        notes.append(f"Time to {task} of {value}: no run of that row has ended.")
        return None
    return Target(task, statistics.mean(known), value)


def read_runs(row: RowSpec, notes: list[str]) -> list[RunInputs]:
    """A row's runs that have ended; notes on the others."""
    ended = [folder for folder in row.folders if (folder / "artifact" / RECIPE).is_file()]
    if missing := [folder.name for folder in row.folders if folder not in ended]:
        notes.append(f"{row.name}: without {', '.join(missing)}, which has not ended.")
    return [read_run(folder) for folder in ended]


def numbers_of(
    row: RowSpec,
    runs: Sequence[RunInputs],
    metrics: Mapping[str, str],
    split: Split,
    target: Target | None,
    notes: list[str],
) -> dict[str, Number]:
    """All numbers of a row."""
    values: dict[str, list[float]] = {name: [] for name in (*COSTS, TIME, *metrics, AVERAGE)}
    passes = [line["passes"] for run in runs for line in run.lines if "passes" in line]
    if max(passes, default=1) > 1:
        notes.append(
            f"{row.name}: each step has {max(passes)} passes over its batch, which its memory and "
            "its speed pay for."
        )
    for run in runs:
        if run.complaint or not run.lines:
            notes.append(
                f"{row.name}: {run.name}: {run.complaint or 'metrics.jsonl is not there'}."
            )
        scores = percents(scores_of(run, split), metrics)
        asked = run.recipe_tree.get("tasks", metrics)
        if lost := [task for task in metrics if task in asked and task not in scores]:
            notes.append(f"{row.name}: {run.name} has no {metrics[lost[0]]} of {lost[0]}.")
        known = {**costs_of(run), **scores}
        if target is not None:
            known[TIME] = seconds_to(run, metrics, target)
        for name, value in known.items():
            if value is not None:
                values[name].append(value)
    return {name: Number(found, row.published.get(name)) for name, found in values.items()}


def costs_of(run: RunInputs) -> dict[str, float | None]:
    """What a run cost."""
    weights = (run.folder / "artifact").glob("*.safetensors")
    memory = [line["most_memory"] for line in run.lines if "most_memory" in line]
    return {
        TRAINS: run.scores.trainable.get("percent"),
        STORED: float(sum(file.stat().st_size for file in weights)),
        MEMORY: float(max(memory)) if memory else None,
        SPEED: run.scores.samples_per_second.get("training"),
        ANSWERS: run.scores.samples_per_second.get("answering"),
    }


def seconds_to(run: RunInputs, metrics: Mapping[str, str], target: Target) -> float | None:
    """Seconds of training until an evaluation reached a score; None if none did."""
    seconds = 0.0
    for line in run.lines:
        seconds += float(line.get("seconds", 0.0))
        reached = percents(line.get("scores", {}), metrics).get(target.task, -math.inf)
        if reached >= target.percent:
            return seconds
    return None

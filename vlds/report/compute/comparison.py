"""A table of runs: scores as mean and deviation over seeds, costs, and published values."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vlds.report.compute.compared_scores import AVERAGE, metric_of, percents, scores_of
from vlds.report.numbers import Interval
from vlds.report.read.inputs import RunInputs, read_run
from vlds.tasks.base import Split

TRAINS, STORED, MEMORY = "trains", "stored", "memory"
SPEED, ANSWERS, TIME = "speed", "answers", "time"
COSTS = (TRAINS, STORED, MEMORY, SPEED, ANSWERS)
STUDENT_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045,
)  # fmt: skip
"""97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom."""
NORMAL = 1.960
"""That of so many degrees of freedom that they do not matter."""


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
    columns: Sequence[str] = ()
    """Tasks; default: all that a run was scored on."""
    split: Split = "evaluate"
    scores: Mapping[str, str] = field(default_factory=dict)
    """Task -> score; default: the one that stands for the task."""
    target: tuple[str, float | str] | None = None
    """Task or AVERAGE, and the score in percent to reach, or the row whose mean that is."""


@dataclass(frozen=True)
class Number:
    """What the runs of a row have in a column."""

    values: Sequence[float]
    published: float | None = None

    @property
    def mean(self) -> float | None:
        """None if no run has a value."""
        return statistics.mean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the sample (n - 1); None for one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def interval(self) -> Interval | None:
        """95 % confidence interval of the mean (Student's t); None for one seed."""
        count = len(self.values)
        if count < 2:
            return None
        quantile = STUDENT_T[count - 2] if count - 2 < len(STUDENT_T) else NORMAL
        half = quantile * statistics.stdev(self.values) / math.sqrt(count)
        mean = statistics.mean(self.values)
        return Interval(mean - half, mean + half)


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
        """The highest mean of a score; None where one row alone has it."""
        means = [mean for row in self.rows if (mean := row.numbers[name].mean) is not None]
        return max(means) if len(means) > 1 else None


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
    columns = list(spec.columns) or list(dict.fromkeys(task for s in known for task in s))
    metrics = {task: metric_of(task, spec.scores.get(task), known) for task in columns}
    target = target_of(spec, read, metrics, notes)
    rows = [
        ComparedRow(
            row.name, len(row.folders), read[row.name],
            numbers_of(row, read[row.name], metrics, spec.split, target, notes),
        )
        for row in spec.rows
    ]  # fmt: skip
    return Comparison(spec.title, columns, metrics, rows, target, notes)


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
    ended = [folder for folder in row.folders if (folder / "artifact").is_dir()]
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

"""The table of `vlds compare`, of rows that are the same run with several seeds: scores as mean and
deviation, costs, and published values.

The score that stands for a task is the same as in all other tables (`headline_of`). Scores are
shown times 100.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

from vlds.report.collect import read_recipe
from vlds.report.numbers import Number, clear_best
from vlds.report.predictions import first_line, newest_predictions
from vlds.report.read import RunInputs, entries_of, headline_of, logged_scores, read_run
from vlds.runtime.artifact_files import RECIPE, best_step, model_folder
from vlds.runtime.checks import guess
from vlds.tasks.base import Split, label_of, task_of
from vlds.tasks.metrics.caption_scores import CIDERS

TRAINS, STORED, MEMORY = "trains", "stored", "memory"
SPEED, ANSWERS, TIME = "speed", "answers", "time"
"""Columns of what a run costs; TIME is there only if a score to reach is named."""
COSTS = (TRAINS, STORED, MEMORY, SPEED, ANSWERS)
AVERAGE = "average"
"""The column of the mean of the scores."""
SHARES, CIDER = "0 to 1", "0 to 10"
"""Scales of scores. An average is over scores of one scale: of accuracies and a CIDEr it would be
mostly the CIDEr. Papers publish such averages all the same (VL-Adapter), so a sweep that names one
has it."""


@dataclass(frozen=True)
class RowSpec:
    """One row of a table, as it is asked for."""

    name: str
    folders: Sequence[Path]
    """One run for each seed; those that are missing, or cannot be read, are not counted."""
    published: Mapping[str, float] = field(default_factory=dict)
    """Task, AVERAGE or TRAINS -> value in percent."""


@dataclass(frozen=True)
class TableSpec:
    """What a table is to show."""

    title: str
    rows: Sequence[RowSpec]
    split: Split = "evaluate"
    scores: Mapping[str, str] = field(default_factory=dict)
    """Task -> score; default: all tasks that a run was scored on, and the score that stands for
    each."""
    target: tuple[str, float | str] | None = None
    """Task or AVERAGE, and the score in percent to reach, or the row whose mean that is."""
    minus: str | None = None
    """The row whose scores are subtracted from those of every row, seed by seed."""
    notes: Sequence[str] = ()
    """What a reader must know of the choice of its runs."""
    damage: Sequence[str] = ()
    """What was named and cannot be read, one message each."""

    @property
    def asks_average(self) -> bool:
        """True if it names an average, as a paper may have it over scores of any scales."""
        published = [name for row in self.rows for name in row.published]
        return AVERAGE in published or (self.target is not None and self.target[0] == AVERAGE)


@dataclass(frozen=True)
class ComparedRow:
    """A row of the table: what `RowSpec` asks for, and the runs that exist."""

    name: str
    wanted: int
    """Number of runs that it asks for."""
    runs: Sequence[RunInputs]
    numbers: Mapping[str, Number]
    """Task, AVERAGE or one of the costs -> its values."""

    @property
    def partition(self) -> str:
        """How the memory of its runs was divided over ranks; "" if none has logged it."""
        if not self.numbers[MEMORY].values:
            return ""
        known = dict.fromkeys(run.partition for run in self.runs)
        return "; ".join(filter(None, known))


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
    """The table, in numbers; comparison_formats.py puts them into cells."""

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
    asks_average: bool = False
    """As in `TableSpec`."""
    damage: Sequence[str] = ()
    """What cannot be read, and is left out."""
    minus: str | None = None
    """As in `TableSpec`: then all scores are differences."""
    unlike: Collection[str] = ()
    """Tasks that rows are scored on with different data: no row is best, and none is subtracted."""

    @property
    def costs(self) -> list[str]:
        """The costs that some run knows, and the time to the target."""
        known = [n for n in COSTS if any(row.numbers[n].values for row in self.rows)]
        return [*known, TIME] if self.target else known

    @property
    def values(self) -> list[str]:
        """The scores, and their average if there are several of one scale, or it is asked for."""
        return [*self.columns, AVERAGE] if self.has_average else list(self.columns)

    @property
    def scales(self) -> Mapping[str, Sequence[str]]:
        """Scale -> the tasks whose scores have it."""
        scales: dict[str, list[str]] = {}
        for task, metric in self.metrics.items():
            scale = CIDER if metric in CIDERS else SHARES
            scale = f"{metric}, best where low" if task in self.lower_is_better else scale
            scales.setdefault(scale, []).append(task)
        return scales

    @property
    def has_average(self) -> bool:
        """True if the scores can be averaged, or the table's maker wants it."""
        return len(self.columns) > 1 and (len(self.scales) == 1 or self.asks_average)

    @property
    def partitions_differ(self) -> bool:
        """True if the memory of some rows was divided otherwise than that of others."""
        return len({row.partition for row in self.rows if row.partition}) > 1

    def best(self, name: str) -> ComparedRow | None:
        """The row with the best mean of a score, if its seeds tell it from each other row that has
        the score. None for an average over scores of which some are best where they are low."""
        if name == AVERAGE and 0 < len(self.lower_is_better) < len(self.columns):
            return None
        if name in self.unlike or (name == AVERAGE and self.unlike):
            return None
        numbers = [row.numbers[name] for row in self.rows]
        index = clear_best(numbers, lower_is_better=self.is_low(name))
        return None if index is None else self.rows[index]

    def is_low(self, name: str) -> bool:
        """True if a column is best where it is lowest; the average, if all scores are."""
        if name == AVERAGE:
            return len(self.lower_is_better) == len(self.columns)
        return name in self.lower_is_better


def compare(spec: TableSpec) -> Comparison:
    """Read the runs and compute the table. A run with a file that cannot be read is left out.

    Errors: ValueError if no run is there, no run has an asked score, or the row to subtract is not
    one of the table's.
    """
    names = [row.name for row in spec.rows]
    if spec.minus is not None and spec.minus not in names:
        raise ValueError(
            f"--minus: the table has no row '{spec.minus}'; {guess(spec.minus, names)}it has "
            f"{', '.join(names)}"
        )
    notes, damage = list(spec.notes), list(spec.damage)
    read = {row.name: read_runs(row, notes, damage) for row in spec.rows}
    runs = [run for of_row in read.values() for run in of_row]
    if not runs:
        raise ValueError(
            damage[0]
            if damage
            else f"{spec.title}: none of its runs has ended yet; train them first"
        )
    known = [newest_scores(run, spec.split) for run in runs]
    evaluated = dict.fromkeys(task for scores in known for task in scores)
    # Data without labels are answered, and give no score.
    scored = [task for task in evaluated if any(scores.get(task) for scores in known)]
    if unlabelled := [task for task in evaluated if task not in scored]:
        notes.append(f"{', '.join(unlabelled)}: no scores, because the data have no labels.")
    tasks = dict.fromkeys(scored) | dict.fromkeys(
        task for run in runs for task in entries_of(run.recipe_tree, "tasks")
    )
    targets = [spec.target[0]] if spec.target else []
    published = {row.name: row.published for row in spec.rows}
    columns = checked_columns(list(tasks), spec.scores, targets, published)
    # A task that no run was scored on is left out, unless it was asked for, which is an error.
    columns = [task for task in columns if spec.scores or task in scored]
    metrics = {task: metric_of(task, spec.scores.get(task), runs, known, notes) for task in columns}
    unlike = unlike_data(metrics, spec.split, read, notes)
    # Without rows at first: whether there is an average, which rows have, depends on the columns.
    table = Comparison(
        spec.title, columns, metrics, [], None, notes, best_low(metrics, runs), spec.asks_average,
        damage,
    )  # fmt: skip
    target = target_of(spec, read, table, notes)
    rows = [
        ComparedRow(
            row.name, len(row.folders), read[row.name],
            numbers_of(row, read[row.name], table, spec.split, target, notes),
        )
        for row in spec.rows
    ]  # fmt: skip
    if spec.minus is not None:
        base = rows[names.index(spec.minus)]
        comparable = set(table.values) - unlike - ({AVERAGE} if unlike else set())
        rows = [
            replace(row, numbers={
                name: number.minus(base.numbers[name]) if name in comparable
                else Number([]) if name in table.values else number
                for name, number in row.numbers.items()
            })
            for row in rows
        ]  # fmt: skip
    return replace(table, rows=rows, target=target, minus=spec.minus, unlike=unlike)


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
    """The message about a name that is not a column of the table."""
    return f"the table has no '{name}'; {guess(name, known)}it has {', '.join(known)}"


def newest_scores(run: RunInputs, split: Split) -> dict[str, Mapping[str, float]]:
    """Task -> scores on one of its lists: by `vlds evaluate`, or as the training logged them of
    its best step, else last."""
    # Training evaluates this list alone; `stored` has scores of the present weights, so they win.
    found = dict(logged_scores(run.lines, run.folder)) if split == "evaluate" else {}
    for label, entry in run.stored.items():
        task = task_of(label)
        if label == label_of(task, split) and (entry.scores or task not in found):
            found[task] = entry.scores
    return found


def metric_of(
    task: str,
    asked: str | None,
    runs: Sequence[RunInputs],
    known: Sequence[Mapping[str, Mapping[str, float]]],
    notes: list[str],
) -> str:
    """The score that stands for a task in the table; a note where the runs name several. `known`:
    the scores of each run.

    Errors: ValueError if no run has the one that is asked for.
    """
    names = list(dict.fromkeys(name for scores in known for name in scores.get(task, {})))
    named = list(dict.fromkeys(run.headlines[task] for run in runs if task in run.headlines))
    first = next((name for name in named if name in names), None)
    metric = headline_of(names, first if asked is None else asked)
    if metric is None or (asked is not None and metric != asked):
        # Scores of groups, such as accuracy/answer_type/number, would make the message long.
        whole = ", ".join(name for name in names if "/" not in name) or "none"
        raise ValueError(f"scores.{task}: no run has {asked or 'a score'}; there are {whole}")
    if asked is None and len(named) > 1:
        notes.append(
            f"{task}: the recipes name different scores, {' and '.join(named)}; {metric} is shown."
        )
    return metric


def unlike_data(
    tasks: Iterable[str],
    split: Split,
    rows: Mapping[str, Sequence[RunInputs]],
    notes: list[str],
) -> set[str]:
    """The tasks that rows are scored on with different data, and a note on each. Each seed may have
    its own, such as a split that it draws, if it has the same in all rows."""
    unlike = set()
    known = {row: [(run.seed, data_of(run)) for run in runs] for row, runs in rows.items()}
    for task in tasks:
        label = label_of(task, split)
        by_row = {
            row: [(seed, data[label]) for seed, data in of_row if label in data]
            for row, of_row in known.items()
        }
        if any(not alike(one, other) for one, other in combinations(by_row.values(), 2)):
            unlike.add(task)
            found = shown_data(data for of_row in by_row.values() for _, data in of_row)
            notes.append(
                f"{task}: rows are scored on different data ({found}), so that none is best."
            )
            continue
        mixed = [row for row, of_row in by_row.items() if len({data for _, data in of_row}) > 1]
        if mixed:
            found = shown_data(data for _, data in by_row[mixed[0]])
            notes.append(
                f"{task}: the runs of {', '.join(mixed)} are scored on different data ({found})."
            )
    return unlike


def alike(one: Sequence[tuple[str, str]], other: Sequence[tuple[str, str]]) -> bool:
    """True if two rows, of (seed, data) pairs, are scored on the same data: for each seed that both
    have, or without such a seed, if one's data are among the other's."""
    common = {seed for seed, _ in one} & {seed for seed, _ in other}
    if common:
        ours, theirs = ({pair for pair in row if pair[0] in common} for row in (one, other))
        return ours == theirs
    known, others = ({data for _, data in row} for row in (one, other))
    return known <= others or others <= known


def shown_data(data: Iterable[str]) -> str:
    """Names of data sets with the beginnings of their fingerprints; of the first four."""
    names = sorted(set(data))
    parts = [name.partition("@") for name in names[:4]]
    shown = ", ".join(f"{name}@{fingerprint[:6]}" for name, _, fingerprint in parts)
    return shown + (", ..." if len(names) > 4 else "")


def data_of(run: RunInputs) -> dict[str, str]:
    """A task's list -> the data that it was scored on, where they are known: by `vlds evaluate`, or
    last in training."""
    found: dict[str, str | None] = {}
    for label, file in newest_predictions(run.folder, []).items():
        # A table of scores does not need the answers: `vlds report` tells of damaged ones.
        with suppress(ValueError):
            line = first_line(file)
            found[label] = None if line is None else line.data
    found |= {label: entry.data for label, entry in run.stored.items()}
    return {label: data for label, data in found.items() if data}


def percents(
    scores: Mapping[str, Mapping[str, float]], metrics: Mapping[str, str], averages: bool
) -> dict[str, float]:
    """Scores times 100; with `averages` also their average, if none is missing."""
    found = {
        task: 100 * scores[task][metric]
        for task, metric in metrics.items()
        if metric in scores.get(task, {})
    }
    # A mean over fewer tasks would not compare with that of other runs.
    whole = averages and len(found) == len(metrics)
    return found | ({AVERAGE: statistics.mean(found.values())} if whole else {})


def best_low(metrics: Mapping[str, str], runs: Sequence[RunInputs]) -> set[str]:
    """The tasks whose score is best where it is lowest, as the runs' recipes say."""
    low: set[str] = set()
    waiting = set(metrics)
    for run in runs:
        # Building a recipe takes longer than all else here: only for tasks that are still unknown.
        if waiting.isdisjoint(entries_of(run.recipe_tree, "tasks")):
            continue
        if (recipe := read_recipe(run.folder, [])) is not None:
            found = waiting & recipe.tasks.keys()
            low |= {task for task in found if recipe.tasks[task].is_low(metrics[task])}
            waiting -= found
    return low


def target_of(
    spec: TableSpec,
    runs: Mapping[str, Sequence[RunInputs]],
    table: Comparison,
    notes: list[str],
) -> Target | None:
    """The score to reach; None, with a note, if no run of its row has one."""
    if spec.target is None:
        return None
    task, value = spec.target
    if not isinstance(value, str):
        return Target(task, value, None)
    scores = [newest_scores(run, spec.split) for run in runs[value]]
    found = [percents(each, table.metrics, table.has_average).get(task) for each in scores]
    known = [percent for percent in found if percent is not None]
    if not known:
        notes.append(f"Time to {task} of {value}: no run of that row has ended.")
        return None
    return Target(task, statistics.mean(known), value)


def read_runs(row: RowSpec, notes: list[str], damage: list[str]) -> list[RunInputs]:
    """A row's runs that have ended and can be read; notes on the others."""
    # The artifact's recipe is what training writes last.
    ended = [folder for folder in row.folders if (folder / "artifact" / RECIPE).is_file()]
    if missing := [folder.name for folder in row.folders if folder not in ended]:
        have = "have" if len(missing) > 1 else "has"
        notes.append(f"{row.name}: without {', '.join(missing)}, which {have} not ended.")
    runs = []
    for folder in ended:
        try:
            run = read_run(folder)
        except ValueError as error:
            damage.append(f"{error}; the run is left out")
            notes.append(f"{row.name}: without {folder.name}, which cannot be read: {error}.")
            continue
        runs.append(run)
        damage += run.damage
        lines = [*run.damage, *run.outdated]
        steps, done = entries_of(run.recipe_tree, "training").get("steps"), run.steps_done
        if isinstance(steps, int) and done is not None and done < steps:
            # Its artifact is that of an earlier end.
            lines.append(f"it was resumed, and has done {done:,} of {steps:,} steps")
        if not (folder / "metrics.jsonl").exists():
            lines.append("metrics.jsonl is not there")
        notes += [f"{row.name}: {run.name}: {line}." for line in lines]
    if best := [str(step) for run in runs if (step := best_step(run.folder)) is not None]:
        notes.append(f"{row.name}: best, of step {', '.join(best)}; RUN/artifact has the last's.")
    return runs


def numbers_of(
    row: RowSpec,
    runs: Sequence[RunInputs],
    table: Comparison,
    split: Split,
    target: Target | None,
    notes: list[str],
) -> dict[str, Number]:
    """All numbers of a row: costs, scores times 100 and their average, and the seconds of training
    until the first evaluation that reached the target."""
    metrics, averages = table.metrics, table.has_average
    sign = -1 if target is not None and table.is_low(target.task) else 1
    found: list[dict[str, float | None]] = []
    passes = [line["passes"] for run in runs for line in run.lines if "passes" in line]
    if max(passes, default=1) > 1:
        notes.append(
            f"{row.name}: each step has {max(passes)} passes over its batch, which its memory and "
            "its speed pay for."
        )
    for run in runs:
        scores = percents(newest_scores(run, split), metrics, averages)
        asked = entries_of(run.recipe_tree, "tasks") or metrics
        if lost := [task for task in metrics if task in asked and task not in scores]:
            notes.append(f"{row.name}: {run.name} has no {metrics[lost[0]]} of {lost[0]}.")
        weights = model_folder(run.folder).glob("*.safetensors")
        memory = [line["most_memory"] for line in run.lines if "most_memory" in line]
        known: dict[str, float | None] = {
            TRAINS: run.scores.trainable.get("percent"),
            STORED: float(sum(file.stat().st_size for file in weights)),
            # A resumed run measures from its start again, so the last line may be smaller.
            MEMORY: float(max(memory)) if memory else None,
            SPEED: run.scores.samples_per_second.get("training"),
            ANSWERS: run.scores.samples_per_second.get("answering"),
            **scores,
        }
        if target is not None:
            # Only lines of training have seconds, and they leave evaluations out.
            seconds = 0.0
            for line in run.lines:
                seconds += float(line.get("seconds", 0.0))
                value = percents(line.get("scores", {}), metrics, averages).get(target.task)
                if value is not None and sign * (value - target.percent) >= 0:
                    known[TIME] = seconds + float(line.get("seconds_since_log", 0.0))
                    break
        found.append(known)
    numbers = {}
    for name in (*COSTS, TIME, *metrics, AVERAGE):
        pairs = [(run.seed, known.get(name)) for run, known in zip(runs, found, strict=True)]
        values = [value for _, value in pairs if value is not None]
        seeds = [seed for seed, value in pairs if value is not None]
        numbers[name] = Number(values, row.published.get(name), seeds)
    return numbers

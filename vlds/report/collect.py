"""Builds a report from run folders: reads each run's predictions and scores them. A task that runs
scored on different data gets a name for each."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from vlds.recipe.build import build, to_tree
from vlds.recipe.config import Recipe, load_recipe
from vlds.recipe.paths import only_read
from vlds.report.baselines import Baselines, baselines_of, frequent_answers
from vlds.report.examples import collect_gallery
from vlds.report.predictions import (
    Predictions,
    newest_predictions,
    read_predictions,
)
from vlds.report.read import RunInputs, Scores, TaskScores, read_gallery, read_run
from vlds.report.report import Report, RunReport, facts_of, is_same_data
from vlds.report.scores import RESAMPLES, TaskResult, results_of, scores_of_predictions
from vlds.runtime.artifact_files import home_of, tell_model
from vlds.runtime.folders import PREDICTIONS, read_starts
from vlds.runtime.terminal import Away, tell
from vlds.tasks.base import SPLITS, Task, label_of, task_of

Value = TypeVar("Value")


def collect(folders: Sequence[Path], resamples: int = RESAMPLES, pictures: bool = False) -> Report:
    """`report_on` the runs in these folders.

    Errors: ValueError where a folder holds no run, or is named twice.
    """
    return report_on([read_run(folder) for folder in folders], resamples, pictures)


def report_on(runs: Sequence[RunInputs], resamples: int, pictures: bool) -> Report:
    """The report on some runs; with `pictures`, first writes each gallery into its run folder.

    Errors: ValueError where a run is named twice.
    """
    # Before the rest, which may take a while: a folder that is named twice is a mistake.
    names = names_of([run.folder for run in runs])
    reports = [run_report(run, resamples, pictures) for run in runs]
    return Report(named_by_data(dict(zip(names, reports, strict=True))), resamples)


def run_report(run: RunInputs, resamples: int, pictures: bool) -> RunReport:
    """The report on one run."""
    notes: list[str] = []
    folder = run.folder
    tell_model(folder)
    recipe = read_recipe(folder, notes)
    logged = {
        (line["step"], task): scores
        for line in run.lines
        for task, scores in line.get("scores", {}).items()
    }
    predictions, scored = {}, {}
    if recipe is not None:
        predictions = read_all_predictions(folder, recipe.tasks, notes)
        scored = scores_of_predictions(recipe.tasks, predictions, logged, notes)
        predictions = {name: predictions[name] for name in scored}  # without damaged ones
        if pictures:
            try:
                collect_gallery(folder, recipe, predictions)
                run = replace(run, gallery=read_gallery(folder))
            except (ValueError, Away) as error:
                notes.append(f"No new samples to look at: {error}")
    # On stderr too: what was passed over changes what a table says.
    for line in (*run.damage, *run.outdated):
        tell(line, error=True, flush=True)
        notes.append(line)
    if recipe is None:
        return RunReport(run, {}, {}, notes=notes)
    results = results_of(recipe.tasks, predictions, scored, resamples)
    baselines = baselines_of(folder, results, logged, notes, resamples)
    scores = compared_scores(run.scores, run.name, recipe.tasks, results, baselines)
    facts = facts_of(recipe, run, read_starts(folder))
    frequent = {name: frequent_answers(result) for name, result in results.items()}
    if known := [f"{name}: {answers.listed}" for name, answers in frequent.items() if answers]:
        facts["most frequent answers"] = ", ".join(known)
    if results:
        files = (result.predictions.file for result in results.values())
        facts["scores of"] = ", ".join(sorted({str(f.parent.relative_to(folder)) for f in files}))
    done, planned = run.steps_done, recipe.training.num_steps
    is_stopped = done is not None and done < planned
    return RunReport(
        replace(run, scores=scores),
        facts,
        results,
        predictions,
        f"{done:,} of {planned:,} steps" if is_stopped else "",
        notes,
        recipe,
        baselines,
    )


def read_all_predictions(
    run: Path, tasks: Mapping[str, Task], notes: list[str]
) -> dict[str, Predictions]:
    """The newest predictions of each task's list (TASK, TASK.test), then those of other data (TASK
    on NAME). Damaged files get a note."""
    newest = newest_predictions(run, notes)
    labels = [label_of(name, split) for name in tasks for split in SPLITS]
    files = {label: newest[label] for label in labels if label in newest}
    # Folders of data that are not the run's own are called NAME@FINGERPRINT.
    for file in sorted((home_of(run) / PREDICTIONS).glob("*@*/*.jsonl")):
        if file.stem in labels:
            name = f"{file.stem} on {file.parent.name.partition('@')[0]}"
            name = f"{file.stem} on {file.parent.name}" if name in files else name
            files[name] = file
    predictions = {}
    for name, file in files.items():
        try:
            predictions[name] = read_predictions(file)
        except ValueError as error:
            notes.append(f"No scores of {name}'s newest predictions: {error}")
    return predictions


def read_recipe(folder: Path, notes: list[str]) -> Recipe | None:
    """The run's recipe; None where it has none, or one that this version cannot read."""
    file = folder / "recipe.yaml"
    if not file.is_file():
        return None
    try:
        # The run may be a stranger's.
        return build(Recipe, only_read(to_tree(load_recipe(file)), Recipe))
    except ValueError as error:
        notes.append(f"No intervals and no new samples: {error}")
        return None


def compared_scores(
    stored: Scores,
    run_name: str,
    tasks: Mapping[str, Task],
    results: Mapping[str, TaskResult],
    baselines: Baselines,
) -> Scores:
    """The stored scores, with those of the newest predictions in the column `run_name`, and each
    task's direction. Columns before it: baselines, and what scores.json compares the run with, if
    it was scored on the same data."""
    entries = dict(stored.tasks)
    for label, result in results.items():
        earlier, data = entries.get(label), result.predictions.data
        # Data without a name may be other data, even if the earlier score names none either.
        same = earlier is not None and data is not None and earlier.data == data
        compared = earlier.by_column if earlier is not None and same else {}
        by_column = {**compared, run_name: result.scores}
        entries[label] = TaskScores(by_column, result.examples, data, result.headline)
    for label, entry in entries.items():
        known = {
            name: results[label].scores for name, results in baselines.items() if label in results
        }
        task = tasks.get(task_of(label))
        entries[label] = replace(
            entry,
            # The baselines come first, and their own figures win.
            by_column={**known, **entry.by_column, **known},
            lower_is_better=task.lower_is_better if task else (),
        )
    filled = {name for entry in entries.values() for name in entry.by_column}
    others = [name for name in stored.columns if name in filled and name != run_name]
    columns = list(dict.fromkeys([*baselines, *others, run_name])) if entries else []
    return replace(stored, columns=columns, tasks=entries)


def names_of(folders: Sequence[Path]) -> list[str]:
    """The last parts of each run's own path: as many as tell the runs apart.

    Errors: ValueError where a folder is named twice.
    """
    # Unlike Path.resolve, it takes a link to itself, which is refused later as no folder.
    paths = [Path(os.path.realpath(folder)) for folder in folders]
    for folder, path in zip(folders, paths, strict=True):
        if paths.count(path) > 1:
            raise ValueError(f"{folder}: is named twice; name each run once")
    # runs/a/vqa, runs/b/vqa -> a/vqa, b/vqa. Different paths differ at some depth, so this ends.
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return [str(Path(*path.parts[-depth:])) for path in paths]


def named_by_data(runs: Mapping[str, RunReport]) -> dict[str, RunReport]:
    """The runs; a task that they score on different data is called "TASK on DATA" and has a column
    for each data set, and one for data that are not known."""
    data: dict[str, set[str | None]] = {}
    for run in runs.values():
        for task, entry in run.scores.tasks.items():
            data.setdefault(task, set()).add(entry.data)
    apart = {task for task in data if not is_same_data(runs.values(), task)}

    def name_of(task: str, own: str | None) -> str:
        if own is None:
            return f"{task} on unknown data"
        name, _, fingerprint = own.partition("@")
        # A set that was packed again has the same name; the fingerprint tells the two apart.
        alike = [other for other in data[task] if other and other.partition("@")[0] == name]
        return f"{task} on {name if len(alike) == 1 else f'{name}@{fingerprint[:6]}'}"

    renamed = {}
    for run_name, run in runs.items():
        tasks = run.scores.tasks.items()
        names = {task: name_of(task, entry.data) for task, entry in tasks if task in apart}
        inputs = replace(
            run.inputs,
            scores=replace(run.scores, tasks=renamed_keys(run.scores.tasks, names)),
            score_curves=renamed_keys(run.inputs.score_curves, names),
            gallery=[replace(e, task=names.get(e.task, e.task)) for e in run.inputs.gallery],
        )
        renamed[run_name] = replace(
            run,
            inputs=inputs,
            results=renamed_keys(run.results, names),
            predictions=renamed_keys(run.predictions, names),
            baselines={
                label: renamed_keys(of_tasks, names) for label, of_tasks in run.baselines.items()
            },
        )
    return renamed


def renamed_keys(entries: Mapping[str, Value], names: Mapping[str, str]) -> dict[str, Value]:
    return {names.get(key, key): value for key, value in entries.items()}

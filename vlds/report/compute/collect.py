"""Everything about the runs of a report, from their folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from vlds.config import Recipe, load_recipe
from vlds.metrics.caption_scores import CIDERS
from vlds.report.compute.baselines import Column, baselines_of, frequent_answer
from vlds.report.compute.bootstrap import RESAMPLES, SEED
from vlds.report.compute.facts import recipe_facts, start_facts, stopped_text
from vlds.report.compute.gallery import collect_gallery
from vlds.report.compute.results import (
    Difference,
    TaskResult,
    difference,
    drawn_by_example,
    logged_scores,
    reasons,
    results_of,
)
from vlds.report.compute.same_data import told_apart
from vlds.report.read.inputs import RunInputs, read_run
from vlds.report.read.scores import Scores, TaskScores
from vlds.runtime.run_folder import read_starts
from vlds.runtime.terminal import tell
from vlds.tasks.base import Task, task_of


@dataclass(frozen=True)
class RunReport:
    """What a report says of one run."""

    run: RunInputs
    facts: Mapping[str, str]
    """How it was trained."""
    results: Mapping[str, TaskResult]
    """Per task that has predictions and references."""
    stopped: str = ""
    """How far the training came, where it has not ended."""
    notes: Sequence[str] = ()
    """What could not be had, and why."""
    recipe: Recipe | None = None
    """None where it cannot be read."""
    shown_as: Mapping[str, str] = field(default_factory=dict)
    """Task, or its list of test data -> its name beside other runs, where that is another."""

    @property
    def scores(self) -> Scores:
        """The scores of the run and of those beside it."""
        return self.run.scores

    def score(self, task: str, metric: str) -> float | None:
        """A score of the run itself: the last column of its scores."""
        entry = self.scores.tasks.get(task)
        return entry.by_column.get(self.scores.columns[-1], {}).get(metric) if entry else None

    def result(self, task: str, metric: str) -> TaskResult | None:
        """What is known of the examples behind that score; None where it is of other ones."""
        result, value = self.results.get(task), self.score(task, metric)
        if result is None or result.headline != metric or value is None:
            return None
        return result if abs(result.value - value) < 1e-6 else None


@dataclass(frozen=True)
class Report:
    """Runs by name, in the order in which they were named."""

    runs: Mapping[str, RunReport]
    resamples: int

    @property
    def only(self) -> RunReport:
        """The run of a report about one."""
        (run,) = self.runs.values()
        return run

    @property
    def headlines(self) -> list[tuple[str, str]]:
        """(task, score that stands for it), of all runs."""
        return list(
            dict.fromkeys(
                (name, task.metrics[0])
                for run in self.runs.values()
                for name, task in run.scores.tasks.items()
                if task.metrics
            )
        )

    @property
    def data_texts(self) -> dict[str, str]:
        """Name and size of each task's data, the same in all runs."""
        texts: dict[str, str] = {}
        for run in self.runs.values():
            for name, task in run.scores.tasks.items():
                texts[name] = texts.get(name) or task.data_text
        return {name: text for name, text in texts.items() if text}

    @property
    def baseline(self) -> str:
        """The run that the others are compared with."""
        return next(iter(self.runs))

    @cached_property
    def differences(self) -> dict[str, list[Difference | str]]:
        """Each further run less the first, for each of the headlines, or why they cannot be
        compared; empty where none can."""
        baseline, *others = self.runs.values()
        found = [
            [
                difference(run.result(*headline), baseline.result(*headline), self.resamples)
                for headline in self.headlines
            ]
            for run in others
        ]
        if not any(isinstance(entry, Difference) for entries in found for entry in entries):
            return {}
        return dict(zip(list(self.runs)[1:], found, strict=True))

    @property
    def interval_notes(self) -> list[str]:
        """What the brackets are, and why some are missing."""
        results = {name: run.results for name, run in self.runs.items()}
        every = [result for found in results.values() for result in found.values()]
        said = []
        if any(result.interval for result in every):
            said.append(
                f"Brackets: the middle 95 % of {self.resamples:,} bootstrap resamples of the "
                "samples (a picture, pair or clip with all of its examples; percentiles; seed "
                f"{SEED}). They tell of the samples that were drawn, not of the seed of the "
                "training."
            )
        if any(result.interval and result.headline in CIDERS for result in every):
            said.append("CIDEr's document frequencies are those of all pictures in every resample.")
        return said + drawn_by_example(results) + reasons(results)


def collect(folders: Sequence[Path], resamples: int = RESAMPLES, pictures: bool = False) -> Report:
    """Read runs; with `pictures`, write each one's gallery into its folder first.

    Errors: ValueError where a folder holds no run, or is named twice.
    """
    check_runs(folders)
    runs = [read_report(folder, resamples, pictures) for folder in folders]
    return Report(told_apart(dict(zip(names_of(folders), runs, strict=True))), resamples)


def check_runs(folders: Sequence[Path]) -> None:
    """What can be wrong is said before any long work.

    Errors: ValueError where a folder holds no run, or is named twice.
    """
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise ValueError(f"{folder}: is named twice; name each run once")
        read_run(folder)


def read_report(folder: Path, resamples: int, pictures: bool) -> RunReport:
    """All about one run."""
    notes: list[str] = []
    recipe = read_recipe(folder, notes)
    if recipe is not None and pictures:
        try:
            collect_gallery(folder, recipe)
        except ValueError as error:
            notes.append(f"No new samples to look at: {error}")
    run = read_run(folder)
    if run.complaint:
        tell(run.complaint, error=True, flush=True)
        notes.append(run.complaint)
    if recipe is None:
        return RunReport(run, {}, {}, notes=notes)
    logged = logged_scores(folder)
    results = results_of(folder, recipe.tasks, logged, resamples, notes)
    scores = with_results(run.scores, results, run.name)
    if len(scores.columns) == 1:
        scores = with_baselines(scores, baselines_of(folder, results, logged, notes))
    scores = with_directions(scores, recipe.tasks)
    filled = replace(run, scores=scores)
    facts = recipe_facts(recipe, run) | start_facts(read_starts(folder), run)
    if answers := frequent_answers(results):
        facts["most frequent answers"] = answers
    if results:
        facts["scores of"] = ", ".join(sorted({str(made.folder) for made in results.values()}))
    return RunReport(filled, facts, results, stopped_text(recipe, run), notes, recipe)


def read_recipe(folder: Path, notes: list[str]) -> Recipe | None:
    """The run's recipe; None where it has none, or one that this version cannot read."""
    file = folder / "recipe.yaml"
    if not file.is_file():
        return None
    try:
        return load_recipe(file)
    except ValueError as error:
        notes.append(f"No intervals and no new samples, because of {file.name}: {error}")
        return None


def with_results(scores: Scores, results: Mapping[str, TaskResult], name: str) -> Scores:
    """The scores with those of newer predictions, where they are the run's alone."""
    if len(scores.columns) > 1:
        return scores
    column = scores.columns[0] if scores.columns else name
    found = {
        name: TaskScores(
            {column: result.scores},
            result.examples,
            result.data,
            result.headline,
            result.task.lower_is_better,
        )
        for name, result in results.items()
    }
    if not found:
        return scores
    return replace(scores, columns=[column], tasks={**scores.tasks, **found})


def with_baselines(scores: Scores, baselines: Mapping[str, Column]) -> Scores:
    """The scores of a run with the columns that they are compared with before them."""
    tasks = {
        name: replace(
            entry,
            by_column={label: column[name] for label, column in baselines.items() if name in column}
            | dict(entry.by_column),
        )
        for name, entry in scores.tasks.items()
    }
    return replace(scores, columns=[*baselines, *scores.columns], tasks=tasks)


def frequent_answers(results: Mapping[str, TaskResult]) -> str:
    """The most frequent answer of each task that has one."""
    found = {name: frequent_answer(result) for name, result in results.items()}
    return ", ".join(f"{name}: {answer}" for name, answer in found.items() if answer is not None)


def with_directions(scores: Scores, tasks: Mapping[str, Task]) -> Scores:
    """The scores with what their tasks say of them."""
    told = {
        label: replace(entry, lower_is_better=tasks[task_of(label)].lower_is_better)
        if task_of(label) in tasks
        else entry
        for label, entry in scores.tasks.items()
    }
    return replace(scores, tasks=told)


def names_of(folders: Sequence[Path]) -> list[str]:
    """Each run's folder, with as many of the folders above it as tell the runs apart."""
    places = [folder.resolve() for folder in folders]
    depth = 1
    while len({place.parts[-depth:] for place in places}) < len(places):
        depth += 1
    return [str(Path(*place.parts[-depth:])) for place in places]

"""What a report says: of each run, and of several side by side."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from vlds.config import Recipe
from vlds.metrics.caption_scores import CIDERS
from vlds.report.compute.baselines import FREQUENT
from vlds.report.compute.bootstrap import SEED
from vlds.report.compute.results import (
    Difference,
    TaskResult,
    difference,
    drawn_by_example,
    reasons,
)
from vlds.report.compute.seed_values import groups_of_seeds
from vlds.report.numbers import score_text
from vlds.report.read.inputs import RunInputs
from vlds.report.read.predictions import Predictions
from vlds.report.read.scores import Scores, TaskScores


@dataclass(frozen=True)
class RunReport:
    """What a report says of one run."""

    inputs: RunInputs
    facts: Mapping[str, str]
    """How it was trained."""
    results: Mapping[str, TaskResult]
    """Per task that has predictions and references, and its list of test data."""
    predictions: Mapping[str, Predictions] = field(default_factory=dict)
    """What the run said of each example, by the same names; also where no reference is known."""
    stopped: str = ""
    """The steps done, if the training has not ended."""
    notes: Sequence[str] = ()
    """What is missing, and why."""
    recipe: Recipe | None = None
    """None where it cannot be read."""

    @property
    def scores(self) -> Scores:
        """The scores of the run and of what it is compared with."""
        return self.inputs.scores

    def score(self, task: str, metric: str, column: str | None = None) -> float | None:
        """A score in a column; default: the last one, which is the run's own."""
        entry = self.scores.tasks.get(task)
        if entry is None:
            return None
        return entry.by_column.get(column or self.scores.columns[-1], {}).get(metric)

    def result(self, task: str, metric: str) -> TaskResult | None:
        """What is known of the examples behind that score; None if it is of other examples."""
        result, value = self.results.get(task), self.score(task, metric)
        if result is None or result.headline != metric or value is None:
            return None
        return result if abs(result.value - value) < 1e-6 else None


def is_same_data(runs: Iterable[RunReport], task: str) -> bool:
    """True where all runs that have a task scored it on the same data: by name and content or,
    where no run's are known, by equal ids and references of the predictions."""
    scored = [run for run in runs if task in run.scores.tasks]
    data = {run.scores.tasks[task].data for run in scored}
    if len(data) > 1 or None not in data or len(scored) == 1:
        return len(data) <= 1
    results = [run.results.get(task) for run in scored]
    known = [result.predictions.references for result in results if result is not None]
    return len(known) == len(scored) and all(references == known[0] for references in known)


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
        """Name and size of each task's data, where they are the same in all runs."""
        texts: dict[str, str] = {}
        for run in self.runs.values():
            for name, task in run.scores.tasks.items():
                if is_same_data(self.runs.values(), name):
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
        differences = [
            [
                difference(run.result(*headline), baseline.result(*headline), self.resamples)
                for headline in self.headlines
            ]
            for run in others
        ]
        if not any(isinstance(entry, Difference) for entries in differences for entry in entries):
            return {}
        return dict(zip(list(self.runs)[1:], differences, strict=True))

    @property
    def interval_notes(self) -> list[str]:
        """What the brackets mean, and why some are missing."""
        results = {name: run.results for name, run in self.runs.items()}
        every = [result for run in self.runs.values() for result in run.results.values()]
        notes = []
        if any(result.interval for result in every):
            notes.append(
                f"Brackets: the middle 95 % of {self.resamples:,} bootstrap resamples of the "
                "samples (a picture, pair or clip with all of its examples; percentiles; seed "
                f"{SEED}). They describe the draw of the samples, not the seed of the "
                "training."
            )
        if any(result.interval and result.headline in CIDERS for result in every):
            notes.append(
                "CIDEr's document frequencies are those of all pictures in every resample."
            )
        return notes + drawn_by_example(results) + reasons(results)

    def frequent_scores(self) -> list[float | None]:
        """Of each headline, the score of giving the most frequent answer to everything, where it is
        the same for all runs."""
        scores: list[float | None] = []
        for task, metric in self.headlines:
            runs = self.runs.values() if is_same_data(self.runs.values(), task) else ()
            known = (run.score(task, metric, FREQUENT) for run in runs)
            scores.append(next((score for score in known if score is not None), None))
        return scores

    def merged(self) -> Scores:
        """The runs' own scores, a column a run, as if they were models of one run."""
        tasks = dict.fromkeys(task for run in self.runs.values() for task in run.scores.tasks)
        return Scores(list(self.runs), {task: self.merged_task(task) for task in tasks})

    def merged_task(self, task: str) -> TaskScores:
        """One task's scores, a column a run."""
        by_column, lower = {}, set[str]()
        for name, run in self.runs.items():
            entry = run.scores.tasks.get(task)
            lower |= set(entry.lower_is_better if entry else ())
            scores = entry.by_column.get(run.scores.columns[-1]) if entry else None
            if scores:
                by_column[name] = scores
        headline = next((metric for known, metric in self.headlines if known == task), None)
        return TaskScores(
            by_column,
            headline=headline,
            lower_is_better=lower,
            is_same_data=is_same_data(self.runs.values(), task),
        )


def seed_groups(report: Report) -> list[list[str]]:
    """Groups of names of finished runs whose recipes differ only in seed and output. A group has at
    least two seeds; the first run of each seed counts."""
    ended = {n: run.inputs.recipe_tree for n, run in report.runs.items() if not run.stopped}
    return [
        [names[0] for names in seeds.values()] for seeds in groups_of_seeds(ended) if len(seeds) > 1
    ]


def mean_text(values: Sequence[float | None]) -> str:
    """Mean and standard deviation (n - 1); a dash if a run has no such score."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or len(known) < 2:
        return "-"
    return f"{score_text(statistics.mean(known))} +/- {score_text(statistics.stdev(known))}"


def seed_notes(report: Report) -> list[str]:
    """What the rows of means show."""
    if not seed_groups(report):
        return []
    return [
        "Mean +/- standard deviation (n - 1) over runs whose recipes differ in seed and output "
        "alone: how far another seed moves a score. The brackets do not show that."
    ]

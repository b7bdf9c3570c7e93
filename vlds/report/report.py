"""What a report says of one run and of several side by side: facts, scores and differences."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from datetime import UTC, datetime
from functools import cached_property
from pathlib import PurePath

from vlds.models.methods.base import Method
from vlds.recipe.config import Recipe
from vlds.report.baselines import Baselines
from vlds.report.numbers import groups_of_seeds
from vlds.report.predictions import Predictions
from vlds.report.read import RunInputs, Scores, TaskScores
from vlds.report.scores import SEED, Difference, TaskResult, difference, resampling_notes
from vlds.report.tables import score_text
from vlds.runtime.folders import Start
from vlds.runtime.terminal import duration_text
from vlds.tasks.metrics.caption_scores import CIDERS

MADE = ("started", "training took", "hardware", "versions", "command")
"""Facts about how a run was made."""


def trained_text(recipe: Recipe) -> str:
    """What a recipe trains: methods with their fields, norms, visual embedding."""
    trained = [method_text(method) for method in recipe.methods.values()]
    return " + ".join([*trained, *recipe.trained_text]) or "nothing"


def method_text(method: Method) -> str:
    """A method's class with its numbers, and with other fields that differ from their default."""
    shown = []
    for each in fields(method):
        value = getattr(method, each.name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        default = each.default if each.default_factory is MISSING else each.default_factory()
        if number or value != default:
            written = "/".join(map(str, value)) if isinstance(value, list) else value
            shown.append(f"{each.name}={written}")
    name = type(method).__name__
    return f"{name} ({', '.join(shown)})" if shown else name


def model_text(recipe: Recipe) -> str:
    """The kind of model, and where its weights are from."""
    sources = dict.fromkeys(recipe.model.sources.values())
    # A folder stands for the files in it.
    whole = [
        s for s in sources if not any(str(folder) in sources for folder in PurePath(s).parents)
    ]
    return f"{type(recipe.model).__name__} ({', '.join(whole) or 'random weights'})"


def facts_of(recipe: Recipe, run: RunInputs, starts: Sequence[Start]) -> dict[str, str]:
    """How a run was trained, as far as recipe and metrics tell; when, where and with what."""
    steps = "" if run.steps_done is None else f"{run.steps_done:,} of "
    facts = {
        "model": model_text(recipe),
        "method": trained_text(recipe),
        "steps": f"{steps}{recipe.training.num_steps:,}",
        "examples a step": ", ".join(f"{size:,}" for size in recipe.batch_sizes.values()),
        "learning rate": f"{recipe.optimizer.learning_rate:g}",
        "precision": recipe.training.precision,
        "DeepSpeed": recipe.training.deepspeed,
        "partition": run.partition,
        "seed": str(recipe.seed),
    }
    if starts:
        last = starts[-1]
        times = [
            f"{datetime.fromisoformat(s.time).astimezone(UTC):%Y-%m-%d %H:%M} UTC" for s in starts
        ]
        # The first start is the run's own; each later one resumes it.
        resumed = zip(times[1:], starts[1:], strict=True)
        changes = [f"at step {s.step:,}: {change}" for s in starts for change in s.changes]
        facts |= {
            "started": times[0],
            "resumed": ", ".join(f"{time} at step {start.step:,}" for time, start in resumed),
            "training took": duration_text(run.seconds) if run.seconds else "",
            "hardware": "; then ".join(dict.fromkeys(start.hardware for start in starts)),
            "versions": ", ".join(f"{name} {number}" for name, number in last.versions.items()),
            "command": last.command,
            "recipe changed": "; ".join(changes),
        }
    optional = ("partition", "resumed", "training took", "recipe changed")
    return {name: text for name, text in facts.items() if text or name not in optional}


@dataclass(frozen=True)
class RunReport:
    """What a report says of one run."""

    inputs: RunInputs
    facts: Mapping[str, str]
    """How the run was trained: name of the fact -> text."""
    results: Mapping[str, TaskResult]
    """Name of a task's list (TASK, TASK.test, TASK on DATA) -> its result, where predictions have
    references."""
    predictions: Mapping[str, Predictions] = field(default_factory=dict)
    """What the run said of each example, by the same names; also where no reference is known."""
    stopped: str = ""
    """The steps done, in words, if the training has not ended."""
    notes: Sequence[str] = ()
    """What is missing, and why."""
    recipe: Recipe | None = None
    """None where it cannot be read."""
    baselines: Baselines = field(default_factory=dict)
    """What the run is compared with, as far as its examples are known."""

    @property
    def subtitle(self) -> str:
        """Model, method, training data and the day of the run, as far as they are known."""
        day = self.facts.get("started", "").partition(" ")[0]
        known = [self.facts.get("model", ""), self.facts.get("method", ""), day]
        if self.recipe is not None:
            places = [place for task in self.recipe.tasks.values() for place in task.train]
            known.insert(2, ", ".join(dict.fromkeys(PurePath(place).name for place in places)))
        return "; ".join(filter(None, known))

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
        # scores.json may hold a newer score, of other weights or data, than the predictions do.
        return result if abs(result.value - value) < 1e-6 else None


def is_same_data(runs: Iterable[RunReport], task: str) -> bool:
    """True if all runs that have a task scored it on the same data: by name and content or, if no
    run names its data, by equal ids and references of the predictions."""
    scored = [run for run in runs if task in run.scores.tasks]
    data = {run.scores.tasks[task].data for run in scored}
    if len(data) > 1 or None not in data or len(scored) == 1:
        return len(data) <= 1
    # No run names its data, as earlier versions did not write it: compare the examples themselves.
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
        """The run, if there is one alone."""
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
        # Cached, because each bootstrap takes a while and a page asks twice: for the headings, and
        # for the table.
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
        if any(result.interval and result.value in (0, 1) for result in every):
            notes.append(
                "Where all examples score 0, or all 1, brackets are the exact interval (Clopper "
                "and Pearson) for as many samples, or groups where these are drawn."
            )
        if any(result.interval and result.headline in CIDERS for result in every):
            notes.append(
                "CIDEr's document frequencies are those of all pictures in every resample."
            )
        return notes + resampling_notes(results)

    def merged(self) -> Scores:
        """The runs' own scores, a column for each run, as if they were models of one run."""
        headlines = dict(reversed(self.headlines))  # of a task with several, the first one stays
        tasks = {}
        for task in dict.fromkeys(task for run in self.runs.values() for task in run.scores.tasks):
            by_column, lower = {}, set[str]()
            for name, run in self.runs.items():
                if (entry := run.scores.tasks.get(task)) is not None:
                    lower |= set(entry.lower_is_better)
                    if scores := entry.by_column.get(run.scores.columns[-1]):
                        by_column[name] = scores
            tasks[task] = TaskScores(by_column, headline=headlines.get(task), lower_is_better=lower)
        return Scores(list(self.runs), tasks)


def seed_groups(report: Report, fewest: int = 2) -> list[list[str]]:
    """Groups of names of finished runs whose recipes differ only in seed and output. A group has at
    least `fewest` seeds; the first run of each seed counts."""
    ended = {n: run.inputs.recipe_tree for n, run in report.runs.items() if not run.stopped}
    groups = [[first for first, *_ in seeds.values()] for seeds in groups_of_seeds(ended)]
    return [names for names in groups if len(names) >= fewest]


def mean_text(values: Sequence[float | None]) -> str:
    """Mean and standard deviation (n - 1); a dash if a run has no such score."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or len(known) < 2:
        return "-"
    return f"{score_text(statistics.mean(known))} +/- {score_text(statistics.stdev(known))}"

"""What a run's scores are compared with on the same data: the most frequent answers, the same model
without pictures, and the model before its training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from vlds.report.predictions import Predictions, read_predictions
from vlds.report.scores import Logged, TaskResult, checked_scores, results_of
from vlds.runtime.artifact_files import home_of
from vlds.runtime.folders import BLANK, PREDICTIONS
from vlds.tasks.base import task_of
from vlds.tasks.metrics.plain_scores import split as cell_of

FREQUENT, BLIND, FROZEN = "most frequent answer", "without pictures", "before training"
Baselines = Mapping[str, Mapping[str, TaskResult]]
"""What a run is compared with -> task -> result on the same data."""


def baselines_of(
    run: Path, results: Mapping[str, TaskResult], logged: Logged, notes: list[str], resamples: int
) -> Baselines:
    """Up to three: the most frequent answer of each type of question; the same model with blank
    pictures, if `vlds evaluate --data.blank_images true` has scored it; the model before its first
    step, if `training.evaluate_first` has. What cannot be read or scored here gets a note."""
    baselines: dict[str, dict[str, TaskResult]] = {FREQUENT: {}, BLIND: {}, FROZEN: {}}

    def add(label: str, name: str, made: Predictions, scores: Mapping[str, float]) -> None:
        known = results_of(
            {task_of(made.label): results[name].task}, {name: made}, {name: scores}, resamples
        )
        baselines[label] |= known

    for name, result in results.items():
        made = result.predictions
        blank = home_of(run) / PREDICTIONS / BLANK / f"{name}.jsonl"
        before = run / PREDICTIONS / "step-00000000" / f"{name}.jsonl"
        try:
            if (frequent := frequent_answers(result)) is not None:
                always = replace(made, predictions=frequent.answers)
                scores = result.task.score(always.predictions, made.references)
                add(FREQUENT, name, always, scores)
            # Other data than the run's newest predictions would compare two things at once.
            if blank.is_file() and (blind := read_predictions(blank)).data == made.data:
                add(BLIND, name, blind, checked_scores(result.task, blind))
            # Newest predictions of step 0 are themselves those before the training.
            first = read_predictions(before) if made.step != 0 and before.is_file() else None
            if first is not None and first.data == made.data:
                add(FROZEN, name, first, logged.get((0, name), {}))
        except ValueError as error:
            notes.append(f"Not all scores to compare {name} with: {error}")
    return {label: of_tasks for label, of_tasks in baselines.items() if of_tasks}


QUESTION_TYPE = "question_type"
FEWEST_OF_TYPE = 20
"""Examples of a type of question from which it has a most frequent answer of its own: of one
example, that answer would be right."""
MOST_TYPES = 10
"""Types that the facts name."""


class FrequentAnswers(NamedTuple):
    """What a model would say that knows no more than how often each answer is right."""

    answers: Mapping[str, str]
    """Of each example, by its id."""
    by_type: Mapping[str, str]
    """Type of question -> its answer; "": that of all questions without a type, or of rare ones."""

    @property
    def in_words(self) -> str:
        """What is compared with, in a sentence."""
        num = len(self.by_type.keys() - {""})
        if not num:
            return f"the most frequent answer ({self.by_type['']})"
        rest = " and of the rest" if "" in self.by_type else ""
        types = f"each of {num:,} question types" if num > 1 else "one question type"
        return f"the most frequent answer of {types}{rest}"

    @property
    def listed(self) -> str:
        """The answers, perhaps with their types: "red (what colour), 2 (how many)"."""
        if [*self.by_type] == [""]:
            return self.by_type[""]
        pairs = [f"{answer} ({kind or 'the rest'})" for kind, answer in self.by_type.items()]
        more = f", and {len(pairs) - MOST_TYPES:,} more" if len(pairs) > MOST_TYPES else ""
        return ", ".join(pairs[:MOST_TYPES]) + more


def frequent_answers(result: TaskResult) -> FrequentAnswers | None:
    """The answer that is right most often in the data: of each type of question, where the scores
    are told by types. None for tasks of free text, and for rankings."""
    task, references = result.task, result.predictions.references
    keys = [key for key, reference in references.items() if reference is not None]
    known = [references[key] for key in keys]
    if task.unit != "annotation" or task.ranks or not known:
        return None
    types = [""] * len(keys)
    # As the name of a cell, "accuracy/question_type/how many".
    if any((cell := cell_of(name)) and cell[1] == QUESTION_TYPE for name in result.scores):
        types = [str(kind or "") for kind in task.groups(known, QUESTION_TYPE)]
        sizes = Counter(types)
        types = [kind if sizes[kind] >= FEWEST_OF_TYPE else "" for kind in types]
    counts: dict[str, Counter[str]] = {}
    for kind, reference in zip(types, known, strict=True):
        if (answer := task.answer_of(reference)) is not None:
            counts.setdefault(kind, Counter())[answer] += 1
    if not counts:
        return None
    # Of equally frequent ones the first by name: the order of examples must not matter.
    by_type = {
        kind: min(of_type.items(), key=lambda pair: (-pair[1], pair[0]))[0]
        for kind, of_type in sorted(counts.items())
    }
    # Examples without a reference are not scored, and have any answer.
    answers = dict.fromkeys(references, "")
    answers |= {key: by_type.get(kind, "") for key, kind in zip(keys, types, strict=True)}
    return FrequentAnswers(answers, by_type)

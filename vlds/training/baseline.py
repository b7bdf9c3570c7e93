"""The blind baseline: always the answer that is most frequent in training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from vlds.data import Source


def majority_scores(training: Source, references: Mapping[str, Any]) -> dict[str, float] | None:
    """Scores of the most frequent training answer against an evaluation's references; None for
    free text."""
    answers: Counter[str] = Counter()
    task = training.task
    if task.unit != "annotation":
        return None
    for dataset in training.datasets:
        for number in range(dataset.num_samples):
            sample = dataset.read(number)
            for annotation in range(len(sample.annotations)):
                reference = task.example(training.name, sample, annotation, None).reference
                if (answer := task.answer_of(reference)) is not None:
                    answers[answer] += 1
    if not answers:
        return None
    majority = min(answers, key=lambda answer: (-answers[answer], answer))
    return task.score(dict.fromkeys(references, majority), references)

"""The blind baseline: always the answer that is most frequent in training."""

from __future__ import annotations

from collections import Counter

from vlds.data import Source
from vlds.training.evaluate import Evaluation


def majority_scores(training: Source, evaluation: Evaluation) -> dict[str, float] | None:
    """Scores of the most frequent training answer on an evaluation's examples; None for free text (captions)."""
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
    return task.score(dict.fromkeys(evaluation.references, majority), evaluation.references)

"""GQA's scores, as the official eval.py (https://gqadataset.org) computes them.

All scores count balanced questions only. `consistency` also needs the answers to entailed
questions, most of which are not balanced. Grounding is missing: it needs a model's attention.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

from vlds.tasks.metrics.plain_scores import matches, mean, mean_by_group, score_values, table

NO_STEPS = ("exist", "query: name", "choose name")
"""Operations that the official script does not count as steps: they only read off the answer."""

COMMON_ANSWERS = ("color", "material", "shape")
"""Answers to "what do the two have in common?"; the files of choices lack them."""

TABLES = ("half", "structural", "semantic", "steps", "words")
"""Tables of accuracy; all but the first are fields of a question."""

CHOICES = {"validity": "valid", "plausibility": "plausible"}
"""Score -> kind of choices that it counts."""


@dataclass(frozen=True)
class Question:
    """What the scores need of a question. Questions whose field is None are left out of its
    table."""

    answer: str
    balanced: bool = True
    structural: str | None = None
    """query, verify, choose, logical or compare."""
    semantic: str | None = None
    """obj, attr, cat, rel or global."""
    detailed: str | None = None
    group: str | None = None
    """Questions about the same thing ("color of a car"), for `distribution`."""
    entailed: Sequence[str] = ()
    """Ids of questions whose answers follow from this one's."""
    words: int | None = None
    """Length of the question."""
    steps: int | None = None
    """Length of its program, see `reasoning_steps`."""

    def __post_init__(self) -> None:
        for name, value in (("words", self.words), ("steps", self.steps)):
            if not isinstance(value, int | None):
                raise TypeError(f"{name} is {value!r:.60}, and no whole number")


def gqa_scores(
    predictions: Mapping[str, str],
    questions: Mapping[str, Question],
    choices: Mapping[str, Mapping[str, Collection[str]]] | None = None,
) -> dict[str, float]:
    """All scores that the data allow; every question has a prediction.

    `choices` has the "valid" and "plausible" answers of each balanced question.

    Errors: ValueError if no question is balanced.
    """
    balanced = {key: question for key, question in questions.items() if question.balanced}
    values = values_by_score(predictions, balanced, choices)
    scores: dict[str, float | None] = {
        "accuracy": mean(values["accuracy"]),
        "consistency": consistency(
            predictions,
            {key: question.answer for key, question in questions.items()},
            {key: question.entailed for key, question in balanced.items()},
        ),
        "distribution": distribution(predictions, balanced),
    }
    # Accuracy keeps its first place: the first score stands for the task.
    scores |= {name: mean(of_questions) for name, of_questions in values.items()}
    known = {name: score for name, score in scores.items() if score is not None}
    for by in TABLES:
        groups = [group_of(question, by) for question in balanced.values()]
        known |= table("accuracy", by, mean_by_group(values["accuracy"], groups))
    return known


def gqa_values(
    name: str,
    predictions: Mapping[str, str],
    questions: Mapping[str, Question],
    choices: Mapping[str, Mapping[str, Collection[str]]] | None = None,
) -> list[float] | None:
    """Each question's value of a score, NaN if it is not balanced. None for consistency and
    distribution, which are not means over questions."""
    values = values_by_score(predictions, questions, choices)
    scores = score_values(name, values, lambda by: [group_of(q, by) for q in questions.values()])
    if scores is None:
        return None
    pairs = zip(scores, questions.values(), strict=True)
    return [value if question.balanced else nan for value, question in pairs]


def values_by_score(
    predictions: Mapping[str, str],
    questions: Mapping[str, Question],
    choices: Mapping[str, Mapping[str, Collection[str]]] | None,
) -> dict[str, list[float]]:
    """Score -> 1.0 or 0.0 for each question: accuracy, and with choices validity and plausibility
    (is the prediction among the question's choices?)."""
    answers = (question.answer for question in questions.values())
    values = {"accuracy": matches((predictions[key] for key in questions), answers)}
    if choices is None:
        return values
    for name, kind in CHOICES.items():
        values[name] = []
        for key, question in questions.items():
            is_common = "Common" in (question.detailed or "")
            allowed = COMMON_ANSWERS if is_common else choices.get(key, {}).get(kind, ())
            values[name].append(float(predictions[key] in allowed))
    return values


def group_of(question: Question, by: str) -> Any:
    """A question's group in one of TABLES; None if it has none."""
    if by == "half":
        # The script's own halves: "query" asks for a word, the others offer two answers.
        kind = question.structural
        return kind and ("open" if kind == "query" else "binary")
    return getattr(question, by)


def counted(predictions: Mapping[str, str], references: Mapping[str, Any]) -> dict[str, Any]:
    """The references without questions that are not balanced and have no prediction: the official
    script does not need them."""
    return {
        key: given
        for key, given in references.items()
        if key in predictions or given is None or given["balanced"]
    }


def reasoning_steps(program: Sequence[Mapping[str, Any]]) -> int:
    """Steps of a question's `semantic` program."""
    # Operation and argument as one text, in which the script looks for the words anywhere.
    steps = (f"{step['operation']}: {step['argument']}" for step in program)
    return sum(not any(word in step for word in NO_STEPS) for step in steps)


def consistency(
    predictions: Mapping[str, str],
    answers: Mapping[str, str],
    entailed: Mapping[str, Sequence[str]],
) -> float | None:
    """Mean accuracy on what the correctly answered questions entail; 0 if none is correct.

    `entailed` names, for each question that counts, the questions whose answers follow from its
    answer. None if nothing is entailed, or an entailed question was not asked.
    """
    # As the official script: a question that entails itself does not count for it.
    others = {key: [name for name in names if name != key] for key, names in entailed.items()}
    others = {key: names for key, names in others.items() if names}
    # Without an answer to each of them the mean would be over some questions only.
    needed = {name for names in others.values() for name in names}
    if not needed or not needed <= answers.keys():
        return None
    # Each question once, although many entail the same ones.
    right = {key: predictions[key] == answers[key] for key in needed | others.keys()}
    shares = [mean([right[name] for name in names]) for key, names in others.items() if right[key]]
    return mean(shares) if shares else 0.0


def distribution(predictions: Mapping[str, str], questions: Mapping[str, Question]) -> float | None:
    """How far the answers' frequencies are from the true ones; 0 is the best.

    The mean of the groups' chi-square statistics, weighted by group size, divided by 100. An answer
    that is never correct in its group adds nothing by itself. None without groups.
    """
    true: dict[str, Counter[str]] = {}
    predicted: dict[str, Counter[str]] = {}
    for key, question in questions.items():
        if question.group is not None:
            true.setdefault(question.group, Counter())[question.answer] += 1
            predicted.setdefault(question.group, Counter())[predictions[key]] += 1
    # Questions in GQA's format need not have its groups.
    if not true:
        return None
    # Expected counts come from the right answers: one that is never right would divide by 0.
    total = sum(
        counts.total()
        * sum((predicted[group][answer] - n) ** 2 / n for answer, n in counts.items())
        for group, counts in true.items()
    )
    return total / sum(counts.total() for counts in true.values()) / 100

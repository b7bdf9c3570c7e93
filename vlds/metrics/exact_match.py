"""Accuracy by equality, its means per group, and the share of groups that are wholly right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

Group = TypeVar("Group", str, int)


def fold(text: str) -> str:
    """Lower case and single blanks: what free answers are compared in."""
    return " ".join(text.lower().split())


def exact_match(predictions: Sequence[str], answers: Sequence[str]) -> float:
    """Share of predictions that equal their answer, character by character, as in GQA."""
    return mean(matches(predictions, answers))


def matches(predictions: Iterable[str], answers: Iterable[str | None]) -> list[float]:
    """1.0 where the prediction equals its answer, else 0.0."""
    pairs = zip(predictions, answers, strict=True)
    return [float(prediction == answer) for prediction, answer in pairs]


def worth(prediction: str, label: Mapping[str, float]) -> float:
    """The score of a prediction in a table of answers, case and white space aside; 0 if absent."""
    return {fold(answer): score for answer, score in label.items()}.get(fold(prediction), 0.0)


def mean(scores: Sequence[float]) -> float:
    """Mean score.

    Errors: ValueError where there is nothing to score.
    """
    if not scores:
        raise ValueError("predictions: got none; there is nothing to score")
    return sum(scores) / len(scores)


def mean_by_group(scores: Iterable[float], groups: Sequence[Group | None]) -> dict[str, float]:
    """Mean score of each group, in the order of names or numbers; None is no group."""
    members = members_of(scores, groups)
    return {str(group): mean(members[group]) for group in sorted(members)}


def consistency(scores: Iterable[float], groups: Sequence[Group | None]) -> float:
    """Share of the groups whose members are all right.

    Errors: ValueError where there is no group.
    """
    return mean([float(all(found)) for found in members_of(scores, groups).values()])


def members_of(scores: Iterable[float], groups: Sequence[Group | None]) -> dict[Group, list[float]]:
    """The scores of each group."""
    members: dict[Group, list[float]] = {}
    for score, group in zip(scores, groups, strict=True):
        if group is not None:
            members.setdefault(group, []).append(score)
    return members

"""Accuracy by equality, and its means per group."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def fold(text: str) -> str:
    """Lower case and single blanks: what free answers are compared in."""
    return " ".join(text.lower().split())


def exact_match(predictions: Sequence[str], answers: Sequence[str]) -> float:
    """Share of predictions that equal their answer, character by character, as in GQA."""
    return mean(matches(predictions, answers))


def matches(predictions: Iterable[str], answers: Iterable[str]) -> list[float]:
    """1.0 where the prediction equals its answer, else 0.0."""
    pairs = zip(predictions, answers, strict=True)
    return [float(prediction == answer) for prediction, answer in pairs]


def mean(scores: Sequence[float]) -> float:
    """Mean score.

    Errors: ValueError where there is nothing to score.
    """
    if not scores:
        raise ValueError("predictions: got none; there is nothing to score")
    return sum(scores) / len(scores)


def mean_by_group(scores: Iterable[float], groups: Sequence[str | None]) -> dict[str, float]:
    """Mean score of each group, in the order of the names; None is no group."""
    members: dict[str, list[float]] = {}
    for score, group in zip(scores, groups, strict=True):
        if group is not None:
            members.setdefault(group, []).append(score)
    return {group: mean(members[group]) for group in sorted(members)}

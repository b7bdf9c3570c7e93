"""Exact match, its means by group, and the share of groups whose members are all correct."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

Group = TypeVar("Group", str, int)


def fold(text: str) -> str:
    """Lower case with single blanks, for comparing free answers."""
    return " ".join(text.lower().split())


def lower_line(text: str) -> str:
    """Lower case without blanks at the end: NLVR2's official script compares lines of a file so."""
    return text.rstrip().lower()


def matches(predictions: Iterable[str], answers: Iterable[str | None]) -> list[float]:
    """1.0 for a prediction that equals its answer character by character, as in GQA, else 0.0."""
    pairs = zip(predictions, answers, strict=True)
    return [float(prediction == answer) for prediction, answer in pairs]


def worth(prediction: str, label: Mapping[str, float]) -> float:
    """A prediction's score in a table of answers, ignoring case and white space; 0 if absent."""
    return {fold(answer): score for answer, score in label.items()}.get(fold(prediction), 0.0)


def mean(scores: Sequence[float]) -> float:
    """Mean score.

    Errors: ValueError if there are no scores.
    """
    if not scores:
        raise ValueError("predictions: got none; there is nothing to score")
    return sum(scores) / len(scores)


def mean_by_group(scores: Iterable[float], groups: Sequence[Group | None]) -> dict[str, float]:
    """Mean score of each group, sorted by name or number; scores of group None do not count."""
    members = members_of(scores, groups)
    return {str(group): mean(members[group]) for group in sorted(members)}


def consistency(scores: Iterable[float], groups: Sequence[Group | None]) -> float:
    """Share of the groups whose members are all correct.

    Errors: ValueError if there are no groups.
    """
    return mean([float(all(members)) for members in members_of(scores, groups).values()])


def members_of(scores: Iterable[float], groups: Sequence[Group | None]) -> dict[Group, list[float]]:
    """The scores of each group."""
    members: dict[Group, list[float]] = {}
    for score, group in zip(scores, groups, strict=True):
        if group is not None:
            members.setdefault(group, []).append(score)
    return members

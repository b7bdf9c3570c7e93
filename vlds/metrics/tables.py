"""Names of scores: "SCORE" is a plain score, "SCORE/TABLE/GROUP" is a cell of a table.

Everything that stores scores (metrics.jsonl, trackers, scores.json) holds names and numbers; the
names alone say which of them belong together. A group may contain slashes ("yes/no"), a score and a
table may not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import nan


def table(score: str, by: str, groups: Mapping[str, float]) -> dict[str, float]:
    """Scores of groups under their full names: table("accuracy", "structural", {"query": 0.5})."""
    assert "/" not in score + by
    return {f"{score}/{by}/{group}": value for group, value in groups.items()}


def split(name: str) -> tuple[str, str, str] | None:
    """(score, table, group) of a cell's full name; None for a plain score."""
    score, *rest = name.split("/", 2)
    return (score, rest[0], rest[1]) if len(rest) == 2 else None


def plain(scores: Mapping[str, float]) -> dict[str, float]:
    """The scores that are not cells of a table."""
    return {name: value for name, value in scores.items() if split(name) is None}


def score_values(
    name: str,
    values: Mapping[str, Sequence[float]],
    groups_by: Callable[[str], Sequence[object]] = lambda by: (),
) -> list[float] | None:
    """Each example's value of a score. For a cell, examples of other groups are NaN. None for a
    score without values.

    `values`: score -> value of each example; `groups_by`: table -> group of each example.
    """
    score, by, group = split(name) or (name, "", "")
    if score not in values:
        return None
    if not by:
        return list(values[score])
    pairs = zip(values[score], groups_by(by), strict=True)
    return [value if of is not None and str(of) == group else nan for value, of in pairs]

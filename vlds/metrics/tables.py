"""Names of scores: a plain one is a number of its own, "SCORE/TABLE/GROUP" is a cell of a table.

Everything that carries scores (metrics.jsonl, trackers, scores.json) holds names and numbers; the
names alone say which of them belong together. A group may have slashes itself ("yes/no"), a score
and a table have none.
"""

from __future__ import annotations

from collections.abc import Mapping

Groups = dict[str, float]
"""Group -> score, in the order in which it is shown."""


def table(score: str, by: str, groups: Mapping[str, float]) -> dict[str, float]:
    """Scores of groups under their full names: table("accuracy", "structural", {"query": 0.5})."""
    assert "/" not in score + by
    return {f"{score}/{by}/{group}": value for group, value in groups.items()}


def split(name: str) -> tuple[str, str, str] | None:
    """(score, table, group) of a cell's full name; None for a score of its own."""
    score, *rest = name.split("/", 2)
    return (score, rest[0], rest[1]) if len(rest) == 2 else None


def plain(scores: Mapping[str, float]) -> dict[str, float]:
    """The scores that stand for themselves."""
    return {name: value for name, value in scores.items() if split(name) is None}


def tables(scores: Mapping[str, float]) -> dict[tuple[str, str], Groups]:
    """(score, table) -> its groups, in the order in which they come."""
    found: dict[tuple[str, str], Groups] = {}
    for name, value in scores.items():
        if cell := split(name):
            score, by, group = cell
            found.setdefault((score, by), {})[group] = value
    return found

"""Runs that differ in their seed alone: mean and standard deviation of their scores."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from vlds.recipe.paths import STARTED_IN
from vlds.report.compute.report import Report
from vlds.report.numbers import score_text

APART = ("seed", "output", STARTED_IN)
"""Keys of the recipe in which such runs differ."""


def seed_groups(report: Report) -> list[list[str]]:
    """Names of runs whose recipes are equal but for seed and output, two seeds or more a group; of
    runs with the same seed the first counts. A run that has not ended is in none."""
    groups: list[tuple[object, dict[str, str]]] = []
    for name, run in report.runs.items():
        recipe = run.inputs.recipe_tree
        if not recipe or run.stopped:
            continue
        rest = {key: value for key, value in recipe.items() if key not in APART}
        seeds = next((seeds for known, seeds in groups if known == rest), None)
        if seeds is None:
            groups.append((rest, seeds := {}))
        seeds.setdefault(str(recipe.get("seed")), name)
    return [list(seeds.values()) for _, seeds in groups if len(seeds) > 1]


def mean_text(values: Sequence[float | None]) -> str:
    """Mean and standard deviation (n - 1); a dash where a run lacks the score."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or len(known) < 2:
        return "-"
    return f"{score_text(statistics.mean(known))} +/- {score_text(statistics.stdev(known))}"


def seed_notes(report: Report) -> list[str]:
    """What the rows of means are."""
    if not seed_groups(report):
        return []
    return [
        "Mean +/- standard deviation (n - 1) over runs whose recipes differ in seed and output "
        "alone: how far another seed moves a score. The brackets do not tell that."
    ]

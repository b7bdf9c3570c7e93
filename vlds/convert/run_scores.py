"""The scores of an artifact, as far as its run folder knows them.

`vlds evaluate` writes RUN/predictions/scores.json; training logs the scores of its evaluations,
with their steps, in RUN/metrics.jsonl. RUN/best/best.json says which step that artifact is of.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from vlds.artifact import WEIGHTS, artifact_folder
from vlds.config import Recipe
from vlds.evaluation.scores_json import Scored, read_scores
from vlds.metrics.tables import plain
from vlds.runtime.json_file import parse_json, read_json
from vlds.runtime.manifest import recorded_hash
from vlds.runtime.metrics_file import read_metric_lines
from vlds.runtime.regular_file import open_file
from vlds.runtime.run_folder import PREDICTIONS

LONGEST_LINE = 1 << 20
"""Bytes of a prediction that are read."""


def scores_of_run(run: Path, recipe: Recipe) -> dict[str, Scored]:
    """Task -> the scores of the whole on the data that the recipe names, by the artifact's weights;
    empty where none are known."""
    folder = artifact_folder(run)
    with suppress(ValueError):  # somebody's file: a card can do without
        scored, weights = read_scores(run / PREDICTIONS), recorded_hash(folder, WEIGHTS)
        # The run may have trained on since it was evaluated.
        if of_these := {task: e for task, e in scored.items() if e.weights == weights}:
            return {task: entry for task, entry in of_these.items() if plain(entry.scores)}
    if (step := step_of(folder, recipe)) is None:
        return {}
    logged = logged_scores(folder.parent / "metrics.jsonl", step)
    return {
        task: Scored(*scored_data(folder.parent, step, task), scores)
        for task, scores in logged.items()
        if plain(scores)
    }


def scored_data(run: Path, step: int, task: str) -> tuple[str | None, int | None]:
    """The data that a run's evaluation after a step was on, and its number of examples; None where
    its predictions do not say."""
    with suppress(OSError, ValueError, AttributeError):
        with open_file(run / PREDICTIONS / f"step-{step:08d}" / f"{task}.jsonl") as file:
            line = parse_json(file.readline(LONGEST_LINE))
        data, number = line.get("data"), line.get("of")
        return (
            data if isinstance(data, str) else None,
            number if isinstance(number, int) and number >= 0 else None,
        )
    return None, None


def step_of(folder: Path, recipe: Recipe) -> int | None:
    """The step of an artifact: the run's last, or that of its best evaluation."""
    with suppress(OSError, ValueError):
        step = read_json(folder / "best.json")["step"]
        return step if isinstance(step, int) else None
    return recipe.training.num_steps if recipe.training.epochs is None else None


def logged_scores(file: Path, step: int) -> Mapping[str, Mapping[str, float]]:
    """Task -> the scores of a step in metrics.jsonl."""
    for _, line in reversed(read_metric_lines(file).lines):
        if line["step"] == step and "scores" in line:
            scores: Mapping[str, Mapping[str, float]] = line["scores"]
            return scores
    return {}

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
from vlds.runtime.json_file import read_json
from vlds.runtime.manifest import recorded_hash
from vlds.runtime.metrics_file import read_metric_lines
from vlds.runtime.run_folder import PREDICTIONS


def scores_of_run(run: Path, recipe: Recipe) -> dict[str, Scored]:
    """Task -> the scores of the whole on the data that the recipe names, by the artifact's weights;
    empty where none are known."""
    folder = artifact_folder(run)
    with suppress(ValueError):  # somebody's file: a card can do without
        scored, weights = read_scores(run / PREDICTIONS), recorded_hash(folder, WEIGHTS)
        # The run may have trained on since it was evaluated.
        if of_these := {task: e for task, e in scored.items() if e.weights == weights}:
            return {task: entry for task, entry in of_these.items() if plain(entry.scores)}
    logged = logged_scores(folder.parent / "metrics.jsonl", step_of(folder, recipe))
    return {task: Scored(None, None, scores) for task, scores in logged.items() if plain(scores)}


def step_of(folder: Path, recipe: Recipe) -> int | None:
    """The step of an artifact: the run's last, or that of its best evaluation."""
    with suppress(OSError, ValueError):
        step = read_json(folder / "best.json")["step"]
        return step if isinstance(step, int) else None
    return recipe.training.num_steps if recipe.training.epochs is None else None


def logged_scores(file: Path, step: int | None) -> Mapping[str, Mapping[str, float]]:
    """Task -> the scores of a step in metrics.jsonl."""
    for _, line in reversed(read_metric_lines(file).lines):
        if line["step"] == step and "scores" in line:
            scores: Mapping[str, Mapping[str, float]] = line["scores"]
            return scores
    return {}

"""The scores of a run in percent, as a table of runs shows them.

The average of a row is VL-Adapter's: the mean of its tasks' scores, where CIDEr counts 100 times
its value as every score does.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from vlds.evaluation.scores_json import Scored, read_scores
from vlds.report.compute.compared_columns import AVERAGE
from vlds.report.read.inputs import RunInputs
from vlds.runtime.run_folder import PREDICTIONS
from vlds.tasks.base import Split, label_of, task_of


def scores_of(run: RunInputs, split: Split) -> dict[str, Mapping[str, float]]:
    """Task -> scores on one of its lists: by `vlds evaluate`, or as the training logged them
    last."""
    logged = [line["scores"] for line in run.lines if "scores" in line]
    found = dict(logged[-1]) if logged and split == "evaluate" else {}
    stored: dict[str, Scored] = read_scores(run.folder) | read_scores(run.folder / PREDICTIONS)
    for label, entry in stored.items():
        if entry.scores and label == label_of(task_of(label), split):
            found[task_of(label)] = entry.scores
    return found


def metric_of(
    task: str, asked: str | None, runs: Sequence[Mapping[str, Mapping[str, float]]]
) -> str:
    """The score that stands for a task.

    Errors: ValueError if no run has the one that is asked for.
    """
    names = list(dict.fromkeys(name for scores in runs for name in scores.get(task, {})))
    if asked is None and names:
        return names[0]
    if asked is None or (names and asked not in names):
        whole = ", ".join(name for name in names if "/" not in name) or "none"
        raise ValueError(f"scores.{task}: no run has {asked or 'a score'}; there are {whole}")
    return asked


def percents(
    scores: Mapping[str, Mapping[str, float]], metrics: Mapping[str, str]
) -> dict[str, float]:
    """Scores times 100, and their average if none is missing."""
    found = {
        task: 100 * scores[task][metric]
        for task, metric in metrics.items()
        if metric in scores.get(task, {})
    }
    return found | (
        {AVERAGE: statistics.mean(found.values())} if len(found) == len(metrics) else {}
    )

"""The scores of runs as a table of several runs shows them: 100 times their value.

The table takes the score that stands for a task in all other places too (`headline_of`). An average
is over scores of one scale: of accuracies and a CIDEr, which lies in 0..10, it would be mostly the
CIDEr. Papers publish such averages all the same (VL-Adapter), so a sweep that names one has it.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence

from vlds.metrics.caption_scores import CIDERS
from vlds.report.compute.compared_columns import AVERAGE
from vlds.report.read.inputs import RunInputs
from vlds.report.read.scores import headline_of
from vlds.tasks.base import Split, label_of, task_of

SHARES, CIDER = "0 to 1", "0 to 10"
"""Scales of scores."""


def scores_of(run: RunInputs, split: Split) -> dict[str, Mapping[str, float]]:
    """Task -> scores on one of its lists: by `vlds evaluate`, or as the training logged them
    last."""
    logged = [line["scores"] for line in run.lines if "scores" in line]
    found = dict(logged[-1]) if logged and split == "evaluate" else {}
    for label, entry in run.stored.items():
        if entry.scores and label == label_of(task_of(label), split):
            found[task_of(label)] = entry.scores
    return found


def metric_of(
    task: str,
    asked: str | None,
    runs: Sequence[RunInputs],
    known: Sequence[Mapping[str, Mapping[str, float]]],
    notes: list[str],
) -> str:
    """The score that stands for a task in the table; a note where the runs name several. `known`:
    the scores of each run.

    Errors: ValueError if no run has the one that is asked for.
    """
    names = list(dict.fromkeys(name for scores in known for name in scores.get(task, {})))
    named = list(dict.fromkeys(run.headlines[task] for run in runs if task in run.headlines))
    first = next((name for name in named if name in names), None)
    metric = headline_of(names, first if asked is None else asked)
    if metric is None or (asked is not None and metric != asked):
        whole = ", ".join(name for name in names if "/" not in name) or "none"
        raise ValueError(f"scores.{task}: no run has {asked or 'a score'}; there are {whole}")
    if asked is None and len(named) > 1:
        notes.append(
            f"{task}: the recipes name different scores, {' and '.join(named)}; {metric} is shown."
        )
    return metric


def scales_of(metrics: Mapping[str, str], lower: Collection[str]) -> dict[str, list[str]]:
    """Scale -> the tasks whose scores have it. `lower`: tasks whose lowest score is the best."""
    scales: dict[str, list[str]] = {}
    for task, metric in metrics.items():
        scale = CIDER if metric in CIDERS else SHARES
        scales.setdefault(f"{metric}, best where low" if task in lower else scale, []).append(task)
    return scales


def percents(
    scores: Mapping[str, Mapping[str, float]], metrics: Mapping[str, str], averages: bool
) -> dict[str, float]:
    """Scores times 100; with `averages` also their average, if none is missing."""
    found = {
        task: 100 * scores[task][metric]
        for task, metric in metrics.items()
        if metric in scores.get(task, {})
    }
    whole = averages and len(found) == len(metrics)
    return found | ({AVERAGE: statistics.mean(found.values())} if whole else {})

"""The curves of a training: losses, scores, learning rate and gradient norm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from vlds.report.compute.report import Report
from vlds.report.read.inputs import Curve, Metrics
from vlds.report.render.charts import Chart, by_task, charts_of
from vlds.runtime.checks import is_number

OTHERS = {"learning rate": "learning_rate", "gradient norm": "gradient_norm"}
"""Title of a chart -> key in metrics.jsonl."""


class ChartGroup(NamedTuple):
    """Charts under one heading."""

    id: str
    title: str
    charts: list[Chart]

    @property
    def has_log(self) -> bool:
        """True if the page can switch to a log scale."""
        return any(chart.scale == "log" for chart in self.charts)


def training_charts(report: Report) -> list[ChartGroup]:
    """Charts that each show all runs; groups without any logged values are left out."""
    several = len(report.runs) > 1
    runs = {name if several else "": run.inputs for name, run in report.runs.items()}
    losses = by_task({name: run.losses for name, run in runs.items()})
    scores = by_task({name: run.score_curves for name, run in runs.items()})
    others = by_task({name: other_curves(run.lines) for name, run in runs.items()})
    groups = [
        ChartGroup(
            "loss",
            "Loss",
            [
                chart
                for task, curves in losses.items()
                if task or len(losses) != 2  # of a single task, both are the same
                for chart in charts_of(task or "all tasks", curves, both_scales=True)
            ],
        ),
        ChartGroup(
            "course",
            "Score during training",
            [chart for task, curves in scores.items() for chart in score_charts(task, curves)],
        ),
        ChartGroup(
            "optimizer",
            "Learning rate and gradient norm",
            [chart for title, curves in others.items() for chart in charts_of(title, curves)],
        ),
    ]
    return [group for group in groups if group.charts]


def score_charts(task: str, curves: Mapping[str, Curve]) -> list[Chart]:
    """Scores from 0 to 1; those above 1 (CIDEr) stretch their own chart. A score that was taken
    once stands in the table."""
    if max(map(len, curves.values())) < 2:
        return []
    fits = all(0 <= y <= 1 for points in curves.values() for _, y in points)
    return charts_of(task, curves, y_range=(0.0, 1.0) if fits else None)


def other_curves(lines: Iterable[Metrics]) -> dict[str, Curve]:
    """Curves of the logged values in OTHERS, by title."""
    curves: dict[str, Curve] = {}
    for line in lines:
        for title, key in OTHERS.items():
            if key in line and is_number(line[key]):
                curves.setdefault(title, []).append((line["step"], line[key]))
    return {title: curves[title] for title in OTHERS if title in curves}

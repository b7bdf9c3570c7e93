"""What finished runs scored and cost, as tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlds.evaluation.scores_json import read_scores
from vlds.report.read.inputs import read_run

SCORES = {
    "vqa": "vqa_accuracy",
    "gqa": "accuracy",
    "nlvr2": "accuracy",
    "caption": "word_f1",
}
"""Task -> its score in the table."""
STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
"""Number of seeds n -> 97.5 % quantile of Student's t with n - 1 degrees of freedom."""


@dataclass(frozen=True)
class Measured:
    """The result of one run."""

    scores: Mapping[str, float]
    """Task -> score, and "mean"; in percent."""
    stored: int
    """Bytes of the artifact's weights."""
    percent: float | None
    """Trainable share of the weights; None if nothing was trained, and so for `speed`."""
    speed: float | None
    """Training examples per second, the median of the log's lines."""


Results = Mapping[tuple[str, int, float], Measured]
"""(row, seed, learning rate) -> the result."""


def read_trained(output: Path) -> Measured:
    """The result of a finished run."""
    run = read_run(output)
    last = [line["scores"] for line in run.lines if "scores" in line][-1]
    speed = run.scores.samples_per_second["training"]
    return Measured(
        in_percent(last), stored_in(output / "artifact"), run.scores.trainable["percent"], speed
    )


def read_merged(output: Path, scores: Path) -> Measured:
    """The result of merging, `scores` by `vlds evaluate`."""
    found = {task: entry.scores for task, entry in read_scores(scores).items()}
    return Measured(in_percent(found), stored_in(output), None, None)


def in_percent(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The table's scores of each task, and their mean."""
    percents = {task: 100 * scores[task][score] for task, score in SCORES.items()}
    return percents | {"mean": statistics.mean(percents.values())}


def stored_in(artifact: Path) -> int:
    """Bytes of its weights."""
    return sum(file.stat().st_size for file in artifact.glob("*.safetensors"))


def rates_table(measured: Results) -> str:
    """Mean score of every row at every learning rate."""
    rates = sorted({rate for _, _, rate in measured})
    lines = [f"| | {' | '.join(f'{rate:g}' for rate in rates)} |", "|---" * (len(rates) + 1) + "|"]
    for name in dict.fromkeys(name for name, _, _ in measured):
        means = []
        for rate in rates:
            runs = [run for key, run in measured.items() if (key[0], key[2]) == (name, rate)]
            means.append(statistics.mean(run.scores["mean"] for run in runs))
        lines.append(f"| {name} | {' | '.join(f'{mean:.1f}' for mean in means)} |")
    return "\n".join(lines)


def methods_table(measured: Results, seeds: Sequence[int], reference: str) -> str:
    """One line per row: costs, then scores with 95 % confidence intervals over the seeds, and the
    distance of the mean from that of the row `reference`, if it was run."""
    costs, scores = "trains % | stores kB | examples/s", "VQA | GQA | NLVR2 | caption F1 | mean"
    lines = [f"| | {costs} | {scores} | to {reference} |", "|---" * 10 + "|"]
    names = list(dict.fromkeys(name for name, _, _ in measured))
    base = by_seed(measured, reference, seeds) if reference in names else []
    for name in names:
        runs = by_seed(measured, name, seeds)
        speeds = [run.speed for run in runs if run.speed is not None]
        cells = [
            "" if runs[0].percent is None else f"{runs[0].percent:.2f}",
            f"{runs[0].stored / 1000:,.0f}",
            f"{statistics.median(speeds):,.0f}" if speeds else "",
        ]
        for task in [*SCORES, "mean"]:
            cells.append(interval([run.scores[task] for run in runs]))
        gains = [a.scores["mean"] - b.scores["mean"] for a, b in zip(runs, base, strict=False)]
        cells.append(interval(gains, sign="+") if gains and name != reference else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def by_seed(measured: Results, name: str, seeds: Sequence[int]) -> list[Measured]:
    """A row's runs in the order of the seeds."""
    runs = {seed: run for (row, seed, _), run in measured.items() if row == name}
    return [runs[seed] for seed in seeds]


def interval(values: Sequence[float], sign: str = "") -> str:
    """Mean and half the width of its 95 % confidence interval (Student's t)."""
    mean = format(statistics.mean(values), f"{sign}.1f")
    if len(values) < 2:
        return mean
    half = STUDENT_T[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean} ± {half:.1f}"

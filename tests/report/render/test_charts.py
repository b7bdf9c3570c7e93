"""Charts: lines on two scales with values to read, bars where there are few; and matrices of which
answers are taken for which others.
"""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from vlds.report.charts import (
    BOTTOM,
    HEIGHT,
    MOST_PAIRS,
    TOP,
    charts_of,
    confusions,
    thinned,
)
from vlds.report.examples import Answered, TaskAnswers

FALLING = [(float(step), 10.0 ** (2 - step / 100)) for step in range(0, 401)]


def test_a_log_scale_makes_a_line_of_what_falls_by_the_same_factor() -> None:
    linear, log = charts_of("loss", {"run": FALLING}, both_scales=True)
    assert (linear.scale, log.scale) == ("linear", "log")
    ys = [float(spot.split(",")[1]) for spot in log.lines[0].path.split()]
    steps = [after - before for before, after in pairwise(ys)]
    assert max(steps) - min(steps) < 0.4
    assert [tick.text for tick in log.y_ticks] == ["0.01", "0.1", "1", "10", "100"]
    assert [tick.at for tick in log.y_ticks][::4] == [HEIGHT - BOTTOM, TOP]


@pytest.mark.parametrize("odd", [0.0, -1.0, 1e305])
def test_what_a_log_scale_cannot_show_has_one_scale(odd: float) -> None:
    (chart,) = charts_of("loss", {"run": [*FALLING[:100], (401.0, odd)]}, both_scales=True)
    assert chart.scale == ""


def test_two_points_are_bars_and_one_is_a_number() -> None:
    (two,) = charts_of("score", {"a": [(5.0, 0.25), (10.0, 0.5)], "b": [(10.0, 0.4)]})
    assert [(bar.label, bar.value, bar.share) for bar in two.bars] == [
        ("a step 5", "0.25", 0.5), ("a step 10", "0.5", 1.0), ("b step 10", "0.4", 0.8),
    ]  # fmt: skip
    assert [bar.look for bar in two.bars] == ["c0 d0", "c0 d0", "c1 d0"]
    assert (two.lines, two.bands) == ([], [])
    (one,) = charts_of("score", {"a": [(5000.0, 0.25), (6000.0, math.nan)], "b": []})
    assert (one.title, one.last) == ("score, step 5,000", "0.25")
    assert (one.lines, one.bars) == ([], [])
    assert charts_of("score", {"a": [(1.0, math.nan)]}) == []


def test_many_points_become_few_and_keep_their_mean() -> None:
    points = [(float(step), float(step % 2)) for step in range(10_000)]
    shown = thinned([*points, (10_000.0, float("nan"))], 200)
    assert len(shown) == 200
    assert sum(y for _, y in shown) / 200 == pytest.approx(0.5)


def answers(*pairs: tuple[str, str]) -> TaskAnswers:
    """Of (answer, what was said)."""
    examples = {
        str(number): Answered(answer, answer, said, said == answer, None)
        for number, (answer, said) in enumerate(pairs)
    }
    return TaskAnswers("vqa", (), examples)


def test_few_answers_have_a_matrix_alone() -> None:
    pairs = [("yes", "yes")] * 6 + [("yes", "no")] * 2 + [("no", "yes")] * 3 + [("no", "maybe")]
    (found,) = confusions({"vqa": answers(*pairs)})
    assert found.table.heads == ["answer \\ said", "yes", "no", "other"]
    assert [(row.head, [cell.text for cell in row.cells]) for row in found.table.rows] == [
        ("yes", ["6", "2", "0"]), ("no", ["3", "0", "1"]),
    ]  # fmt: skip


def test_many_answers_have_pairs_and_a_rest() -> None:
    pairs = [(str(n), "?" * n) for n in range(1, MOST_PAIRS + 4) for _ in range(2)]
    (found,) = confusions({"vqa": answers(*pairs)})
    first, *_, last = found.table.rows
    assert (first.head, [cell.text for cell in first.cells]) == ("1", ["?", "2", "100 %"])
    assert len(found.table.rows) == MOST_PAIRS + 1
    assert [cell.text for cell in last.cells] == ["", "6", ""]

"""Tables for the terminal, and numbers as people read them."""

from __future__ import annotations

import pytest
from rich.console import Console

from tests.toys.report_run import COLUMNS, SCORES, TASKS
from vlds.report.charts import thinned, tick_text, ticks
from vlds.report.run_tables import summary_table
from vlds.report.tables import terminal_table
from vlds.runtime.terminal import bytes_text


def test_the_summary_fits_eighty_columns() -> None:
    console = Console(width=80, record=True, color_system=None)
    console.print(terminal_table(summary_table(SCORES)))
    lines = console.export_text().splitlines()
    assert len(lines) == 1 + len(TASKS)
    assert all(label in lines[0] for label in COLUMNS)
    assert lines[1].split() == ["vqa", "vqa_accuracy", "1,234", "0.200", "0.400", "0.600", "0.800"]
    assert lines[4].split() == ["caption", "word_f1", "1,234", "-", "0.400", "0.600", "0.800"]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (860_000, "860.0 kB"), (2.5e9, "2.5 GB"), (7e15, "7,000.00 TB")],
)
def test_bytes(count: float, text: str) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.5, 1]),
        (0, 2.7, [0, 1, 2, 3]),
        (0, 400, [0, 100, 200, 300, 400]),
        (-0.3, 0.1, [-0.3, -0.2, -0.1, 0, 0.1]),
        (0, 0, [0, 0.5, 1]),
    ],
)
def test_ticks_span_the_data_in_round_steps(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_tick_texts_are_short() -> None:
    texts = [tick_text(value) for value in (0.0, 0.25, 1500.0, 120_000.0)]
    assert texts == ["0", "0.25", "1500", "120k"]


def test_many_points_become_few_and_keep_their_mean() -> None:
    points = [(float(step), float(step % 2)) for step in range(10_000)]
    shown = thinned([*points, (10_000.0, float("nan"))], 200)
    assert len(shown) == 200
    assert sum(y for _, y in shown) / 200 == pytest.approx(0.5)

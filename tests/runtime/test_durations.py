"""Times as people read them."""

from __future__ import annotations

import pytest

from vlds.runtime.terminal import clock, duration_text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.04 s"), (9.4, "9.4 s"), (9.6, "10 s"), (75, "1 min 15 s"), (3600, "1 h 00 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "00:00:00"), (3_599.6, "01:00:00"), (108_300, "30:05:00"), (1e6, "277:46:40")],
)
def test_a_clock_does_not_begin_again_after_a_day(seconds: float, text: str) -> None:
    assert clock(seconds) == text

"""The progress line on a terminal."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from vlds.training.tracker import progress_bar

TOLD = "loss 0.213  1,422 examples/s  vqa 0.222  gqa 0.131  nlvr2 0.172  caption 0.399"


@pytest.mark.parametrize("width", [50, 80, 200])
def test_steps_and_time_left_are_never_cut(width: int) -> None:
    out = StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    bar = progress_bar(console, 17_000, 0)
    bar.update(bar.task_ids[0], completed=12_345, description=TOLD)
    bar.refresh()
    bar.stop()
    line = out.getvalue().split("\r")[-1].splitlines()[0]
    assert "12345/17000 " in line
    assert ":" in line.split("12345/17000 ")[1][:8]
    assert "loss 0.213" in line
    assert (TOLD in line) == (width == 200)

"""The progress line on a terminal, and plain lines elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from tests.toys.files import ROOT
from tests.toys.world import world_recipe
from vlds.recipe.config import save_recipe
from vlds.training.sinks import progress_bar

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


PROGRAM = """
import sys
import torch
from vlds.recipe.config import load_recipe
from vlds.runtime import terminal
from vlds.runtime.ranks import Ranks
from vlds.training.sinks import Tracker

terminal.SECONDS_BETWEEN_LINES = 0.0
tracker = Tracker(load_recipe(sys.argv[1]), Ranks(0, 1, 0, 1, torch.device("cpu")), 0)
tracker.say("step 1 of 10, [bold]3[/bold] losses")
list(terminal.follow(range(2), "reading", 2))
tracker.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE"])
def test_what_is_no_terminal_gets_plain_lines(variable: str, world: Path, tmp_path: Path) -> None:
    """Notebooks and build servers set such variables for every program."""
    recipe = world_recipe(world, tmp_path / "run")
    Path(recipe.output).mkdir()
    save_recipe(recipe, tmp_path / "recipe.yaml")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "recipe.yaml")],
        env={**os.environ, variable: "1", "TERM": "xterm"},
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "step 1 of 10, [bold]3[/bold] losses\n", done.stderr
    assert done.stderr == "reading: 0 of 2\nreading: 1 of 2\n"

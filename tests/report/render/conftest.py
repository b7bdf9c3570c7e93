"""Runs that several tests of the page look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.toys.files import read_lines
from tests.toys.report_run import write_report_run
from tests.toys.scored_runs import HOSTILE, Runs, lines_of, scored_recipe, write_scored_run


@pytest.fixture(scope="module")
def sure(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that says how sure it is: of every third mistake very; one answer is hostile."""
    folder = tmp_path_factory.mktemp("sure") / "sure"
    recipe = scored_recipe(runs.world, folder)
    lines = {task: lines_of(config, 3) for task, config in recipe.tasks.items()}
    for found in lines.values():
        for number, line in enumerate(found):
            line["confidence"] = 0.95 if number % 9 == 0 else 0.5
    for line in lines["vqa"]:
        line["reference"]["answer_type"] = "colour" if line["id"] < "q2" else "other"
    lines["vqa"][0]["prediction"] = HOSTILE
    return write_scored_run(folder, recipe, lines)


EVIL = (
    "<script>alert(1)</script>",
    "</figure></section><img src=http://example.com/x onerror=alert(2)>",
    '" onload="alert(3)',
    "&lt;b&gt; &amp; ]]> --><style>*{display:none}</style>",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645 abc",
    "word " * 400,
    "x" * 500,
    "is \u202ereversed\x1b[2J",
    "",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report_run(tmp_path_factory.mktemp("runs") / "adapters-<1>")


@pytest.fixture(scope="module")
def evil(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that says what would break a careless page, and is not sure of it."""
    folder = tmp_path_factory.mktemp("evil") / "a <b>run</b> & \u05e9\u05dc\u05d5\u05dd"
    recipe = scored_recipe(runs.world, folder)
    lines = {}
    for task in recipe.tasks:
        file = runs.first / "predictions" / "step-00000010" / f"{task}.jsonl"
        found = read_lines(file)
        lines[task] = [
            line | {"prediction": EVIL[n % len(EVIL)], "confidence": 0.125}
            for n, line in enumerate(found)
        ]
    return write_scored_run(folder, recipe, lines)

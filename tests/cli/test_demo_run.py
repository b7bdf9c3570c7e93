"""The whole demo, as a newcomer starts it, keeps the promises about its scores."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.toys.files import ROOT, read_lines
from vlds.report.read import read_run

pytestmark = [pytest.mark.slow, pytest.mark.launcher]

FROZEN_AT_MOST = {"vqa": 0.35, "gqa": 0.60, "nlvr2": 0.45, "caption": 0.05}
ADAPTERS_AT_LEAST = {"vqa": 0.84, "gqa": 0.84, "nlvr2": 0.76, "caption": 0.88}
ABOVE_MAJORITY = {"vqa": 0.30, "gqa": 0.20, "nlvr2": 0.10}


def test_adapters_learn_what_the_frozen_model_cannot(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    done = subprocess.run(
        [sys.executable, "-m", "vlds", "demo", "--out", str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    scores = read_run(out / "adapters").scores
    for name, task in scores.tasks.items():
        columns = {label: found[task.headline] for label, found in task.by_column.items()}
        assert task.examples >= 300, name
        assert columns["before training"] <= FROZEN_AT_MOST[name], (name, columns)
        assert columns["adapters"] >= ADAPTERS_AT_LEAST[name], (name, columns)
        assert columns["adapters"] > columns["norms + visual embedding"], (name, columns)
        if name in ABOVE_MAJORITY:
            above = columns["adapters"] - columns["most frequent answer"]
            assert above >= ABOVE_MAJORITY[name], (name, columns)
    assert scores.trainable["percent"] < 10
    held = [
        line["bytes_per_rank"]["frozen"]
        for name in ("control", "adapters")
        for line in read_lines(out / name / "metrics.jsonl")
        if "bytes_per_rank" in line
    ]
    # ZeRO-2 holds all weights on each rank, ZeRO-3 half of them.
    assert held[1] == pytest.approx(held[0] / 2, rel=0.01)
    assert (out / "adapters" / "report.html").stat().st_size > 10_000
    examples_of_use_are_right(out, done.stdout.splitlines()[-1])


def examples_of_use_are_right(out: Path, last_line: str) -> None:
    """The demo's last command, and README's, caption a picture like one of its references."""
    gallery = json.loads((out / "adapters/gallery/samples.json").read_text("utf-8"))
    references = {
        image: entry["reference"]
        for entry in gallery
        for image in entry["images"]
        if entry["task"] == "caption"
    }
    _, _, readme = (ROOT / "README.md").read_text("utf-8").partition("To ask the tuned model")
    (command, printed) = re.findall(r"^(vlds predict .*)\n# (.*)$", readme, re.MULTILINE)[0]
    assert any(printed in references[image] for image in references if image in command)
    for words in map(shlex.split, (last_line, command.replace("runs/demo", str(out)))):
        said = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=ROOT,
            check=False,
            capture_output=True,
            text=True,
        )
        assert said.returncode == 0, said.stderr
        (image,) = (name for name in references if words[-1].endswith(name))
        assert said.stdout.splitlines()[-1] in references[image], said.stdout

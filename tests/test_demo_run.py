"""The whole demo, as a newcomer starts it: what it promises of its scores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlds.report.scores import read_scores

pytestmark = [pytest.mark.slow, pytest.mark.launcher]

FROZEN_AT_MOST = {"vqa": 0.35, "gqa": 0.60, "nlvr2": 0.63, "caption": 0.15}
ADAPTERS_AT_LEAST = {"vqa": 0.84, "gqa": 0.78, "nlvr2": 0.76, "caption": 0.86}
ABOVE_MAJORITY = {"vqa": 0.30, "gqa": 0.20, "nlvr2": 0.10}


def test_adapters_learn_what_the_frozen_model_cannot(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    done = subprocess.run(
        [sys.executable, "-m", "vlds", "demo", "--out", str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).resolve().parents[1],
        check=False,
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    scores = read_scores(out / "adapters" / "scores.json")
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
        for line in map(json.loads, (out / name / "metrics.jsonl").read_text().splitlines())
        if "bytes_per_rank" in line
    ]
    assert held[1] == pytest.approx(held[0] / 2, rel=0.01)  # ZeRO-2 holds all, ZeRO-3 a half
    for page in ("report.html", "report.png"):
        assert (out / "adapters" / page).stat().st_size > 10_000
    said = subprocess.run(
        [sys.executable, "-m", "vlds", "predict", "--run", str(out / "adapters"), "--task", "vqa",
         "--image", str(next((out / "adapters/gallery").glob("*.png"))),
         "--question", "tell me the number of things."],
        cwd=Path(__file__).resolve().parents[1],
        check=False,
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    assert said.stdout.split()[-1] in ("0", "1", "2", "3")

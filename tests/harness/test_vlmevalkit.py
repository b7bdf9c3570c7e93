"""VLMEvalKit's own run.py scores a run as `vlds evaluate` does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.toys.benchmarks import NUM_ROWS, TABLES, pack
from tests.toys.files import ROOT, read_lines, write
from vlds.cli.main import run_command

CHECKOUT = os.environ.get("VLDS_VLMEVALKIT", "")
CLASSES = {"GQA_made": "ImageVQADataset", "made_choice": "ImageMCQDataset"}
CLONE = {
    "vlmeval/__init__.py": "",
    "vlmeval/vlm/__init__.py": "",
    "vlmeval/vlm/base.py": "class BaseModel: pass",
    "run.py": "import sys, vlmeval.vlm as v; print(v.Vlds.__mro__[1].__module__, sys.argv[1:])",
}
"""What a clone of VLMEvalKit has, as far as a program that starts its run.py meets it."""


def test_a_clone_need_not_be_installed(tmp_path: Path) -> None:
    for name, text in CLONE.items():
        write(tmp_path / "clone" / name, text)
    asked = [sys.executable, "-m", "vlds.harness.vlmevalkit"]
    places = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = ["clone/run.py", "--config", "config.json"]
    told = subprocess.check_output([*asked, *words], cwd=tmp_path, env=places, text=True)
    assert told.splitlines()[-1] == f"vlmeval.vlm.base {words[1:]}"
    refused = subprocess.run(asked, cwd=tmp_path, env=places, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith("error: name VLMEvalKit's run.py")


@pytest.mark.slow
@pytest.mark.skipif(
    not CHECKOUT or find_spec("xlsxwriter") is None,
    reason="VLDS_VLMEVALKIT names no checkout of VLMEvalKit, or its libraries are missing",
)
def test_answers_and_scores_are_those_of_vlds(made: Path, benchmarks: Path) -> None:
    import pandas

    config = benchmarks / "config.json"
    data = {name: {"class": kind, "dataset": name} for name, kind in CLASSES.items()}
    model = {"made": {"class": "Vlds", "run": str(made)}}
    config.write_text(json.dumps({"model": model, "data": data}))
    out, program = benchmarks / "vlmevalkit", Path(CHECKOUT) / "run.py"
    places = {"LMUData": str(benchmarks / "LMUData"), "PYTHONPATH": str(ROOT)}
    words = ["--config", str(config), "--work-dir", str(out), "--judge", "exact_matching"]
    ended = subprocess.run(
        [sys.executable, "-m", "vlds.harness.vlmevalkit", str(program), *words],
        env={**os.environ, **places},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    given = set[str]()
    for name, rows in TABLES.items():
        shards, scored = pack(benchmarks, rows), benchmarks / "by_vlds" / name
        words = ["--data", str(shards), "--out", str(scored)]
        assert run_command(["evaluate", str(made), *words]) == 0
        ours = {row["id"]: row["prediction"] for row in read_lines(scored / "chat.jsonl")}
        table = pandas.read_excel(out / "made" / f"made_{name}.xlsx", dtype=str)
        assert dict(zip(table["index"], table["prediction"], strict=True)) == ours
        assert len(ours) == NUM_ROWS
        given |= set(ours.values())
        accuracy = pandas.read_csv(out / "made" / f"made_{name}_acc.csv")["Overall"][0]
        score = json.loads((scored / "scores.json").read_text())["chat"]["scores"]["choice"]
        # One of their scores is in percent.
        assert score == pytest.approx(accuracy / (100 if name == "GQA_made" else 1))
        assert score > 0
    assert len(given) > 1

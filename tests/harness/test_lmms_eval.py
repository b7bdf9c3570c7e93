"""lmms-eval's own command scores a run as `vlds evaluate` does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.toys.benchmarks import COLOUR, ENDING, NUM_ROWS, pack
from tests.toys.files import ROOT, read_lines
from tests.toys.world import COLOURS
from vlds.cli.main import run_command
from vlds.evaluation.sources import encode_picture
from vlds.harness.asked import AskedRun, Message
from vlds.report.scores import flip_test, interval_of_mean

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("lmms_eval") is None,
        reason="lmms-eval is not installed; docs/harnesses.md says how",
    ),
]


def run(words: Sequence[str], folder: Path) -> None:
    """Run a module of Python's, without a network."""
    known = {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-m", *words],
        env={**os.environ, **known},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]


def by_lmms_eval(
    benchmarks: Path, arguments: str, tasks: Sequence[str], *more: str
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Scores of each task, and its rows in the data's order."""
    if not entry_points(group="lmms_eval.models", name="vlds"):
        pytest.skip("this vlds was installed before it had its entry point: pip install it again")
    out = benchmarks / f"out-{'-'.join(tasks)}"
    asked = ["--model", "vlds", "--model_args", arguments, "--tasks", ",".join(tasks), *more]
    places = ["--include_path", str(benchmarks / "lmms_eval"), "--output_path", str(out)]
    run(["lmms_eval", *asked, *places, "--batch_size", "8", "--log_samples"], benchmarks)
    (results,) = out.rglob("*results.json")
    rows = {}
    for task in tasks:
        (file,) = out.rglob(f"*samples_{task}.jsonl")
        rows[task] = sorted(read_lines(file), key=lambda row: int(row["doc_id"]))
    return json.loads(results.read_text())["results"], rows


def test_answers_and_scores_are_those_of_vlds(made: Path, benchmarks: Path) -> None:
    tasks = ["made_colour", "made_choice"]
    results, rows = by_lmms_eval(benchmarks, f"run={made}", tasks)
    given = set[str]()
    for task, score in zip(tasks, ("exact_match", "choice"), strict=True):
        shards, out = pack(benchmarks, task), benchmarks / "scored" / task
        assert run_command(["evaluate", str(made), "--data", str(shards), "--out", str(out)]) == 0
        ours = {row["id"]: row["prediction"] for row in read_lines(out / "chat.jsonl")}
        theirs = {str(row["doc_id"]): row["filtered_resps"] for row in rows[task]}
        assert ours == theirs
        given |= set(ours.values())
        scored = json.loads((out / "scores.json").read_text())["chat"]["scores"]
        assert scored[score] == pytest.approx(results[task]["exact_match,none"], abs=1e-12)
        assert 0 < scored[score] < 1
    assert len(given) > 1


def test_the_likeliest_choice_is_chosen(made: Path, benchmarks: Path) -> None:
    results, rows = by_lmms_eval(benchmarks, f"run={made}", ["made_likely"], "--force_simple")
    asked, hits = AskedRun(made), []
    docs = read_lines(benchmarks / "lmms_eval" / "made_likely.jsonl")
    for row, doc in zip(rows["made_likely"], docs, strict=True):
        picture = encode_picture(doc["pictures"][0])
        question = asked.read([Message("user", [picture, f"{COLOUR['question']}\n{ENDING}"])])
        found = [x for x in asked.likelihoods([(question, c) for c in COLOURS]) if x is not None]
        losses = [each.nll / each.num_tokens for each in found]
        assert [float(loss) for loss, _ in row["filtered_resps"]] == pytest.approx(losses, rel=1e-4)
        hits.append(int(np.argmin(losses)) == doc["number"])
    assert len(hits) == NUM_ROWS
    assert results["made_likely"]["acc,none"] == pytest.approx(np.mean(hits))


def test_errors_by_picture_agree() -> None:
    """Our bootstrap over pictures and lmms-eval's clustered error are two ways to one number; its
    paired test is one over questions, and ours one over pictures."""
    from lmms_eval.api.metrics import clustered_stderr, paired_ttest

    draw = np.random.default_rng(0)
    groups = np.repeat(np.arange(200), 4)
    chances = np.repeat(draw.choice([0.9, 0.1], 200), 4)
    ours, others = ((draw.random(800) < chances).astype(float) for _ in range(2))
    error = clustered_stderr(ours.tolist(), groups.tolist())
    interval = interval_of_mean(ours, groups)
    assert (interval.high - interval.low) / 2 == pytest.approx(1.96 * error, rel=0.06)
    plain = ours.std(ddof=1) / np.sqrt(800)
    assert error > 1.5 * plain  # questions about a picture are right or wrong together
    # With one question a picture, both tests ask the same.
    one = slice(0, None, 4)
    ours[one][:25] = 1
    theirs = paired_ttest(ours[one].tolist(), others[one].tolist())["p_value"]
    assert flip_test(ours[one] - others[one], np.arange(200)) == pytest.approx(theirs, abs=0.03)

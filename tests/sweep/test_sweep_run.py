"""Real sweeps of tiny runs: killed twice, in several processes at once, with a run that fails."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.toys.files import ROOT, read_lines
from tests.toys.launched_run import last_step
from tests.toys.processes import until
from tests.toys.recipes import with_task
from tests.toys.shares import share_hosts
from tests.toys.world import world_recipe, write_world
from vlds.cli.main import run_command
from vlds.recipe.config import save_recipe
from vlds.runtime.json_files import recorded_hash

pytestmark = [pytest.mark.slow, pytest.mark.launcher]
STEPS = 40


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and a recipe that is scored on test data."""
    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    recipe = world_recipe(folder, folder / "unused")
    tests = {name: [str(folder / name)] for name in recipe.tasks}
    for name, test in tests.items():
        task = replace(recipe.tasks[name], headline=None)
        recipe = with_task(replace(recipe, tasks=recipe.tasks | {name: task}), name, test=test)
    training = replace(recipe.training, steps=STEPS, save_every=4)
    save_recipe(replace(recipe, training=training), folder / "tiny.yaml")
    return folder


def write_sweep(world: Path, folder: Path, **changes: Any) -> Path:
    """A sweep of two recipes with one seed."""
    tiny = str(world / "tiny.yaml")
    tree = {
        "output": str(folder / "table"),
        "recipes": {"adapter": tiny, "nothing": {"base": tiny, "methods": {}}},
        "seeds": [7],
        "split": "test",
        "published": {"adapter": {"vqa": 50.0, "average": 40.0}},
    }
    file = folder / "table.yaml"
    file.write_text(yaml.safe_dump(tree | changes, sort_keys=False))
    return file


def start(file: Path, *words: str) -> subprocess.Popen[str]:
    """Start `vlds sweep` as a user would."""
    return subprocess.Popen(
        [sys.executable, "-m", "vlds", "sweep", str(file), "--ranks", "1", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and output."""
    output, _ = process.communicate(timeout=400)
    return process.returncode, output


def scores(file: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
    """The scores of the table, and what trains; without times, which differ."""
    capsys.readouterr()
    assert run_command(["compare", str(file), "--format", "csv"]) == 0
    rows = csv.DictReader(StringIO(capsys.readouterr().out))
    return [row for row in rows if row["name"] not in ("speed", "answers", "memory")]


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep that ran through, one run after another."""
    folder = tmp_path_factory.mktemp("whole")
    code, output = end(start(write_sweep(world, folder)))
    assert code == 0, output
    assert "2 of 2 runs are done" in output
    return folder


def test_killed_twice_it_ends_the_same(
    world: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed = tmp_path
    file = write_sweep(world, killed)
    runs = [killed / "table" / row / "seed-7" for row in ("adapter", "nothing")]
    for run, step, number in zip(runs, (10, 6), (signal.SIGKILL, signal.SIGTERM), strict=True):
        process = start(file)
        deadline = time.monotonic() + 200
        while last_step(run) < step:
            assert process.poll() is None, end(process)[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        code, output = end(process)
        assert code == (-9 if number == signal.SIGKILL else 143), output
        told = "ended by SIGTERM; start it again to continue"
        assert (told in output) == (number == signal.SIGTERM)
        assert not (run / "artifact").exists()
    code, output = end(start(file))
    assert code == 0, output
    assert "2 of 2 runs are done" in output
    for run in runs:
        assert len(read_lines(run / "starts.jsonl")) == 2
        other = whole / run.relative_to(killed)
        hashes = [recorded_hash(r / "artifact", "weights.safetensors") for r in (run, other)]
        assert hashes[0] == hashes[1]
    expected = scores(write_sweep(world, whole), capsys)
    assert scores(file, capsys) == expected
    assert {row["name"] for row in expected} == {"trains", "stored", "vqa", "caption", "average"}
    # A finished sweep does nothing.
    before = {path: path.stat().st_mtime_ns for path in killed.rglob("*") if path.is_file()}
    code, output = end(start(file))
    assert (code, "begun" in output) == (0, True)
    assert {p: p.stat().st_mtime_ns for p in killed.rglob("*") if p.is_file()} == before


def test_an_array_of_jobs_does_every_run_once(world: Path, tmp_path: Path) -> None:
    """Three jobs, of which each takes the next; a preparation comes before, and one run fails."""
    copy = f"{sys.executable} -c \"import shutil; shutil.copytree('{world}', '{tmp_path}/data')\""
    base = {"base": str(world / "tiny.yaml"), "training": {"steps": 4}}
    broken = base | {"optimizer": {"learning_rate": 1e15}, "training": {
        "steps": 4, "max_nonfinite_steps": 0}}  # fmt: skip
    file = write_sweep(
        world, tmp_path, seeds=[1, 2], split="evaluate", published={},
        recipes={"adapter": base, "broken": broken},
        prepare={f"{tmp_path}/data": copy}, paths={str(world): f"{tmp_path}/data"},
        scores={"vqa": "soft_score"},
    )  # fmt: skip
    ended = [end(job) for job in [start(file) for _ in range(3)]]
    text = "\n".join(output for _, output in ended)
    assert text.count(": prepare ") == 1, text
    for seed in (1, 2):
        assert len(read_lines(tmp_path / f"table/adapter/seed-{seed}/starts.jsonl")) == 1
    # A job that ends while another one still trains knows less than the last one.
    assert "2 of 4 runs are done" in text
    for seed in (1, 2):
        assert len(re.findall(rf"^vlds train .*/broken/seed-{seed}.yaml", text, re.MULTILINE)) == 1
        assert f"failed: broken, seed {seed}: " in text
    codes = [code for code, _ in ended]
    assert set(codes) <= {0, 1}
    assert 1 in codes
    # The next start tries again what has failed, here with a mended recipe.
    code, output = end(start(file, "--recipes.broken", str(world / "tiny.yaml"), "--runs", "1"))
    assert code == 0, output
    assert "3 of 4 runs are done" in output
    assert "left, or another process does them: broken, seed 2" in output


def test_two_at_a_time_end_as_one_after_another(
    world: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Interrupted once on the way."""
    file = write_sweep(world, tmp_path)
    states = [tmp_path / "table" / row / "seed-7/state" for row in ("adapter", "nothing")]
    process = start(file, "--at-once", "2")
    until(lambda: any(any(state.glob("step-*")) for state in states), 200)
    process.send_signal(signal.SIGTERM)
    code, output = end(process)
    assert code == 128 + signal.SIGTERM, output
    assert "vlds sweep: ended by SIGTERM; start it again to continue" in output
    code, output = end(start(file, "--at-once", "2"))
    assert code == 0, output
    assert "2 of 2 runs are done" in output
    assert {match[1] for match in re.finditer(r"^(\d)\| step \d+/", output, re.MULTILINE)} == set(
        "12"
    )
    begun = [len(read_lines(state.parent / "starts.jsonl")) for state in states]
    assert 2 in begun
    assert scores(file, capsys) == scores(write_sweep(world, whole), capsys)


def test_hosts_with_a_shared_folder_do_every_run_once(world: Path, tmp_path: Path) -> None:
    """The jobs of an array on two hosts, whose mounts show each other's work late. One host dies in
    the middle of a run; the other one continues it. Two rows are one recipe, so that a run which
    was continued elsewhere can be compared."""
    tiny = {"base": str(world / "tiny.yaml"), "training": {"steps": 12}}
    changes: Any = {"recipes": {"one": tiny, "two": tiny}, "seeds": [7, 8], "published": {}}
    changes |= {"split": "evaluate", "scores": {"vqa": "vqa_accuracy"}}
    with share_hosts(2, tmp_path, stale=5, seed=0) as hosts:
        file = write_sweep(world, tmp_path, **changes, output=str(hosts[0].mount / "table"))
        words = [sys.executable, "-m", "vlds", "sweep", str(file), "--ranks", "1"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        pipe: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "env": environment}
        first, second = (host.run(*words, **pipe) for host in hosts)
        server = tmp_path / "server" / "table"

        def has_state() -> bool:
            """True if a run of the first host has one."""
            return any(
                any(server.glob(f"{row}/seed-{seed}/state/step-*"))
                for file in server.glob("claims/*/.vlds.lock")
                if json.loads(file.read_text() or "{}").get("host") == "host0"
                for row, _, seed in [file.parent.name.partition("_seed_")]
            )

        until(has_state, 600)
        hosts[0].die()
        first.communicate()
        output, _ = second.communicate(timeout=900)
        assert second.returncode == 0, output
    assert "4 of 4 runs are done" in output
    assert "host0, started" in output
    starts = []
    for seed in (7, 8):
        runs = [server / row / f"seed-{seed}" for row in ("one", "two")]
        for run in runs:
            starts.append(len(read_lines(run / "starts.jsonl")))
            steps = [line["step"] for line in read_lines(run / "metrics.jsonl") if "loss" in line]
            assert steps == list(range(1, 13)), run
        assert len({recorded_hash(run / "artifact", "weights.safetensors") for run in runs}) == 1
    # None was begun again, except the one that the dead host had.
    assert sorted(starts) in ([1, 1, 1, 1], [1, 1, 1, 2]), output

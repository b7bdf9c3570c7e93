"""Runs on many hosts, from `vlds train` with a host file to ranks that agree, and hosts that are
lost, late or other."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.toys.files import ROOT
from tests.toys.many_hosts import many_hosts
from tests.toys.recipes import train_words
from tests.toys.world import world_recipe
from vlds.runtime.rank_environment import expand_nodes


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        ("login1", ["login1"]),
        ("gpu[01-03,7],cpu2", ["gpu01", "gpu02", "gpu03", "gpu7", "cpu2"]),
        ("a-[9-11]", ["a-9", "a-10", "a-11"]),
    ],
)
def test_slurms_list_of_hosts(text: str, names: list[str]) -> None:
    assert expand_nodes(text) == names


def run(
    folder: Path, world: Path, number: int, *words: str, slots: int = 1, **odd: object
) -> tuple[int, str, float]:
    """Exit code, output and seconds of a run of one step, with so many ranks on each host."""
    recipe = world_recipe(world, folder / "run")
    data = replace(recipe.data, global_batch_size=number * slots, micro_batch_size=None)
    training = replace(recipe.training, steps=1, save_every=1)
    recipe = replace(recipe, data=data, training=training)
    with many_hosts(folder, number, slots=slots, **odd) as environment:  # type: ignore[arg-type]
        begin = time.monotonic()
        ended = subprocess.run(
            [sys.executable, "-m", "vlds", *train_words(recipe)],
            env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return ended.returncode, ended.stdout, time.monotonic() - begin


@pytest.mark.launcher
@pytest.mark.slow
@pytest.mark.parametrize("number", [4, 128])
def test_a_run_on_many_hosts(world: Path, tmp_path: Path, number: int) -> None:
    code, output, _ = run(tmp_path, world, number)
    assert code == 0, output
    assert (tmp_path / "run" / "artifact" / "manifest.json").exists()
    assert "has not come" not in output


@pytest.mark.launcher
@pytest.mark.slow
@pytest.mark.parametrize("number", [4, 128])
def test_a_lost_host_is_named(world: Path, tmp_path: Path, number: int) -> None:
    """ssh does not reach it: pdsh says so, and the first rank whom the others wait for."""
    code, output, _ = run(tmp_path, world, number, lost=["node002"])
    assert code == 1
    lines = [line for line in output.splitlines() if line.startswith("vlds: node")]
    assert len(lines) == 2
    assert lines[0].startswith("vlds: node002 (rank 2) has not come 3")
    assert lines[1].startswith("vlds: node002 (rank 2) did not come in 60 s")

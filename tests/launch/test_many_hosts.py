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
from vlds.runtime.rank_environment import RankPlace, expand_nodes
from vlds.runtime.roll_call import Hosts

PLACE = RankPlace(0, 32, 0, 8)


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


def test_hosts_are_named_with_their_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu[1-4]")
    hosts = Hosts.planned(PLACE)
    assert hosts.named(range(8, 16)) == "gpu2 (ranks 8 to 15)"
    assert hosts.named([3, 9, 11, 12, 31]) == (
        "gpu1 (rank 3), gpu2 (3 of ranks 9 to 12), gpu4 (rank 31)"
    )
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu[1-3]")  # of another job
    assert Hosts.planned(PLACE).named([8]) == "machine 2 of 4 (rank 8)"


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
@pytest.mark.parametrize(("number", "slots"), [(4, 2), (128, 1)])
def test_a_host_with_other_software_is_named(
    world: Path, tmp_path: Path, number: int, slots: int
) -> None:
    """A rank beside the first one must not end before it: the launcher would end that, too."""
    odd = {"node002": "torch 2.1.0"}
    if slots > 1:
        odd["node003"] = "late 10"  # it comes when the other software is found
    code, output, seconds = run(tmp_path, world, number, slots=slots, odd=odd)
    assert code == 2, output
    (line,) = [line for line in output.splitlines() if line.startswith("vlds")]
    ranks = "rank 2" if slots == 1 else "ranks 4 to 5"
    said = f"vlds: node002 ({ranks}) has other software than the first host (torch: 2.1.0 there, "
    assert line.startswith(said)
    assert "ends because" not in output
    if slots > 1:
        assert seconds < 70, "the late host looks for the first one for 60 s"


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


@pytest.mark.launcher
@pytest.mark.slow
def test_a_late_host_is_named(world: Path, tmp_path: Path) -> None:
    code, output, _ = run(tmp_path, world, 4, odd={"node002": "late 40"})
    assert code == 0, output
    lines = [line for line in output.splitlines() if line.startswith("vlds: ")]
    assert lines[0].startswith("vlds: node002 (rank 2) has not come 3")
    assert lines[1].startswith("vlds: all 4 ranks are here after ")

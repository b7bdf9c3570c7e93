"""A process is a rank only if torchrun or DeepSpeed has set all variables."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.toys.world import world_recipe
from vlds.cli.main import main
from vlds.cli.start import launch_command
from vlds.recipe.config import save_recipe
from vlds.runtime.deepspeed_start import start_ranks
from vlds.runtime.rank_environment import (
    OF_CLUSTERS,
    RankPlace,
    check_alone,
    is_rank,
    local_rank,
    rank_of_cluster,
    read_place,
    without_rank,
)
from vlds.runtime.ranks import rank_from_environment

WHOLE = {
    "RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1",
    "MASTER_ADDR": "node0", "MASTER_PORT": "29500",
}  # fmt: skip
POD = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "pod-0", "MASTER_PORT": "23456"}
"""The variables that a Kubernetes operator sets in a pod."""


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """This process's environment without a launcher's variables."""
    for name in os.environ.keys() - without_rank(os.environ).keys():
        monkeypatch.delenv(name)
    for name in local_rank(0, 1, 0):  # so that monkeypatch restores what the code sets
        monkeypatch.setenv(name, "")
    return monkeypatch


def of_srun(
    rank: int, local: int, node: int, sizes: str, nodes: str = "gpu[1-2]"
) -> dict[str, str]:
    """What SLURM 24.11 sets in a task of a step."""
    texts = {"PROCID": rank, "LOCALID": local, "NODEID": node, "JOB_ID": 7, "STEP_ID": 0}
    texts |= {"STEP_NUM_TASKS": 2 if sizes == "2" else 3, "STEP_TASKS_PER_NODE": sizes}
    return {f"SLURM_{n}": str(v) for n, v in texts.items()} | {"SLURM_STEP_NODELIST": nodes}


OF_MPI = dict(zip(OF_CLUSTERS[0], "1212", strict=True))
"""What Open MPI sets in the second of two ranks."""


@pytest.mark.parametrize(
    ("given", "place", "address"),
    [
        (of_srun(1, 1, 0, "2,1"), RankPlace(1, 3, 1, 2), "gpu1"),
        (of_srun(2, 0, 1, "2,1"), RankPlace(2, 3, 0, 1), "gpu1"),
        (of_srun(0, 0, 0, "1(x3)") | {"MASTER_ADDR": "n"}, RankPlace(0, 3, 0, 1), "n"),
        (OF_MPI | of_srun(0, 0, 0, "1(x3)") | {"PMIX_NAMESPACE": "a@1"},
         RankPlace(1, 2, 1, 2), "127."),
        (of_srun(0, 0, 0, "1") | {"SLURM_STEP_NUM_TASKS": "1"}, None, ""),  # a shell of salloc
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4"}, None, ""),  # sbatch
    ],
)  # fmt: skip
def test_srun_and_mpirun_start_ranks(
    given: dict[str, str], place: RankPlace | None, address: str
) -> None:
    own = rank_of_cluster(given)
    assert (read_place(own) if own else None) == place
    assert own.get("MASTER_ADDR", "").startswith(address)
    assert rank_of_cluster(without_rank(given)) == {}, "children of a command are no ranks"
    with pytest.raises(ValueError, match=r"RANK is 1 of 2, .* set MASTER_ADDR to its machine and"):
        rank_of_cluster(OF_MPI)


@pytest.mark.launcher
@pytest.mark.slow
def test_tasks_of_srun_train_together(world: Path, tmp_path: Path) -> None:
    save_recipe(world_recipe(world, tmp_path / "run"), tmp_path / "recipe.yaml")
    command = [sys.executable, "-m", "vlds", "train", "--config", str(tmp_path / "recipe.yaml")]
    own = without_rank(os.environ) | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    own |= {"SLURM_JOB_ID": str(os.getpid())}
    tasks = [
        subprocess.Popen(command, env=of_srun(n, n, 0, "2", "gpu1") | own, stdout=subprocess.PIPE)
        for n in range(2)
    ]
    said = [task.communicate(timeout=120)[0].decode() for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    assert "on 2 ranks" in said[0]


def test_mistakes_in_a_ranks_environment_are_named() -> None:
    for found, message in (
        ({}, "LOCAL_WORLD_SIZE is missing from this rank's env"),
        ({"RANK": "nine", "LOCAL_SIZE": "8"}, "RANK is 'nine' in the environment; give a number"),
        ({"MASTER_PORT": "29500;", "LOCAL_SIZE": "8"}, "MASTER_PORT is '29500;' in .*; give a num"),
        ({"MASTER_PORT": "70000", "LOCAL_SIZE": "8"}, "MASTER_PORT is 70000 in .* at most 655"),
        ({"LOCAL_SIZE": "1"}, r"contradict each other \(.*LOCAL_RANK=1, LOCAL_SIZE=1\)"),
        ({"RANK": "16", "LOCAL_SIZE": "8"}, "contradict each other"),
    ):
        with pytest.raises(ValueError, match=message):
            read_place(WHOLE | found)


@pytest.mark.parametrize(
    "words",
    [
        "RANK=3",
        "RANK=0 MASTER_ADDR=a MASTER_PORT=1",
        "RANK= WORLD_SIZE=4 LOCAL_RANK=",
    ],
)
def test_a_part_that_says_nothing_of_other_processes_is_no_rank(
    words: str, environment: pytest.MonkeyPatch
) -> None:
    found = dict(word.split("=") for word in words.split())
    assert not is_rank(found)
    check_alone(found)
    for name, value in found.items():
        environment.setenv(name, value)
    ranks = rank_from_environment()
    assert (ranks.global_rank, ranks.world_size, ranks.on_this_machine) == (0, 1, range(1))


def test_one_of_several_processes_needs_the_whole_set(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not is_rank(POD)
    for name, value in POD.items():
        environment.setenv(name, value)
    environment.setattr("vlds.runtime.terminal.OTHERS_SPEAK_AFTER_S", 0)
    with pytest.raises(ValueError, match="but not LOCAL_RANK: start the run with torchrun"):
        rank_from_environment()
    assert main(["train", "--config", "none.yaml"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("vlds: the environment has RANK=1, WORLD_SIZE=2, MASTER_ADDR=pod-0, ")
    assert "but not LOCAL_RANK: start the run with torchrun, which sets all of them" in said


def test_a_rank_without_a_gpu_of_its_own_is_refused(environment: pytest.MonkeyPatch) -> None:
    """As under SLURM's --gpus-per-task."""
    for name, value in (POD | {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}).items():
        environment.setenv(name, value)
    environment.setattr("vlds.runtime.ranks.device_of", lambda n: torch.device("cuda", n))
    environment.setattr("vlds.runtime.deepspeed_start.count_gpus", lambda: 1)
    with pytest.raises(ValueError, match=r"^rank 1 of this machine needs its own GPU, and may use"):
        start_ranks(60)


def test_the_launcher_and_other_processes_get_none_of_it() -> None:
    given = {**POD, "LOCAL_WORLD_SIZE": "1", "TORCHELASTIC_USE_AGENT_STORE": "True", "HOME": "/"}
    assert without_rank(given) == {"HOME": "/"}
    _, environment = launch_command(["p.py"], 2, [], given, 0)
    assert is_rank(WHOLE)
    assert environment.keys().isdisjoint(given.keys() - {"HOME"})

"""The job files in docs/examples start each machine's ranks as vlds wants them.

They are checked by what checks them in a cluster, where that is installed, and run here with a
torchrun that writes down how it was started.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser

from tests.toys.files import ROOT
from vlds.cli.words import split_words
from vlds.runtime.rank_environment import is_rank, read_place

EXAMPLES = ROOT / "docs" / "examples"
MACHINES = 2
STANDINS = {
    "torchrun": 'printf "%s\\n" "$@"',
    "scontrol": '[ "$*" = "show hostnames" ] && printf "node7\\nnode9\\n"',
    "srun": 'shift; exec "$@"',
}


def documents(name: str) -> list[Any]:
    """The documents of a YAML file."""
    return list(yaml.safe_load_all((EXAMPLES / name).read_text("utf-8")))


def machine_of(name: str, index: int) -> tuple[list[str], dict[str, str]]:
    """What one machine of an example starts, and what its cluster sets there."""
    if name == "slurm.sh":
        words = {"SLURM_NODEID": str(index), "SLURM_NNODES": str(MACHINES)}
        return ["bash", str(EXAMPLES / name)], words
    if name == "skypilot.yaml":
        (task,) = documents(name)
        return ["bash", "-c", task["run"]], {
            "SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.9",
            "SKYPILOT_NODE_RANK": str(index),
            "SKYPILOT_NUM_NODES": str(task["num_nodes"]),
            "SKYPILOT_NUM_GPUS_PER_NODE": task["resources"]["accelerators"].partition(":")[2],
        }
    job = documents(name)[-1]
    if name == "kubernetes_pytorchjob.yaml":
        replicas = list(job["spec"]["pytorchReplicaSpecs"].values())
        assert sum(each["replicas"] for each in replicas) == MACHINES
        given = {"RANK": str(index), "WORLD_SIZE": str(MACHINES)}
        given |= {"MASTER_ADDR": "vlds-master-0", "MASTER_PORT": "23456"}
        pod = replicas[index]["template"]["spec"]
    else:
        assert job["spec"]["completions"] == job["spec"]["parallelism"] == MACHINES
        given, pod = {"JOB_COMPLETION_INDEX": str(index)}, job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    words = [*container["command"], *container.get("args", [])]
    # Kubernetes replaces $(NAME) in commands, no shell does.
    words = [re.sub(r"\$\((\w+)\)", lambda found: given[found[1]], word) for word in words]
    return words, given | {each["name"]: each["value"] for each in container["env"]}


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with programs in the place of a cluster's."""
    for name, text in STANDINS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def ranks_of(words: list[str]) -> list[Mapping[str, str]]:
    """The environments that torchrun gives to the ranks of one machine."""
    options = get_args_parser().parse_args(words)
    size, machines = int(options.nproc_per_node), int(options.nnodes)
    first = options.node_rank * size
    return [
        {
            "RANK": str(first + local),
            "WORLD_SIZE": str(machines * size),
            "LOCAL_RANK": str(local),
            "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": options.master_addr,
            "MASTER_PORT": str(options.master_port),
        }
        for local in range(size)
    ]


@pytest.mark.parametrize(
    "name", ["kubernetes_job.yaml", "kubernetes_pytorchjob.yaml", "skypilot.yaml", "slurm.sh"]
)
def test_each_machine_starts_its_ranks(name: str, programs: Path) -> None:
    ranks, addresses = [], set()
    for index in range(MACHINES):
        command, given = machine_of(name, index)
        # A pod of an operator is no rank by itself, though it has RANK.
        assert not is_rank(given)
        environment = os.environ | given | {"PATH": f"{programs}:{os.environ['PATH']}"}
        done = subprocess.run(
            command, cwd=programs, env=environment, capture_output=True, text=True, check=True
        )
        words = done.stdout.splitlines()
        place = words.index("-m")
        assert words[place + 1] == "vlds"
        parsed = split_words(words[place + 2 :])
        assert (parsed.command, parsed.rest[1], parsed.resume) == ("train", "vqa.yaml", "auto")
        machine = ranks_of(words)
        ranks += [read_place(rank).global_rank for rank in machine]
        addresses |= {(rank["MASTER_ADDR"], rank["MASTER_PORT"]) for rank in machine}
    assert ranks == list(range(16))
    assert len(addresses) == 1


def test_the_first_pod_has_the_name_that_the_others_ask_for() -> None:
    service, job = documents("kubernetes_job.yaml")
    pod, name = job["spec"]["template"]["spec"], job["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert service["spec"]["clusterIP"] == "None"
    assert pod["subdomain"] == service["metadata"]["name"]
    words = pod["containers"][0]["command"]
    assert f"--master_addr={name}-0.{pod['subdomain']}" in words


def test_kubernetes_takes_the_files() -> None:
    checker = pytest.importorskip("kubernetes_validate")
    files = documents("kubernetes_job.yaml")
    # The operator's own kind is not among those of Kubernetes, but its pods are.
    for replicas in documents("kubernetes_pytorchjob.yaml")[0]["spec"][
        "pytorchReplicaSpecs"
    ].values():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "vlds"}}
        files.append(pod | replicas["template"])
    for file in files:
        checker.validate(file, checker.latest_version(), strict=True)
    files[1]["spec"]["completionMode"] = 5
    with pytest.raises(checker.ValidationError):
        checker.validate(files[1], checker.latest_version(), strict=True)


# The job script in docs/launching.md, with programs in SLURM's place that do what SLURM would.

ON_A_CLUSTER = {
    "scontrol": """[ "$*" = "show hostnames" ] && printf 'node7\\nnode9\\n'""",
    "srun": """shift; for n in 0 1; do SLURM_NODEID=$n "$@" || exit; done""",
    "vlds": """printf '%s\\n' "$VLDS_LAUNCHER_ARGS" > "args-$SLURM_NODEID"
printf '%s\\n' "$*" > "words-$SLURM_NODEID\"""",
}


def test_the_job_script_starts_once_on_every_machine(root: Path, tmp_path: Path) -> None:
    page = (root / "docs" / "launching.md").read_text("utf-8")
    (script,) = re.findall(r"^```bash\n(#!/bin/bash\n.*?)^```$", page, re.MULTILINE | re.DOTALL)
    for name, text in ON_A_CLUSTER.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job.sh").write_text(script)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["bash", "job.sh"], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "hosts").read_text() == "node7 slots=8\nnode9 slots=8\n"
    for number in (0, 1):
        given = shlex.split((tmp_path / f"args-{number}").read_text())
        assert given == [
            "--hostfile", "hosts", "--no_ssh", "--node_rank", str(number),
            "--master_addr", "node7", "--master_port", "29500",
        ]  # fmt: skip
        words = (tmp_path / f"words-{number}").read_text().split()
        assert words == ["train", "--config", "recipes/demo.yaml", "--resume", "auto"]

"""This process's place among the ranks of a run, as a launcher says it. Supervisors ask it too, so
it imports no torch.

A launcher tells a process which rank it is by environment variables. torchrun and the deepspeed
launcher set all of them. Others set a few: a Kubernetes operator gives each pod RANK and
WORLD_SIZE, and a login shell may hold an unrelated RANK. A process is a rank only if all are set.
srun and mpirun say the same in variables of their own, which `rank_of_cluster` translates.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from zlib import crc32

REQUIRED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
LOCAL_SIZES = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")
"""torchrun's and DeepSpeed's names of the number of ranks on this machine."""
OF_CLUSTERS = (
    tuple(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
)
"""RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE in Open MPI, in MPICH and Intel MPI, and in a
step of srun: last, because mpirun may start its daemons by srun, and its ranks inherit that."""
SAME_BITS = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "COMPATIBLE",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
"""Variables with which ranks compute the same on every processor (vlds/runtime/reproducible.py)."""
NODES = re.compile(r"([^,\[]+)(?:\[([^\]]+)\])?,?")
"""A part of SLURM's list: gpu[01-03,7] or login1."""
TASKS = re.compile(r"(\d+)(?:\(x(\d+)\))?")
LAST_PORT = 65_535
MOST_PER_CORE = 8
"""Processes; even these get in each other's way."""
FIRST_PORT, NUM_PORTS = 15_000, 10_000
"""Of ports for ranks of a cluster: below those that systems give to connections."""


@dataclass(frozen=True)
class RankPlace:
    """This process among all ranks of the run and among those of its machine."""

    global_rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    machine_sizes: tuple[int, ...] = field(default=(), kw_only=True)
    """Ranks of each machine, in order, the same on all ranks; empty until they have told them."""


def is_rank(environment: Mapping[str, str]) -> bool:
    """True if a launcher set this environment for one of its ranks."""
    return all(environment.get(name) for name in REQUIRED)


def rank_of_cluster(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of a rank, if srun or mpirun has started this process as one of several; empty
    in a batch script, an interactive shell or a step of one task.

    Errors: ValueError if they do not say where the first rank is.
    """
    names = next((ns for ns in OF_CLUSTERS if all(map(environment.get, ns))), None)
    if names is None or environment[names[1]] == "1":
        return {}
    rank, size, local, local_size = (environment[name] for name in names)
    address, run = "", environment.get("PMIX_NAMESPACE", "")
    if names == OF_CLUSTERS[-1]:
        # Of all machines: 2(x3),1 are 2, 2, 2 and 1.
        sizes = [n for n, times in TASKS.findall(local_size) for _ in range(int(times or 1))]
        local_size = sizes[int(environment.get("SLURM_NODEID", "0"))]
        address = next(iter(expand_nodes(environment.get("SLURM_STEP_NODELIST", ""))), "")
        run = f"{environment.get('SLURM_JOB_ID')}.{environment.get('SLURM_STEP_ID')}"
    if local_size == size:
        address = "127.0.0.1"
    address = environment.get("MASTER_ADDR") or address
    # The same for all ranks of a run, and another for the next run.
    port = str(FIRST_PORT + crc32(run.encode()) % NUM_PORTS) if run else ""
    port = environment.get("MASTER_PORT") or port
    if not address or not port:
        raise ValueError(
            f"{names[0]} is {rank} of {size}, and nothing says where the first rank is: set "
            "MASTER_ADDR to its machine and MASTER_PORT to a free port there (mpirun -x "
            "MASTER_ADDR=node0 -x MASTER_PORT=29500; -genv NAME VALUE in MPICH and Intel MPI)"
        )
    values = (rank, size, local, address, port, local_size)
    return dict(zip((*REQUIRED, LOCAL_SIZES[0]), values, strict=True))


def expand_nodes(text: str) -> list[str]:
    """The hosts of SLURM's list: gpu[01-03,7] -> gpu01 gpu02 gpu03 gpu7."""
    names = []
    for stem, numbers in NODES.findall(text):
        for part in numbers.split(",") if numbers else [""]:
            first, _, last = part.partition("-")
            for number in range(int(first), int(last or first) + 1) if part else [None]:
                names.append(stem if number is None else f"{stem}{number:0{len(first)}d}")
    return names


def read_place(environment: Mapping[str, str]) -> RankPlace:
    """Which rank this is; the environment must be a rank's (`is_rank`).

    Errors: ValueError if a variable is not a number, or if the numbers contradict each other.
    """
    size = next((name for name in LOCAL_SIZES if environment.get(name)), None)
    if size is None:
        raise ValueError(
            "LOCAL_WORLD_SIZE is missing from this rank's environment; set it to the number of "
            "ranks on this machine, or start the run with torchrun or `vlds`"
        )
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", size)
    for name in (*names, "MASTER_PORT"):
        if not environment[name].isdecimal():
            raise ValueError(f"{name} is {environment[name]!r} in the environment; give a number")
    if int(environment["MASTER_PORT"]) > LAST_PORT:
        raise ValueError(
            f"MASTER_PORT is {environment['MASTER_PORT']} in the environment; give a free port of "
            f"the first machine, at most {LAST_PORT}"
        )
    place = RankPlace(*(int(environment[name]) for name in names))
    # local_rank <= global_rank: machines are numbered one after another, so as many ranks at least
    # come before this one in the run as on its machine.
    if not (
        place.local_rank < place.local_world_size <= place.world_size
        and place.local_rank <= place.global_rank < place.world_size
    ):
        values = ", ".join(f"{name}={environment[name]}" for name in names)
        raise ValueError(
            f"the launcher's variables contradict each other ({values}); unset those that are left "
            "over from another job"
        )
    return place


def check_alone(environment: Mapping[str, str]) -> None:
    """Refuse to start a new run in what looks like one of several processes of a job: each of them
    would train alone and write into the same folder.

    Errors: ValueError that lists the variables that a rank would need.
    """
    # A lone WORLD_SIZE is a left-over; with one of the ranks' numbers it is a launcher's.
    missing = [name for name in REQUIRED if not environment.get(name)]
    several = environment.get("WORLD_SIZE") not in (None, "", "1")
    if several and missing and {"RANK", "LOCAL_RANK"} - set(missing):
        given = ", ".join(f"{n}={environment[n]}" for n in REQUIRED if n not in missing)
        raise ValueError(
            f"the environment has {given}, but not {', '.join(missing)}: start the run with "
            "torchrun, which sets all of them; if this is not one process of a distributed job, "
            "unset WORLD_SIZE"
        )


def check_processes(name: str, number: int) -> None:
    """Refuse far more processes, each of which holds torch, than this machine can use.

    Errors: ValueError that begins with the `name` of what asks for so many.
    """
    cores = len(os.sched_getaffinity(0))
    if number > MOST_PER_CORE * cores:
        raise ValueError(
            f"{name}: {number:,} processes on this machine, which has {cores} "
            f"core{'s' * (cores > 1)}; give at most {MOST_PER_CORE} a core, better one"
        )


def local_rank(rank: int, num: int, port: int) -> dict[str, str]:
    """The variables of one of the ranks of a run on this machine alone. Port 0 means any free one,
    for a run's only rank."""
    numbers = {"RANK": rank, "WORLD_SIZE": num, "LOCAL_RANK": rank, "MASTER_PORT": port}
    sizes = dict.fromkeys(LOCAL_SIZES, num)
    texts = {name: str(number) for name, number in (numbers | sizes).items()}
    return {"MASTER_ADDR": "127.0.0.1", **texts}


def free_port() -> int:
    """A port that is free now."""
    # Another program may take it before the first rank does, which then says so (`PORT_TAKEN`).
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def without_rank(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for a process that is not a rank, or for a launcher of new ranks."""
    # With the last one set, torch.distributed expects torchrun to listen on MASTER_PORT.
    dropped = {*REQUIRED, *LOCAL_SIZES, *chain(*OF_CLUSTERS), "TORCHELASTIC_USE_AGENT_STORE"}
    return {name: value for name, value in environment.items() if name not in dropped}

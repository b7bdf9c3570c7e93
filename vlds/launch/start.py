"""Starts ranks, and waits until the last of them has ended.

    vlds train ... / ./launch.sh train ...       (cli/main.py -> this file, supervising)
      -> local.py                                (in a session that ends as a whole)
        -> python -m vlds train ...              (once per rank: rank.py -> cli/commands.py)

With VLDS_LAUNCHER_ARGS, DeepSpeed's runner and its launch.py stand in local.py's place.

`deepspeed launch.sh train ...` and `torchrun -m vlds train ...` enter at the last line.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

from vlds.launch.local import MODULE as LOCAL
from vlds.launch.restarts import JOB_FILE, Job, run_job, what_happened
from vlds.launch.supervisor import (
    RUNNER,
    SUPERVISOR,
    Outcome,
    grace_from_environment,
    output_of,
    say,
    supervise,
)
from vlds.launch.words import TRAIN, Words, positive
from vlds.runtime.json_file import parse_json
from vlds.runtime.process_end import end_with_parent, signal_name, signals_collected
from vlds.runtime.quiet_libraries import has_gpu_driver, set_quiet
from vlds.runtime.rank_environment import check_alone, without_rank
from vlds.runtime.scratch import scratch_folder
from vlds.runtime.terminal import tell

NO_VARIABLES: Mapping[str, str] = MappingProxyType({})
OWN_NETWORK = ("--hostfile", "-H", "--no_ssh", "--master_port")
"""Launcher arguments with which the user chooses hosts and ports; vlds then adds none."""


def start(words: Words) -> int:
    """Run a command on its ranks and wait for its end; the exit code."""
    if os.environ.get(SUPERVISOR) == str(os.getppid()):  # as in `vlds demo`
        end_with_parent(signal.SIGTERM)
    with signals_collected() as received:
        return _start(words, received)


def _start(words: Words, received: Sequence[int]) -> int:
    launcher_args = shlex.split(os.environ.get("VLDS_LAUNCHER_ARGS", ""))
    several_hosts = rules_over_network(launcher_args)
    if not several_hosts:
        check_alone(os.environ)
    grace_s = grace_from_environment()

    def run(words: Words, variables: Mapping[str, str] = NO_VARIABLES) -> Outcome:
        program = ["-m", "vlds", *words.for_ranks]
        command, env = launch_command(program, words.ranks, launcher_args, os.environ, count_gpus())
        saves = words.command == TRAIN
        return supervise(command, {**env, **variables}, grace_s, received, saves=saves)

    def ranks_available() -> int | None:
        return None if several_hosts else count_gpus() or None

    words = replace(words, ranks=words.ranks or ranks_from_environment())
    # Find mistakes in the number of ranks before the recipe is read.
    launch_command([], words.ranks, launcher_args, os.environ, count_gpus())
    if words.command != TRAIN:
        outcome = run(words)
        if outcome.asked:
            resumes = "; start it again to continue" if words.command == "features" else ""
            say(f"{words.command} ended by {signal_name(outcome.code - 128)}{resumes}")
        return outcome.code
    if not several_hosts:
        words = replace(words, ranks=words.ranks or count_gpus() or 1)
    if words.ranks == 1:
        with scratch_folder() as folder:
            file = folder / "job.json"
            alone = partial(run, variables={JOB_FILE: str(file)})
            return run_job(alone, words, lambda: job_in(file), ranks_available)
    code, job = read_job(words, received)
    return code if job is None else run_job(run, words, lambda: job, ranks_available)


def job_in(file: Path) -> Job | None:
    """What the only rank has written of its recipe."""
    return Job(**parse_json(file.read_text(encoding="utf-8"))) if file.exists() else None


def read_job(words: Words, received: Sequence[int]) -> tuple[int, Job | None]:
    """What the supervisor needs to know of a run on several ranks.

    Without it, the exit code: the recipe's mistakes were printed, or a signal arrived.

    The recipe is read in a separate process, because the imports take much memory, and the
    supervisor lives as long as the run.
    """
    call = f"check_recipe(sys.argv[1:], {words.ranks})"
    program = f"import sys; from vlds.launch.check_recipe import check_recipe; sys.exit({call})"
    command = [sys.executable, "-c", program, *words.for_ranks]
    code, output = output_of(command, received)
    if code > 128:
        say(f"{what_happened(code)}; no rank had started: start it again")
    if code != 0:
        return code, None
    *printed, line = output.splitlines()
    try:
        return 0, Job(**parse_json(line))
    except ValueError:  # the output of an option such as --print_config
        tell("\n".join([*printed, line]))
        return 0, None


def ranks_from_environment() -> int | None:
    """The number in VLDS_RANKS, if set."""
    text = os.environ.get("VLDS_RANKS")
    return positive("VLDS_RANKS", text, "the number of ranks") if text else None


def count_gpus() -> int:
    """GPUs that this process may use. Imports torch only if there is a driver."""
    if os.environ.get("DS_ACCELERATOR") == "cpu" or not has_gpu_driver():
        return 0
    import torch

    return torch.cuda.device_count()


def rules_over_network(launcher_args: Sequence[str]) -> bool:
    """True if the user chooses hosts and ports, and with them the number of ranks."""
    return any(word.partition("=")[0] in OWN_NETWORK for word in launcher_args)


def launch_command(
    program: Sequence[str],
    ranks: int | None,
    launcher_args: Sequence[str],
    environment: Mapping[str, str],
    num_gpus: int,
) -> tuple[list[str], dict[str, str]]:
    """The command line and environment that start ranks of a Python program, given with its
    arguments."""
    env = without_rank(environment)
    visible = env.get("CUDA_VISIBLE_DEVICES", "")
    if num_gpus == 0:
        # DeepSpeed would count ranks by this variable even without a GPU.
        env.pop("CUDA_VISIBLE_DEVICES", None)
        env["DS_ACCELERATOR"] = "cpu"
    elif ranks is not None and ranks > num_gpus:
        raise ValueError(
            f"{ranks} ranks asked for, but this machine has {num_gpus} usable GPU(s): "
            f"give --ranks {num_gpus} or fewer, or set DS_ACCELERATOR=cpu to run without GPUs"
        )
    elif visible and ranks:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(visible.split(",")[:ranks])
    threads = max(1, len(os.sched_getaffinity(0)) // (ranks or max(num_gpus, 1)))
    env.setdefault("OMP_NUM_THREADS", str(threads))
    set_quiet(env)
    if launcher_args:
        shortened = bool(visible) and num_gpus > 0
        asked = None if shortened else ranks
        return deepspeed_command(program, asked, launcher_args, num_gpus), env
    count = str(ranks or max(num_gpus, 1))
    local = [sys.executable, "-m", LOCAL, count, str(free_port())]
    return [*local, sys.executable, "-u", *program], env


def deepspeed_command(
    program: Sequence[str], ranks: int | None, launcher_args: Sequence[str], num_gpus: int
) -> list[str]:
    """DeepSpeed's runner with the user's arguments. `ranks`: None if CUDA_VISIBLE_DEVICES decides,
    which the runner ignores if it gets a number."""
    options = ["--log_level", "critical"]
    if not rules_over_network(launcher_args):
        options += ["--master_port", str(free_port())]
        ranks = ranks or (1 if num_gpus == 0 else None)
    if ranks:
        options += ["--num_gpus", str(ranks)]
    module = ["--module", *program[1:]] if program[:1] == ["-m"] else program
    return [sys.executable, "-m", RUNNER[-1], *options, *launcher_args, *module]


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

"""Starts runs: the command `vlds`, what `launch.sh` hands over to, and what each rank executes.

    vlds train ... / ./launch.sh train ...       (this file, supervising)
      -> deepspeed's runner -> its launch.py     (one session of their own)
        -> python -m vlds.launch train ...       (this file again, once per rank: vlds.cli.main)

`deepspeed launch.sh train ...` and `torchrun -m vlds train ...` enter at the last line. Only
RANK_COMMANDS start ranks; everything else runs in this process.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from typing import NoReturn

from vlds.quiet_libraries import has_gpu_driver, quiet_libraries, set_quiet
from vlds.rank_environment import check_alone, is_rank, read_place, without_rank
from vlds.recipe_help import ALL_KEYS
from vlds.restarts import Job, run_job, take_restarts, what_happened
from vlds.runtime.json_file import parse_json
from vlds.runtime.process_end import Interrupted, end_with_parent, interruptible, signal_name
from vlds.runtime.terminal import tell, tell_exception
from vlds.supervisor import (
    SUPERVISOR,
    Outcome,
    output_of,
    say,
    signals_collected,
    supervise,
    watch_launcher,
)

RANK_COMMANDS = ("train", "evaluate", "predict", "features")
ALONE = ("--predictions", "--serve")
"""Options of `evaluate` and `predict` with which one process is enough."""
RANKS_HELP = """\
train, evaluate, predict and features start one process (rank) per GPU, or one
on a machine without GPU. More or fewer: --ranks N, or VLDS_RANKS=N in the
environment. VLDS_LAUNCHER_ARGS is handed to the deepspeed launcher (--hostfile,
--no_ssh, --node_rank, --master_addr, --master_port, ...).
On SIGTERM, SIGINT (Ctrl-C) and SIGHUP the ranks of `vlds train` save and end;
after VLDS_GRACE_S seconds (default 120) they are killed.
"""
GRACE_S = 120.0
OTHERS_SPEAK_AFTER_S = 5.0
"""The launcher looks after its ranks every second."""
LOST_CONTACT = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
"""In what a collective raises where another rank is gone: that one has said why."""
WAITED_IN_VAIN = (
    "Timed out waiting", "Application timeout caused", "waiting for clients", "wait timeout after",
)  # fmt: skip
"""In what a collective raises where another rank does not come."""
OWN_NETWORK = ("--hostfile", "-H", "--no_ssh", "--master_port")
"""Launcher arguments with which the user rules over hosts and ports; we then add none of ours."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command `vlds`: in a rank do the work, elsewhere start ranks or run in this process."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        sys.excepthook = tell_exception
        quiet_libraries()
    if is_rank(os.environ):
        run_rank(arguments)
    try:
        ranks, arguments = take_ranks(arguments)
        restarts, arguments = take_restarts(arguments)
        if starts_ranks(arguments):
            return start(arguments, ranks, restarts)
    except ValueError as error:
        return complain("vlds", error)
    try:
        with interruptible():
            from vlds import cli

            return cli.main(arguments)
    except Interrupted as error:
        say(f"ended by {error.signal_name}")
        return error.exit_code


def start(arguments: Sequence[str], ranks: int | None = None, restarts: int = 0) -> int:
    """Run one of RANK_COMMANDS on `ranks` processes and wait for its end; the exit code."""
    if os.environ.get(SUPERVISOR) == str(os.getppid()):  # as in `vlds demo`
        end_with_parent(signal.SIGTERM)
    with signals_collected() as received:
        return _start(arguments, ranks, restarts, received)


def _start(
    arguments: Sequence[str], ranks: int | None, restarts: int, received: Sequence[int]
) -> int:
    launcher_args = shlex.split(os.environ.get("VLDS_LAUNCHER_ARGS", ""))
    several_hosts = rules_over_network(launcher_args)
    if not several_hosts:
        check_alone(os.environ)
    grace_s = grace_from_environment()

    def run(words: Sequence[str], number: int | None) -> Outcome:
        program = ["--module", "vlds.launch", *words]
        command = launch_command(program, number, launcher_args, os.environ, count_gpus())
        saves = arguments[0] == "train"
        return supervise(*command, grace_s, received, saves=saves)

    def still_there() -> int | None:
        return None if several_hosts else count_gpus() or None

    ranks = ranks or ranks_from_environment()
    launch_command([], ranks, launcher_args, os.environ, count_gpus())  # its mistakes come first
    if arguments[0] != "train":
        outcome = run(arguments, ranks)
        if outcome.asked:
            goes_on = "; start it again: it goes on" if arguments[0] == "features" else ""
            say(f"{arguments[0]} ended by {signal_name(outcome.code - 128)}{goes_on}")
        return outcome.code
    if not several_hosts:
        ranks = ranks or count_gpus() or 1
    code, job = read_job(arguments[1:], ranks, received)
    if job is None:
        return code
    return run_job(run, arguments, ranks, job, restarts, still_there)


def read_job(
    arguments: Sequence[str], ranks: int | None, received: Sequence[int]
) -> tuple[int, Job | None]:
    """What the supervisor has to know of a run, or the exit code after its recipe's mistakes were
    said or a signal was received, before any rank has started.

    In a process of its own: what it has to import is large, and this one lives as long as the run.
    """
    call = f"check_recipe(sys.argv[1:], {ranks})"
    program = f"import sys; from vlds.check_recipe import check_recipe; sys.exit({call})"
    command = [sys.executable, "-c", program, *arguments]
    code, output = output_of(command, received)
    if code > 128:
        say(f"{what_happened(code)}; no rank had started: start it again")
    if code != 0:
        return code, None
    *printed, line = output.splitlines()
    try:
        return 0, Job(**parse_json(line))
    except ValueError:  # an option of the parser's own, such as --print_config, was all
        tell("\n".join([*printed, line]))
        return 0, None


def complain(who: str, error: ValueError) -> int:
    """Say what the user got wrong; the exit code.

    Ranks meet most mistakes together. So the first one of a machine speaks at once, and the others
    only if they still live some seconds later: when one rank ends, the launcher ends the others.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(OTHERS_SPEAK_AFTER_S)
    tell(f"{who}: {error}", error=True, flush=True)
    return 2


def run_rank(arguments: Sequence[str]) -> NoReturn:
    """Do a rank's work and end this process."""
    rank = os.environ["RANK"]  # which some commands take away
    if SUPERVISOR in os.environ:  # it passes Ctrl-C on; before there is anything to save, that ends
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        code = _rank_code(list(arguments))
    except ValueError as error:
        code = complain("vlds", error)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            tell(end.code, error=True)
    except BaseException as error:
        code = _failure(error, rank)
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    # Not sys.exit: the destructors of a process group now and then abort a rank that has done its
    # work, and may wait for ever in one that failed.
    os._exit(code)


def _failure(error: BaseException, rank: str) -> int:
    """Say why a rank cannot go on; the exit code."""
    if isinstance(error, KeyboardInterrupt):  # torchrun's, before there is anything to save
        say(f"rank {rank} ends by Ctrl-C")
        return 128 + signal.SIGINT
    if isinstance(error, BrokenPipeError):  # of stdout: a collective raises none of Python's
        say(f"rank {rank} ends because nobody reads its output any more; write it to a file")
        return 128 + signal.SIGPIPE
    if (said := _lost_worker(error)) is not None:
        say(f"rank {rank} ends because {said}")
    elif any(words in str(error) for words in LOST_CONTACT):
        say(f"rank {rank} ends because another has")
        time.sleep(OTHERS_SPEAK_AFTER_S)  # the run's exit code shall be the other one's
    elif any(words in str(error) for words in WAITED_IN_VAIN):
        say(
            f"rank {rank} has waited training.collective_timeout seconds for another one, "
            "which hangs or is much slower"
        )
    else:
        tell_exception(type(error), error, error.__traceback__)
    return 1


def _lost_worker(error: BaseException) -> str | None:
    """What to say where a loader worker hangs or was killed."""
    if "vlds.data.lost_workers" not in sys.modules:
        return None
    from vlds.data.lost_workers import lost_worker

    return lost_worker(error)


def _rank_code(arguments: list[str]) -> int:
    ranks, arguments = take_ranks(without_local_rank(arguments))
    restarts, arguments = take_restarts(arguments)
    if starts_ranks(arguments):
        started = read_place(os.environ).local_world_size
        if ranks not in (None, started):
            raise ValueError(
                f"--ranks {ranks}, but the launcher has started {started} here: use `vlds ...`, "
                f"`deepspeed --num_gpus {ranks} launch.sh ...` or `torchrun --nproc_per_node "
                f"{ranks} -m vlds ...`"
            )
        if restarts:
            raise ValueError(
                "--restarts: nobody is there to start this run again; use `vlds train ...` or "
                "`./launch.sh train ...`, or torchrun's own --max_restarts with --resume auto"
            )
        watch_launcher(lambda: os.kill(os.getpid(), signal.SIGTERM), grace_from_environment())
    elif os.environ["RANK"] != "0":
        return 0
    else:
        # One process is enough for the rest, and it must not take itself for a rank.
        for variable in os.environ.keys() - without_rank(os.environ).keys():
            del os.environ[variable]
    from vlds import cli

    return cli.main(arguments or ["--help"])


def starts_ranks(arguments: Sequence[str]) -> bool:
    """Whether this command line needs ranks: asking a command for its help does not, nor do
    scoring a file and answering one question after the other."""
    helps = ("-h", "--help", ALL_KEYS)
    alone = any(word.partition("=")[0] in (*helps, *ALONE) for word in arguments)
    return bool(arguments) and arguments[0] in RANK_COMMANDS and not alone


def without_local_rank(arguments: Sequence[str]) -> list[str]:
    """The command line without what the deepspeed launcher puts in front of it."""
    if arguments and arguments[0].startswith(("--local_rank=", "--local-rank=")):
        return list(arguments[1:])
    return list(arguments)


def take_ranks(arguments: Sequence[str]) -> tuple[int | None, list[str]]:
    """Split `--ranks N` from a command line; other commands may have a --ranks of their own."""
    rest, ranks = list(arguments), None
    place = 0
    while place < len(rest) and (rest[0] in RANK_COMMANDS or place == 0):
        option, equals, value = rest[place].partition("=")
        if option != "--ranks":
            place += 1
            continue
        del rest[place]
        if not equals:
            value = rest.pop(place) if place < len(rest) else ""
        ranks = positive("--ranks", value)
    return ranks, rest


def ranks_from_environment() -> int | None:
    """VLDS_RANKS, if set."""
    text = os.environ.get("VLDS_RANKS")
    return positive("VLDS_RANKS", text) if text else None


def grace_from_environment() -> float:
    """VLDS_GRACE_S: seconds that the ranks have to save and end."""
    text = os.environ.get("VLDS_GRACE_S") or str(GRACE_S)
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"VLDS_GRACE_S is {text!r}; give a number of seconds") from None


def positive(source: str, text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"{source} is {text!r}; give the number of ranks, 1 or more")
    return int(text)


def count_gpus() -> int:
    """GPUs that this process may use; without a driver torch is not even imported."""
    if os.environ.get("DS_ACCELERATOR") == "cpu" or not has_gpu_driver():
        return 0
    import torch

    return torch.cuda.device_count()


def rules_over_network(launcher_args: Sequence[str]) -> bool:
    """Whether hosts and ports are the user's, and with them the number of ranks."""
    return any(word.partition("=")[0] in OWN_NETWORK for word in launcher_args)


def launch_command(
    program: Sequence[str],
    ranks: int | None,
    launcher_args: Sequence[str],
    environment: Mapping[str, str],
    num_gpus: int,
) -> tuple[list[str], dict[str, str]]:
    """The deepspeed launcher's command line and environment for a program and its arguments."""
    env = without_rank(environment)
    options = ["--log_level", "critical"]
    several_hosts = rules_over_network(launcher_args)
    if not several_hosts:
        options += ["--master_port", str(free_port())]
    visible = env.get("CUDA_VISIBLE_DEVICES", "")
    if num_gpus == 0:
        # DeepSpeed counts and sets this variable even without a GPU.
        env.pop("CUDA_VISIBLE_DEVICES", None)
        env["DS_ACCELERATOR"] = "cpu"
        ranks = ranks or (None if several_hosts else 1)
    elif ranks is not None and ranks > num_gpus:
        raise ValueError(
            f"{ranks} ranks asked for, but this machine has {num_gpus} usable GPU(s): "
            f"give --ranks {num_gpus} or fewer, or DS_ACCELERATOR=cpu for a run without GPU"
        )
    elif visible and ranks:
        # The runner ignores the variable when a number is given, and keeps to it otherwise.
        env["CUDA_VISIBLE_DEVICES"] = ",".join(visible.split(",")[:ranks])
        ranks = None
    if ranks:
        options += ["--num_gpus", str(ranks)]
    threads = max(1, len(os.sched_getaffinity(0)) // (ranks or max(num_gpus, 1)))
    env.setdefault("OMP_NUM_THREADS", str(threads))
    set_quiet(env)
    runner = [sys.executable, "-m", "deepspeed.launcher.runner"]
    return [*runner, *options, *launcher_args, *program], env


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())

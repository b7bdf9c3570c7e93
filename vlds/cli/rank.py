"""What a process does that a launcher started as a rank: work, end with the right exit code, and
end too when its launcher is gone.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NoReturn

import psutil

from vlds.cli.supervisor import RUNNER, SUPERVISOR, grace_from_environment, say
from vlds.cli.words import PROVE, RANKS, RESTARTS, split_words
from vlds.runtime import terminal
from vlds.runtime.process import ASKING
from vlds.runtime.rank_environment import read_place, without_rank
from vlds.runtime.terminal import Away, complain, tell, tell_exception

Work = Callable[[Sequence[str]], int]
"""Runs a command line in this process; the exit code."""
LOST_CONTACT = (
    "Connection closed by peer", "Connection reset by peer", "Broken pipe",
    "ncclRemoteError", "NCCL communicator was aborted",
)  # fmt: skip
"""Parts of a collective's error after another rank has died, which has said why: gloo's, NCCL's."""
WAITED_IN_VAIN = (
    "Timed out waiting", "Application timeout caused", "waiting for clients", "wait timeout after",
    "Watchdog caught collective operation timeout",
)  # fmt: skip
"""Parts of a collective's error when another rank does not arrive."""
PORT_TAKEN = re.compile(r"port: (\d+),.*EADDRINUSE")
"""The first rank's error when it cannot listen where the others look for it."""


def run_rank(arguments: Sequence[str], work: Work) -> NoReturn:
    """Do a rank's work and end this process."""
    rank = os.environ["RANK"]  # some commands remove it
    if SUPERVISOR in os.environ:
        # The supervisor passes Ctrl-C on. Until there is something to save, it just ends the rank.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)  # local.py has started it with them blocked
    try:
        code = _work_as_rank(arguments, work)
    except (ValueError, Away) as error:
        code = complain("vlds", error)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            tell(end.code, error=True)
    except BaseException as error:  # any end gets an exit code and, at most once, a reason
        code = explain_failure(error, rank)
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    # Not sys.exit: the destructors of a process group sometimes abort a rank that has done its
    # work, and may wait forever in a rank that failed.
    os._exit(code)


def _work_as_rank(arguments: Sequence[str], work: Work) -> int:
    words = split_words(without_local_rank(arguments))
    if words.starts_ranks:
        # The launcher has decided how many there are: the command line cannot change it any more.
        started = read_place(os.environ).local_world_size
        if words.ranks not in (None, started):
            raise ValueError(
                f"{RANKS} {words.ranks}, but the launcher has started {started} here: use `vlds "
                f"...`, `deepspeed --num_gpus {words.ranks} launch.sh ...` or `torchrun "
                f"--nproc_per_node {words.ranks} -m vlds ...`"
            )
        if words.restarts:
            raise ValueError(
                f"{RESTARTS}: no supervisor can restart this run; use `vlds train ...` or "
                "`./launch.sh train ...`, or torchrun's own --max_restarts with --resume auto"
            )
        if words.prove:
            raise ValueError(
                f"{PROVE}: a launcher has started the ranks already; run `vlds prove RECIPE "
                "--short` before it"
            )
        watch_launcher(lambda: os.kill(os.getpid(), signal.SIGTERM), grace_from_environment())
    elif os.environ["RANK"] != "0":
        return 0
    else:
        # One process is enough for the other commands, and it must not act as a rank.
        for variable in os.environ.keys() - without_rank(os.environ).keys():
            del os.environ[variable]
    return work(words.for_ranks or ["--help"])


def without_local_rank(arguments: Sequence[str]) -> list[str]:
    """The command line without the option that the deepspeed launcher puts first."""
    if arguments and arguments[0].startswith(("--local_rank=", "--local-rank=")):
        return list(arguments[1:])
    return list(arguments)


def explain_failure(error: BaseException, rank: str) -> int:
    """Say why a rank has failed; the exit code."""
    if isinstance(error, KeyboardInterrupt):  # from torchrun, before there is anything to save
        say(f"rank {rank} ends by Ctrl-C")
        return 128 + signal.SIGINT
    reason = None
    # A loader worker that hangs or was killed. If nothing has imported the loader, it has none.
    if "vlds.data.streams.loader" in sys.modules:
        from vlds.data.streams.loader import lost_worker

        reason = lost_worker(error)
    if reason is not None:
        say(f"rank {rank} ends because {reason}")
    elif (taken := PORT_TAKEN.search(str(error))) is not None:
        say(
            f"rank {rank} cannot listen on port {taken[1]}, which another program uses: start it "
            "again; if you chose the port (--master_port, MASTER_PORT), choose another"
        )
    elif any(words in str(error) for words in LOST_CONTACT):
        say(f"rank {rank} ends because another rank has ended")
        # The failed rank exits first: its code becomes the run's.
        time.sleep(terminal.OTHERS_SPEAK_AFTER_S)
    elif any(words in str(error) for words in WAITED_IN_VAIN):
        say(
            f"rank {rank} has waited training.collective_timeout seconds for another rank, which "
            "hangs or is much slower"
        )
    else:
        tell_exception(type(error), error, error.__traceback__)
    return 1


def watch_launcher(
    on_lost: Callable[[], None], grace_s: float, poll_s: float = 1.0
) -> threading.Thread:
    """Call `on_lost` once when a process that started this rank has ended, and kill this rank if it
    still lives after the grace time: it may wait in a collective forever.

    Watches the parent (local.py, DeepSpeed's launch.py or torchrun), the deepspeed runner above it
    and the supervisor.
    """
    # Looked up now: once a launcher has ended, its process id may be another program's.
    watched = _launchers()

    def is_alive(process: psutil.Process) -> bool:
        with suppress(psutil.NoSuchProcess):
            return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
        return False

    def watch() -> None:
        while watched is not None and all(map(is_alive, watched)):
            time.sleep(poll_s)
        on_lost()
        time.sleep(grace_s)
        say(f"the launcher is gone and this rank did not end within {grace_s:g} s")
        os.kill(os.getpid(), signal.SIGKILL)

    thread = threading.Thread(target=watch, name="watch_launcher", daemon=True)
    thread.start()
    return thread


def _launchers() -> list[psutil.Process] | None:
    """The processes that started this one; None if one of them has ended already."""
    try:
        parent = psutil.Process(os.getppid())
        launchers = [parent]
        if "deepspeed.launcher.launch" in parent.cmdline():  # not under torchrun
            above = parent.parent()
            if above is None:
                return None
            # By whole words: the script of a shell above may mention deepspeed.
            if any(os.path.basename(word) in RUNNER for word in above.cmdline()):
                launchers.append(above)
            else:
                # A runner is in its launcher's session, and so is the shell that starts a launcher
                # on another host, unless the launcher leads that session. Anything else has
                # adopted the launcher, because its runner was killed.
                session = os.getsid(parent.pid)
                outside = os.getsid(above.pid) != session or above.pid == 1
                if session != parent.pid and outside:
                    return None
        if SUPERVISOR in os.environ:
            launchers.append(psutil.Process(int(os.environ[SUPERVISOR])))
    except (psutil.NoSuchProcess, ProcessLookupError):
        return None
    return launchers

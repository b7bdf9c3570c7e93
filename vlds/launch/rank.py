"""What a process does that a launcher has started as a rank: work, and end with the right code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from vlds.launch.supervisor import SUPERVISOR, grace_from_environment, say, watch_launcher
from vlds.launch.words import split_words
from vlds.runtime.rank_environment import read_place, without_rank
from vlds.runtime.terminal import tell, tell_exception

Work = Callable[[Sequence[str]], int]
"""Runs a command line in this process; the exit code."""
OTHERS_SPEAK_AFTER_S = 5.0
"""The launcher looks after its ranks every second."""
LOST_CONTACT = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
"""In what a collective raises where another rank is gone: that one has said why."""
WAITED_IN_VAIN = (
    "Timed out waiting", "Application timeout caused", "waiting for clients", "wait timeout after",
)  # fmt: skip
"""In what a collective raises where another rank does not come."""


def run_rank(arguments: Sequence[str], work: Work) -> NoReturn:
    """Do a rank's work and end this process."""
    rank = os.environ["RANK"]  # which some commands take away
    if SUPERVISOR in os.environ:  # it passes Ctrl-C on; before there is anything to save, that ends
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        code = _rank_code(arguments, work)
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
        time.sleep(
            OTHERS_SPEAK_AFTER_S
        )  # let the failed rank exit first, so that its code becomes the run's
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
    if "vlds.data.streams.loader" not in sys.modules:
        return None
    from vlds.data.streams.loader import lost_worker

    return lost_worker(error)


def _rank_code(arguments: Sequence[str], work: Work) -> int:
    words = split_words(without_local_rank(arguments))
    if words.starts_ranks:
        started = read_place(os.environ).local_world_size
        if words.ranks not in (None, started):
            number = words.ranks
            raise ValueError(
                f"--ranks {number}, but the launcher has started {started} here: use `vlds ...`, "
                f"`deepspeed --num_gpus {number} launch.sh ...` or `torchrun --nproc_per_node "
                f"{number} -m vlds ...`"
            )
        if words.restarts:
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
    return work(words.for_ranks or ["--help"])


def without_local_rank(arguments: Sequence[str]) -> list[str]:
    """The command line without what the deepspeed launcher puts in front of it."""
    if arguments and arguments[0].startswith(("--local_rank=", "--local-rank=")):
        return list(arguments[1:])
    return list(arguments)


def complain(who: str, error: ValueError) -> int:
    """Say what the user got wrong; the exit code.

    Ranks meet most mistakes together. So the first one of a machine speaks at once, and the others
    only if they still live some seconds later: when one rank ends, the launcher ends the others.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(OTHERS_SPEAK_AFTER_S)
    tell(f"{who}: {error}", error=True, flush=True)
    return 2

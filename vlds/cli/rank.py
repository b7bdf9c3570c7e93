"""What a process does that a launcher started as a rank: work, end with the right exit code, and
end too when its launcher is gone.

The last chapter is what the supervisor learns of a recipe before, or from, the ranks.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

import psutil

from vlds.cli.start import JOB_FILE, RunFacts
from vlds.cli.supervisor import RUNNER, SUPERVISOR, grace_from_environment, say
from vlds.cli.words import RANKS, RESTARTS, RESUME, split_words
from vlds.data.order.mixed_order import BatchCut
from vlds.recipe.config import Recipe, parse_recipe, to_tree
from vlds.recipe.paths import check_files, data_sets, left_behind
from vlds.runtime import terminal
from vlds.runtime.disk import names_fit
from vlds.runtime.process import ASKING
from vlds.runtime.ranks import read_place, without_rank
from vlds.runtime.terminal import complain, tell, tell_exception
from vlds.training.states import Resume, check_output

Work = Callable[[Sequence[str]], int]
"""Runs a command line in this process; the exit code."""
LOST_CONTACT = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
"""Parts of a collective's error after another rank has died, which has said why."""
WAITED_IN_VAIN = (
    "Timed out waiting", "Application timeout caused", "waiting for clients", "wait timeout after",
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
    except ValueError as error:
        code = complain("vlds", error)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            tell(end.code, error=True)
    except BaseException as error:
        code = _explain_failure(error, rank)
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    # Not sys.exit: the destructors of a process group sometimes abort a rank that has done its
    # work, and may wait forever in a rank that failed.
    os._exit(code)


def _work_as_rank(arguments: Sequence[str], work: Work) -> int:
    words = split_words(without_local_rank(arguments))
    if words.starts_ranks:
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


def _explain_failure(error: BaseException, rank: str) -> int:
    """Say why a rank has failed; the exit code."""
    if isinstance(error, KeyboardInterrupt):  # from torchrun, before there is anything to save
        say(f"rank {rank} ends by Ctrl-C")
        return 128 + signal.SIGINT
    if isinstance(error, BrokenPipeError):  # stdout's: a collective never raises this class
        say(f"rank {rank} ends because nobody reads its output any more; write it to a file")
        return 128 + signal.SIGPIPE
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

    def is_runner(process: psutil.Process) -> bool:
        # By whole words: the script of a shell above may mention deepspeed.
        return any(os.path.basename(word) in RUNNER for word in process.cmdline())

    try:
        parent = psutil.Process(os.getppid())
        launchers = [parent]
        if "deepspeed.launcher.launch" in parent.cmdline():  # not under torchrun
            above = parent.parent()
            if above is None:
                return None
            if is_runner(above):
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


# What the supervisor learns of `vlds train`'s recipe: a process of its own checks it before several
# ranks start; an only rank does that itself.


def check_recipe(arguments: Sequence[str], ranks: int | None) -> int:
    """Print what the supervisor needs to know of a recipe (`RunFacts`), or what is wrong with it;
    the exit code. `ranks`: how many will start, if known."""
    try:
        with names_fit():
            words = split_words(arguments)
            recipe = parse_recipe(words.rest[1:], "vlds train")
            check_start(recipe, words.resume, ranks)
    except ValueError as error:
        return complain("vlds train", error)
    tell(facts_of(recipe))
    return 0


def report_facts(recipe: Recipe, resume: Resume) -> None:
    """Do the same in the only rank of a run, if its supervisor has left that to it.

    Errors: ValueError as `check_start`.
    """
    if (file := os.environ.pop(JOB_FILE, None)) is not None:
        check_start(recipe, resume, 1)
        Path(file).write_text(facts_of(recipe), encoding="utf-8")


def facts_of(recipe: Recipe) -> str:
    """A recipe's `RunFacts` as JSON."""
    largest = max(recipe.batch_sizes.values())
    facts = RunFacts(str(recipe.output), largest, recipe.data.micro_batch_size)
    return json.dumps(asdict(facts))


def check_start(recipe: Recipe, resume: Resume, ranks: int | None) -> None:
    """Check what can be checked before any rank starts: the run in the output folder, the sizes of
    batches, names on the hub, and the files of a run that is resumed from another folder.

    Errors: ValueError that names the key.
    """
    saved = Path(recipe.output) / "recipe.yaml"
    if resume and (message := left_behind(to_tree(recipe), saved, Recipe)) is not None:
        raise ValueError(f"{RESUME}: {message}")
    check_files(to_tree(recipe), Recipe)
    check_output(recipe.output, resume, data_sets(to_tree(recipe), Recipe))
    for field, size in recipe.batch_sizes.items():
        BatchCut(ranks or 1).check(size, field)
    recipe.model.check_sources()

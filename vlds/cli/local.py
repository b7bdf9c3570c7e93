"""The launcher of one machine: starts its ranks, and ends them all when one has failed.

    python -m vlds.cli.local RANKS PORT COMMAND...

DeepSpeed's runner and its launcher do the same, but each imports DeepSpeed first, which takes
seconds. They start the ranks where the user has arguments for them (VLDS_LAUNCHER_ARGS).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from vlds.runtime.process import ASKING
from vlds.runtime.rank_environment import local_rank
from vlds.runtime.terminal import has_gpu_driver, tell

MODULE = "vlds.cli.local"
POLL_S = 0.1
LAST_WORDS_S = 10.0
"""Seconds that the others have once a rank has failed. They cannot save without it: what they wait
for in NCCL never comes, and they do not even hear the signal."""
SAVED = tuple(128 + number for number in ASKING)
"""Exit codes of a rank that was asked to end and has saved. The others may still be saving."""


def run(arguments: Sequence[str]) -> NoReturn:
    """Do what the command line says, and end this process as the ranks have ended."""
    number, port, *command = arguments if len(arguments) > 1 else ("", "")
    if not (number.isdecimal() and int(number) and port.isdecimal() and command):
        words = "RANKS PORT COMMAND...; RANKS (1 or more) and PORT are numbers"
        tell(f"usage: python -m {MODULE} {words}", error=True)
        sys.exit(2)
    try:
        code = run_ranks(int(number), port, command)
    except OSError as error:
        tell(f"vlds: cannot start {number} ranks of {command[0]}: {error}", error=True)
        sys.exit(1)
    if -code in ASKING:
        # By the same signal, for an exit code of 128 + n means that the ranks have saved.
        signal.signal(-code, signal.SIG_DFL)
        signal.raise_signal(-code)
    sys.exit(exit_code(code))


def run_ranks(ranks: int, port: str, command: Sequence[str]) -> int:
    """Run a command on so many ranks; the exit code of the first that fails (-n: it died of signal
    n), or of one that has saved, or 0. If one fails, the others end, or are killed.

    Errors: OSError if a rank cannot be started; those before it are killed.
    """
    # A rank inherits the blocked signals, and unblocks them when it can answer (rank.run_rank).
    signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    processes: list[subprocess.Popen[bytes]] = []

    def end(number: int, frame: object = None) -> None:
        for process in processes:
            with suppress(ProcessLookupError):
                process.send_signal(number)

    try:
        for rank in range(ranks):
            processes.append(
                subprocess.Popen(command, env=os.environ | local_rank(rank, ranks, int(port)))
            )
    except OSError:
        end(signal.SIGKILL)  # they have nothing to save yet
        raise
    # The supervisor signals the ranks itself; this is for a signal to this process alone.
    for number in ASKING:
        signal.signal(number, end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
    while True:
        codes = [process.poll() for process in processes]
        # A rank that has saved is not a failure; the others may still be saving.
        if failed := [code for code in codes if code and code not in SAVED]:
            end(signal.SIGTERM)
            deadline = time.monotonic() + LAST_WORDS_S
            while any(p.poll() is None for p in processes) and time.monotonic() < deadline:
                time.sleep(POLL_S)
            end(signal.SIGKILL)
            if failed[0] == -signal.SIGABRT and has_gpu_driver():
                tell(
                    f"vlds: rank {codes.index(failed[0])} ended by SIGABRT: so NCCL ends a rank "
                    "for which another one has hung, or has not come, for "
                    "training.collective_timeout seconds",
                    error=True,
                )
            return failed[0]
        if None not in codes:
            return next((code for code in codes if code), 0)
        time.sleep(POLL_S)


def exit_code(code: int) -> int:
    """128 + n for a death by signal n, which subprocess reports as -n and DeepSpeed's launcher as
    256 - n."""
    # Killed by signal 9: -9 or 247 -> 137. Exit codes of ranks are at most 128 + 64 = 192.
    code = code - 256 if code > 192 else code
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    run(sys.argv[1:])

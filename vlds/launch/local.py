"""Starts the ranks of one machine, and ends them all when one has failed.

    python -m vlds.launch.local RANKS PORT COMMAND...

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

from vlds.runtime.process_end import ASKING

MODULE = "vlds.launch.local"
POLL_S = 0.1
HOST = "127.0.0.1"
SAVED = tuple(128 + number for number in ASKING)
"""Exit codes of a rank that was asked to end and has saved. The others may still be saving."""


def main(ranks: int, port: str, command: Sequence[str]) -> int:
    """Run a command on so many ranks; the exit code of the first that fails, or 0."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)  # until a rank can answer: rank.run_rank
    processes = [
        subprocess.Popen(command, env=os.environ | place(rank, ranks, port))
        for rank in range(ranks)
    ]

    def end(number: int, frame: object = None) -> None:
        for process in processes:
            with suppress(ProcessLookupError):
                process.send_signal(number)

    # The supervisor asks ranks itself; this is for a signal to this process alone.
    for number in ASKING:
        signal.signal(number, end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
    while None in (codes := [process.poll() for process in processes]):
        failed = [code for code in codes if code and code not in SAVED]
        if failed:
            end(signal.SIGTERM)  # what does not end is the supervisor's to kill
            return exit_code(failed[0])
        time.sleep(POLL_S)
    return next((exit_code(code) for code in codes if code), 0)


def place(rank: int, ranks: int, port: str) -> dict[str, str]:
    """The variables that make a process a rank (`runtime/rank_environment.py`)."""
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": HOST, "MASTER_PORT": port,
    }  # fmt: skip


def exit_code(code: int) -> int:
    """128 + n for a death by signal n, which subprocess reports as -n."""
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))

"""Several runs of a sweep at a time on one machine: a process for each, with its share of the cores
or GPUs.

Runs that each take all cores would slow each other down many times over, because their threads
wait for each other by spinning.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from threading import Thread
from typing import IO

from vlds.cli.supervisor import BOUND
from vlds.cli.sweep_work import Work
from vlds.report.sweep import read_sweep, runs_of
from vlds.runtime.process import Interrupted, signals_collected
from vlds.runtime.terminal import tell

MODULE = "vlds.cli.at_once"
POLL_S = 0.1


def shares(
    num: int, ranks: int, num_gpus: int, environment: Mapping[str, str]
) -> list[dict[str, str]]:
    """The environment of each process: its GPUs, or its number of threads.

    Errors: ValueError if there are too few GPUs.
    """
    if num_gpus == 0:
        threads = max(1, len(os.sched_getaffinity(0)) // (num * ranks))
        return [{"OMP_NUM_THREADS": str(threads), **environment}] * num
    if num * ranks > num_gpus:
        raise ValueError(
            f"--at-once {num}: {num * ranks} GPUs are asked for, and this machine has {num_gpus}; "
            "give fewer runs at once, or fewer --ranks"
        )
    visible = environment.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(num_gpus)))
    names, each = visible.split(","), num_gpus // num
    return [
        {**environment, "CUDA_VISIBLE_DEVICES": ",".join(names[n * each : (n + 1) * each])}
        for n in range(num)
    ]


def work_at_once(
    words: Sequence[str], ranks: Sequence[str], environments: Sequence[Mapping[str, str]]
) -> bool:
    """Work on a sweep in so many processes; what one prints begins with its number. `words`: the
    sweep's file and keys. `ranks`: words that say how many each run has. Returns False if one was
    killed or has crashed; that a run failed is not a crash.

    Errors: Interrupted, once all have saved and ended, if a signal asked for it.
    """
    command = [sys.executable, "-c", BOUND, sys.executable, "-um", MODULE, *ranks, "--", *words]
    with signals_collected() as received:
        processes = [
            # In sessions of their own, so that Ctrl-C in the terminal reaches each once.
            subprocess.Popen(
                command, env=environment, start_new_session=True, text=True, errors="replace",
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
            for environment in environments
        ]  # fmt: skip
        readers = [
            Thread(target=show, args=(process.stdout, number))
            for number, process in enumerate(processes, 1)
        ]
        for reader in readers:
            reader.start()
        num_passed = 0
        while any(process.poll() is None for process in processes):
            for number in received[num_passed:]:
                for process in processes:
                    process.send_signal(number)
                num_passed += 1
            time.sleep(POLL_S)
        for reader in readers:
            reader.join()
    if received:
        raise Interrupted(received[0])
    return all(process.returncode == 0 for process in processes)


def show(lines: IO[str], number: int) -> None:
    """Print the lines of a process."""
    for line in lines:
        tell(f"{number}| {line}", end="", flush=True)


def main(arguments: Sequence[str]) -> int:
    """One of the processes; the exit code. The process that started it says what has failed."""
    at = arguments.index("--")
    ranks, words = arguments[:at], arguments[at + 1 :]
    sweep = read_sweep(words)
    try:
        Work(sweep, runs_of(sweep)).do(None, ranks)
    except Interrupted as error:
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

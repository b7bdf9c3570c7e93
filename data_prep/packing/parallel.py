"""Work on many items in several processes, the results in the items' order."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess
from typing import TypeVar

from vlds.runtime.process_end import KILLED, end_with_parent, how_it_ended

Item = TypeVar("Item")
Result = TypeVar("Result")
CHUNK = 32
"""Items that go to a process at once."""
FEWEST_PIECES = 512
"""Fewer are done before a process has started."""
CHUNKS_AHEAD = 4
"""Chunks of each process that may wait for the reader: they bound the memory."""


class LostWorker(ValueError):
    """A worker process ended in the middle of its work."""


def check_workers(workers: int) -> None:
    """Refuse less than one, before any work."""
    if workers < 1:
        raise ValueError(f"--workers {workers}: give a number of processes, 1 or more")


def ordered_map(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    *,
    chunk: int = CHUNK,
    pieces: int | None = None,
) -> Iterator[Result]:
    """`map(function, items)` with `workers` processes; the function must be picklable.

    Large items, such as whole shards, go one by one (`chunk`); `pieces` says how many pictures or
    the like they hold in all. The processes end with this one. Errors: LostWorker where one of
    them was killed.
    """
    if workers < 2 or (len(items) if pieces is None else pieces) < FEWEST_PIECES:
        yield from map(function, items)
        return
    chunks = (items[first : first + chunk] for first in range(0, len(items), chunk))
    others = set(active_children())
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=end_with_parent) as pool:
        processes: list[BaseProcess] = []
        try:
            waiting: deque[Future[list[Result]]] = deque()
            with _deaf_children():
                waiting += (
                    pool.submit(_each, function, part)
                    for part in islice(chunks, workers * CHUNKS_AHEAD)
                )
            started = set(active_children()) - others
            processes += sorted(started, key=lambda process: process.pid or 0)
            while waiting:
                done = waiting.popleft().result()
                for part in islice(chunks, 1):
                    waiting.append(pool.submit(_each, function, part))
                yield from done
        except BrokenProcessPool:
            pool.shutdown()
            raise LostWorker(_what_happened(processes)) from None
        except KeyboardInterrupt:
            for process in processes:  # one may hang in what it reads
                process.kill()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _what_happened(processes: Sequence[BaseProcess]) -> str:
    """Which worker was lost, how, and what to do; the pool has ended the others by SIGTERM."""
    codes = [process.exitcode for process in processes]
    number = next((n for n, code in enumerate(codes) if code not in (0, -signal.SIGTERM)), 0)
    how = how_it_ended(codes[number] or -signal.SIGTERM)
    cure = "give fewer --workers" if KILLED in how else "start again"
    return f"worker {number + 1} of {len(codes)} (process {processes[number].pid}) {how}; {cure}"


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes that start in here do not hear Ctrl-C, nor that the terminal is closed: ours does,
    and ends them in order. SIGTERM is how the pool ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _each(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [function(item) for item in items]

"""Work on many items in several processes, with results in the items' order."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess
from typing import TypeVar

from vlds.runtime.process_end import KILLED, end_with_parent, how_it_ended

Item = TypeVar("Item")
Result = TypeVar("Result")
CHUNK = 32
"""Items that go to a process at once."""
FEWEST_PIECES = 512
"""Fewer are done sooner than a process starts."""
CHUNKS_AHEAD = 4
"""Chunks per process that may wait for the reader: they bound the memory."""


class LostWorker(ValueError):
    """A worker process ended in the middle of its work."""


def ordered_map(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    *,
    chunk: int = CHUNK,
    pieces: int | None = None,
) -> Iterator[Result]:
    """`map(function, items)` with `workers` processes; the function must be picklable.

    Send large items, such as whole shards, one by one (`chunk`), and say how many pictures or
    samples they hold in all (`pieces`). The processes end with this one. Errors: LostWorker if one
    of them was killed.
    """
    if workers < 2 or (len(items) if pieces is None else pieces) < FEWEST_PIECES:
        yield from map(function, items)
        return
    chunks = (items[first : first + chunk] for first in range(0, len(items), chunk))
    others = set(active_children())
    processes: set[BaseProcess] = set()
    waiting: deque[Future[list[Result]]] = deque()
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=end_with_parent) as pool:
        try:
            for part in chunks:
                with _deaf_children():
                    waiting.append(pool.submit(_each, function, part))
                if len(processes) < workers:  # the pool starts them with the first chunks
                    processes |= {*active_children()} - others
                if len(waiting) == workers * CHUNKS_AHEAD:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        except BrokenProcessPool:
            pool.shutdown()
            raise LostWorker(_what_happened(processes)) from None
        except KeyboardInterrupt:
            for process in processes:  # one may hang while it reads from a broken disk
                process.kill()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _what_happened(processes: Iterable[BaseProcess]) -> str:
    """Which worker was lost, how, and the cure. The pool ended the others by SIGTERM."""
    workers = sorted(processes, key=lambda process: process.pid or 0)
    index = next((n for n, p in enumerate(workers) if p.exitcode not in (0, -signal.SIGTERM)), 0)
    how = how_it_ended(workers[index].exitcode or -signal.SIGTERM)
    cure = "give fewer --workers" if KILLED in how else "start again"
    return f"worker {index + 1} of {len(workers)} (process {workers[index].pid}) {how}; {cure}"


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Let processes that start inside ignore Ctrl-C and a closed terminal: this process handles
    both and ends them in order. They keep SIGTERM, by which the pool ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _each(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [function(item) for item in items]

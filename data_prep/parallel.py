"""Work on many items in several processes, the results in the items' order."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
CHUNK = 32
"""Items that go to a process at once."""
FEWEST = 512
"""Fewer of them are done before a process has started."""
CHUNKS_AHEAD = 4
"""Chunks of each process that may wait for the reader: they bound the memory."""


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
    fewest: int = FEWEST,
) -> Iterator[Result]:
    """`map(function, items)` with `workers` processes; the function must be picklable.

    Large items, such as whole shards, go one by one (`chunk`) and soon pay (`fewest`).
    """
    if workers < 2 or len(items) < fewest:
        yield from map(function, items)
        return
    chunks = (items[first : first + chunk] for first in range(0, len(items), chunk))
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        try:
            waiting: deque[Future[list[Result]]] = deque()
            with _deaf_children():
                waiting += (
                    pool.submit(_each, function, part)
                    for part in islice(chunks, workers * CHUNKS_AHEAD)
                )
            while waiting:
                done = waiting.popleft().result()
                for part in islice(chunks, 1):
                    waiting.append(pool.submit(_each, function, part))
                yield from done
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes that start in here do not hear Ctrl-C: ours does, and ends them in order."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _each(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [function(item) for item in items]

"""The same work for many items, in order: by processes of this machine, or by a cluster."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeVar

from vlds.runtime.cluster import Cluster, LostWorker
from vlds.runtime.process import ASKING, KILLED, end_with_parent, how_it_ended

Item = TypeVar("Item")
Result = TypeVar("Result")
CHUNK = 32
"""Items that go to a process at once."""
FEWEST_PIECES = 512
"""Fewer are done sooner than a process starts."""
CHUNKS_AHEAD = 4
"""Chunks per process that may wait for the reader: they bound the memory."""


def ordered_map(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    *,
    chunk: int = CHUNK,
    pieces: int | None = None,
    cluster: Cluster | None = None,
    files: Iterable[Path] = (),
) -> Iterator[Result]:
    """`map(function, items)` with `workers` processes of this machine, or with those of a cluster,
    which must see `files`; the function must be picklable.

    Send large items, such as whole shards, one by one (`chunk`), and say how many pictures or
    samples they hold in all (`pieces`). The processes of this machine end with this one. Errors:
    LostWorker if one of them was killed, or a cluster has gone; UnfitWorker.
    """
    chunks = (items[first : first + chunk] for first in range(0, len(items), chunk))
    if cluster is not None:
        yield from cluster.map(function, chunks, files)
        return
    if workers < 2 or (len(items) if pieces is None else pieces) < FEWEST_PIECES:
        yield from map(function, items)
        return
    # The pool tells nothing of its processes; those that are new are its own.
    others = set(active_children())
    processes: set[BaseProcess] = set()
    waiting: deque[Future[list[Result]]] = deque()
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=end_with_parent) as pool:
        try:
            for part in chunks:
                with _signals_kept_here():
                    waiting.append(pool.submit(_each, function, part))
                if len(processes) < workers:  # the pool starts them with the first chunks
                    processes |= {*active_children()} - others
                # Results come in order: wait for the oldest chunk, even if later ones are done.
                if len(waiting) == workers * CHUNKS_AHEAD:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        except BrokenProcessPool:
            pool.shutdown()
            started = sorted(processes, key=lambda process: process.pid or 0)
            # The pool ended the others by SIGTERM: the lost one has another exit code.
            codes = [process.exitcode for process in started]
            index = next((n for n, code in enumerate(codes) if code not in (0, -signal.SIGTERM)), 0)
            how = how_it_ended(codes[index] or -signal.SIGTERM)
            cure = "give fewer --workers" if KILLED in how else "start again"
            raise LostWorker(
                f"worker {index + 1} of {len(started)} (process {started[index].pid}) {how}; {cure}"
            ) from None
        except KeyboardInterrupt:
            for process in processes:  # one may hang while it reads from a broken disk
                process.kill()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _signals_kept_here() -> Iterator[None]:
    """Let processes that start inside ignore Ctrl-C and a closed terminal: this process handles
    both and ends them in order. They keep SIGTERM, by which the pool ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*ASKING} - {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _each(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    # Not a lambda: processes find a function by its name in the module.
    return [function(item) for item in items]

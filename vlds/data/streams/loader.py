"""Torch's loader over lists of positions, and its workers that are killed or hang.

Torch says that a worker was killed wherever the rank is just then. It does not notice one that
hangs in a read or a decoder: its timeout does not cover the wait for the memory of a batch, which a
worker hands over itself. So a thread watches a rank that waits, and kills the worker that is
behind, which brings the rank back.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Iterable, Iterator, MutableSequence, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

import torch.utils.data

from vlds.data.streams.assemble import Parcel
from vlds.runtime.process_end import ASKING, KILLED, end_with_parent, how_it_ended

LOST = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.*)")
"""What torch says where one was killed."""
LOOKS = 20
"""How often the thread looks within the timeout."""


class WorkerLost(RuntimeError):
    """A loader worker was killed, or has given nothing for too long."""


def lost_worker(error: BaseException) -> str | None:
    """What to say of an error that means that a loader worker hangs or was killed; None of any
    other."""
    if isinstance(error, WorkerLost):
        return str(error)
    if not (found := LOST.search(str(error))):
        return None
    how = found[2].strip().rstrip(".")
    return _ended(found[1], f"was {KILLED}" if "Killed" in how else how)


def parcels(
    assembler: torch.utils.data.Dataset[Parcel],
    positions: Iterable[list[int]],
    num_workers: int,
    timeout: float,
) -> Iterator[Parcel]:
    """What a loader makes of positions, in order. `timeout`: seconds that workers may take until
    the next one is there; 0: any number.

    Errors: WorkerLost that names the worker.
    """
    if not num_workers:
        yield from _make_loader(assembler, positions, num_workers)
        return
    done = multiprocessing.RawArray("q", num_workers)
    loader = _make_loader(Noted(assembler, done), positions, num_workers)
    iterator = iter(loader)
    # Private names of torch's; tests show that they are so.
    workers = iterator._workers  # type: ignore[attr-defined]
    watch = Watch(done, workers, loader.prefetch_factor or 1, timeout)
    at_exit = Finalize(None, _kill, args=(workers,), exitpriority=0)
    try:
        for watch.batch in count():
            watch.waiting_since = time.monotonic()
            try:
                parcel = next(iterator)
            except StopIteration:
                return
            except Exception:
                killed = _killed(workers)  # also one that hung: torch's own error ends in there
                if (said := watch.said or killed) is None:
                    raise
                raise WorkerLost(said) from None
            watch.waiting_since = None
            yield parcel
    finally:
        watch.ended.set()
        # Now, and not when a traceback that holds it goes: the collector of cycles takes the
        # workers' queues away first, and then torch waits five seconds for each worker.
        iterator._shutdown_workers()  # type: ignore[attr-defined]
        at_exit.cancel()


def _make_loader(
    assembler: torch.utils.data.Dataset[Parcel], positions: Iterable[list[int]], num_workers: int
) -> torch.utils.data.DataLoader[Parcel]:
    """Torch's loader over lists of positions, in order."""
    if num_workers:
        # A forked thread pool of the tokenizers dead-locks; torch itself uses one thread a worker.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return torch.utils.data.DataLoader(
        assembler,
        batch_sampler=positions,
        num_workers=num_workers,
        collate_fn=_same,
        # Its own: the loader draws a seed from it, and the run's random numbers must not notice.
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_belong_to_the_rank if num_workers else None,
    )


def _same(parcel: Any) -> Any:
    return parcel


def _belong_to_the_rank(_worker: int) -> None:
    """A rank that is told to stop needs its workers until it has saved; it ends them itself, and
    they end with it, also in the middle of a read that hangs."""
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()


def _kill(workers: Sequence[BaseProcess]) -> None:
    """End those of a stream that nobody has ended when Python ends, which else would wait for them
    for ever: its own SIGTERM they do not hear."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler takes a killed one for an error
    for process in workers:
        process.kill()


def _killed(workers: Sequence[BaseProcess]) -> str | None:
    """What to say where a worker has ended: its connections break first, in any part of torch."""
    for _ in range(3):
        with suppress(RuntimeError):  # torch's own of the same, which a signal brings in between
            ended = wait([process.sentinel for process in workers], timeout=1)
            for process in workers:
                if process.sentinel in ended:
                    process.join()
                    return _ended(process.pid, how_it_ended(process.exitcode or 0))
            return None
    return None


def _ended(process: int | str | None, how: str) -> str:
    return (
        f"its loader worker (process {process}) {how}; a smaller data.num_workers takes less memory"
    )


@dataclass(frozen=True)
class Noted(torch.utils.data.Dataset[Parcel]):
    """An assembler whose processes count the batches that they have made."""

    assembler: torch.utils.data.Dataset[Parcel]
    done: MutableSequence[int]
    """In memory that all processes share."""

    def __getitems__(self, positions: list[int]) -> Parcel:
        """The batch of these positions."""
        worker = torch.utils.data.get_worker_info()
        assert worker is not None
        parcel: Parcel = self.assembler.__getitems__(positions)  # type: ignore[attr-defined]
        self.done[worker.id] += 1
        return parcel


class Watch:
    """A thread that ends a rank's wait."""

    def __init__(
        self, done: Sequence[int], workers: Sequence[BaseProcess], ahead: int, timeout: float
    ) -> None:
        """`ahead`: batches that each worker has to make before the rank has taken the first."""
        self.batch = 0
        """Number of the batch that the rank waits for."""
        self.waiting_since: float | None = None
        self.said: str | None = None
        """What was done, once it was."""
        self.ended = threading.Event()
        self._done, self._workers, self._ahead = done, workers, ahead
        self._timeout = timeout or threading.TIMEOUT_MAX
        threading.Thread(target=self._look, name="watch_workers", daemon=True).start()

    def _look(self) -> None:
        while not self.ended.wait(self._timeout / LOOKS):
            since = self.waiting_since
            if since is not None and time.monotonic() - since > self._timeout:
                self._end_wait(time.monotonic() - since)
                return

    def _end_wait(self, seconds: float) -> None:
        """Kill the worker that has to make the first batch that is not made yet. Torch's loader
        gives the batches to its workers in turns."""
        num_workers = len(self._workers)
        asked = range(self.batch, self.batch + num_workers * self._ahead)
        turns = ((batch % num_workers, batch // num_workers) for batch in asked)
        number = next((n for n, turn in turns if self._done[n] <= turn), self.batch % num_workers)
        process = self._workers[number]
        self.said = (
            f"its loader worker {number + 1} of {num_workers} (process {process.pid}) has given "
            f"nothing for {seconds:.0f} s: it hangs while it reads or decodes; look at where its "
            "data lie, or raise training.collective_timeout"
        )
        process.kill()

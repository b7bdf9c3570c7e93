"""Loader workers that are killed, or hang in a read or a decoder.

Torch says that a worker was killed wherever the rank is just then. It does not notice one that
hangs: its timeout does not cover the wait for the memory of a batch, which a worker hands over
itself. So a thread looks after a rank that waits, and kills the worker that has been busy for
longest, which brings the rank back.
"""

from __future__ import annotations

import multiprocessing
import re
import threading
import time
from collections.abc import Iterable, Iterator, MutableSequence, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess

import torch.utils.data

from vlds.data.assemble import Parcel
from vlds.data.loader import make_loader
from vlds.runtime.process_end import KILLED

LOST = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.*)")
"""What torch says where one was killed."""
LOOKS = 20
"""How often the thread looks within the timeout."""


class WorkerHangs(RuntimeError):
    """A loader worker has given nothing for too long."""


def lost_worker(error: BaseException) -> str | None:
    """What to say of an error that means that a loader worker hangs or was killed; None of any
    other."""
    if isinstance(error, WorkerHangs):
        return str(error)
    if not (found := LOST.search(str(error))):
        return None
    process, how = found[1], found[2].strip().rstrip(".")
    if "Killed" in how:
        how = f"was {KILLED}; a smaller data.num_workers takes less"
    return f"its loader worker (process {process}) {how}"


def parcels(
    assembler: torch.utils.data.Dataset[Parcel],
    positions: Iterable[list[int]],
    num_workers: int,
    timeout: float,
) -> Iterator[Parcel]:
    """What a loader makes of positions, in order. `timeout`: seconds that workers may take until
    the next one is there; 0: any number.

    Errors: WorkerHangs that names the worker.
    """
    if not num_workers or not timeout:
        yield from make_loader(assembler, positions, num_workers)
        return
    busy_since = multiprocessing.RawArray("d", num_workers)
    iterator = iter(make_loader(Noted(assembler, busy_since), positions, num_workers))
    watch = Watch(busy_since, iterator._workers, timeout)  # type: ignore[attr-defined]
    try:
        while True:
            watch.waiting_since = time.monotonic()
            try:
                parcel = next(iterator)
            except StopIteration:
                return
            except Exception:
                if watch.said is None:
                    raise
                raise WorkerHangs(watch.said) from None
            watch.waiting_since = None
            yield parcel
    finally:
        watch.ended.set()


@dataclass(frozen=True)
class Noted(torch.utils.data.Dataset[Parcel]):
    """An assembler whose processes note since when they work on a batch."""

    assembler: torch.utils.data.Dataset[Parcel]
    busy_since: MutableSequence[float]
    """In memory that all processes share; 0 for one that waits for work."""

    def __getitems__(self, positions: list[int]) -> Parcel:
        """The batch of these positions."""
        worker = torch.utils.data.get_worker_info()
        assert worker is not None
        self.busy_since[worker.id] = time.monotonic()
        parcel: Parcel = self.assembler.__getitems__(positions)  # type: ignore[attr-defined]
        self.busy_since[worker.id] = 0.0
        return parcel


class Watch:
    """A thread that ends a rank's wait."""

    def __init__(
        self, busy_since: Sequence[float], workers: Sequence[BaseProcess], timeout: float
    ) -> None:
        self.waiting_since: float | None = None
        self.said: str | None = None
        """What was done, once it was."""
        self.ended = threading.Event()
        self._busy_since, self._workers, self._timeout = busy_since, workers, timeout
        threading.Thread(target=self._look, name="watch_workers", daemon=True).start()

    def _look(self) -> None:
        while not self.ended.wait(self._timeout / LOOKS):
            since = self.waiting_since
            if since is not None and time.monotonic() - since > self._timeout:
                self._end_wait(time.monotonic() - since)
                return

    def _end_wait(self, seconds: float) -> None:
        """Kill the worker that has been busy for longest: the others have given what they had."""
        busy = [(since, number) for number, since in enumerate(self._busy_since) if since]
        _, number = min(busy, default=(0.0, 0))
        process = self._workers[number]
        self.said = (
            f"its loader worker {number + 1} of {len(self._workers)} (process {process.pid}) has "
            f"given nothing for {seconds:.0f} s: it hangs while it reads or decodes; look at where "
            "its data lie, or raise training.collective_timeout"
        )
        process.kill()

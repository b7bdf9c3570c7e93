"""Torch's loader over lists of positions, and its workers that are killed or hang.

Torch reports a killed worker at any point of the rank's work. It does not notice one that hangs in
a read or a decoder: its timeout does not cover the wait for the memory of a batch, which the worker
itself hands over. So a thread watches a rank that waits, and kills the worker that is behind, which
brings the rank back.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Generator, Iterable, MutableSequence, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from shutil import disk_usage

import torch.utils.data

from vlds.data.errors import BadSample
from vlds.runtime.devices import uses_gpu
from vlds.runtime.folders import scratch_folder
from vlds.runtime.process import ASKING, KILLED, end_with_parent, how_it_ended
from vlds.runtime.terminal import Away
from vlds.schema import Batch

LOST = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.*)")
"""What torch says of a killed worker."""
SHARED_MEMORY = "/dev/shm"
LOOKS = 20
"""How often the thread looks within the timeout."""


@dataclass
class Parcel:
    """What a worker hands to the training process."""

    positions: list[int]
    batch: Batch | None = None
    """None if no batch could be made: then `bad` or `error` says why."""
    bad: list[BadSample] = field(default_factory=list)
    error: ValueError | Away | None = None
    """As a value, because torch would wrap a raised one in the worker's traceback."""

    def pin_memory(self) -> Parcel:
        """Called by torch's DataLoader when it pins."""
        return replace(self, batch=self.batch and self.batch.pin_memory())

    def unpack(self) -> Batch:
        """The batch; raises the error that came instead."""
        if self.error is not None:
            raise self.error
        if self.batch is None:
            last = self.bad[-1]
            raise ValueError(
                f"no substitute for sample {last.key} of data set {last.dataset} could be read: "
                f"{last.reason}; prepare the data set again"
            )
        return self.batch


class WorkerLost(RuntimeError):
    """A loader worker was killed, or has made no batch for too long."""


def lost_worker(error: BaseException) -> str | None:
    """The message about a loader worker that hangs or was killed; None for other errors."""
    if isinstance(error, WorkerLost):
        return str(error)
    if not (match := LOST.search(str(error))):
        return None
    # Torch writes "is killed by signal: Killed. " and, for other deaths, "exited unexpectedly".
    how = match[2].strip().rstrip(".")
    return _ended(match[1], f"was {KILLED}" if "Killed" in how else how)


def parcels(
    assembler: torch.utils.data.Dataset[Parcel],
    positions: Iterable[list[int]],
    num_workers: int,
    timeout: float,
) -> Generator[Parcel]:
    """What the assembler makes of lists of positions, in order. `timeout`: seconds that workers may
    take for the next one; 0: any number.

    Errors: WorkerLost that names the worker.
    """
    # Batches that each worker has made, in memory that the watch shares with them.
    done: MutableSequence[int] = multiprocessing.RawArray("q", num_workers) if num_workers else []
    if num_workers:
        # A forked thread pool of the tokenizers dead-locks; torch itself uses one thread a worker.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    loader = torch.utils.data.DataLoader(
        assembler,
        batch_sampler=positions,
        num_workers=num_workers,
        collate_fn=partial(_counted, done),
        # The loader draws a seed from its generator; that must not change the run's random numbers.
        generator=torch.Generator(),
        pin_memory=uses_gpu(),
        worker_init_fn=_belong_to_the_rank if num_workers else None,
    )
    if not num_workers:
        yield from loader
        return
    with scratch_folder() as folder:
        # The workers keep their sockets in this folder. Otherwise each worker makes its own, which
        # stays behind if the worker is killed. `_config` is private: Python's
        # multiprocessing.util.get_temp_dir reads it.
        config = multiprocessing.process.current_process()._config  # type: ignore[attr-defined]
        before = dict(config)
        config["tempdir"] = str(folder)
        try:
            iterator = iter(loader)
        finally:
            config.clear()
            config.update(before)
        # A private name of torch's; tests fail if it changes.
        workers = iterator._workers  # type: ignore[attr-defined]
        watch = Watch(done, workers, loader.prefetch_factor or 1, timeout)
        at_exit = Finalize(None, _kill, args=(workers,), exitpriority=0)
        try:
            watch.waiting_since = time.monotonic()
            for parcel in iterator:
                watch.waiting_since = None
                yield parcel
                watch.batch += 1
                watch.waiting_since = time.monotonic()
        except Exception:
            # Of any type: a killed worker shows as torch's RuntimeError, or as what its pipe or
            # socket raises. Also after the watch, which suppresses torch's own error.
            killed = _killed(workers)
            if message := watch.message or killed:
                raise WorkerLost(message) from None
            raise
        finally:
            watch.ended.set()
            # Now, not when a traceback that holds the iterator is collected: the garbage collector
            # takes the workers' queues away first, and then torch waits five seconds for each
            # worker. Torch's handler of SIGCHLD raises in here if another worker has been killed:
            # the first one's error is already on its way.
            with suppress(RuntimeError):
                iterator._shutdown_workers()  # type: ignore[attr-defined]
            at_exit.cancel()
            for worker in workers:
                worker.kill()  # one that was slower than torch waits; it ignores torch's SIGTERM


# Functions of the module, not of `parcels`: forkserver and spawn pickle what workers run.
def _counted(done: MutableSequence[int], parcel: Parcel) -> Parcel:
    if (worker := torch.utils.data.get_worker_info()) is not None:
        done[worker.id] += 1
    return parcel


def _belong_to_the_rank(_worker: int) -> None:
    """A rank that is asked to stop needs its workers until it has saved, so they ignore the signal.
    The rank ends them; they also end when it dies, even in a read that hangs."""
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()


def _kill(workers: Sequence[BaseProcess]) -> None:
    """End the workers of an open stream when Python exits: they ignore its SIGTERM, and it would
    wait forever."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise for a killed worker
    for process in workers:
        process.kill()


def _killed(workers: Sequence[BaseProcess]) -> str | None:
    """The message about a worker that has ended. Its connections break before that, with errors in
    any part of torch."""
    # Torch's handler may raise at any line in here, each time that another worker ends.
    for _ in range(3):
        with suppress(RuntimeError):  # torch's error about the same worker, raised by its handler
            ended = wait([process.sentinel for process in workers], timeout=1)
            for process in workers:
                if process.sentinel in ended:
                    process.join()
                    return _ended(process.pid, how_it_ended(process.exitcode or 0))
            return None
    return None


def _ended(process: int | str | None, how: str) -> str:
    worker = f"its loader worker (process {process})"
    if "Bus error" in how or "SIGBUS" in how:
        # A worker writes batches into memory that it shares: Docker gives 64 MB.
        return (
            f"{worker} found no room in {SHARED_MEMORY}, of which "
            f"{disk_usage(SHARED_MEMORY).free >> 20:,} MiB are free; let it have more (docker run "
            "--shm-size 8g), or set data.num_workers to 0"
        )
    return f"{worker} {how}; a smaller data.num_workers takes less memory"


class Watch:
    """A thread that ends a rank's wait: it kills the worker of the first batch that is not made
    yet."""

    def __init__(
        self, done: Sequence[int], workers: Sequence[BaseProcess], ahead: int, timeout: float
    ) -> None:
        """`ahead`: batches that each worker makes before the rank takes the first."""
        self.batch = 0
        """Index of the batch that the rank waits for."""
        self.waiting_since: float | None = None
        self.message: str | None = None
        """About the worker that was killed."""
        self.ended = threading.Event()
        self._done, self._workers, self._ahead = done, workers, ahead
        self._timeout = timeout or threading.TIMEOUT_MAX
        # A daemon: a rank that exits without closing its stream must not wait for this thread.
        threading.Thread(target=self._look, name="watch_workers", daemon=True).start()

    def _look(self) -> None:
        while not self.ended.wait(self._timeout / LOOKS):
            # Read once: the rank sets it to None as soon as a batch comes.
            since = self.waiting_since
            if since is None or (seconds := time.monotonic() - since) <= self._timeout:
                continue
            # Torch's loader gives the batches to its workers in turns: batch b is the turn
            # b // n of worker b % n. The first that has made no more batches than that is behind.
            num_workers = len(self._workers)
            requested = range(self.batch, self.batch + num_workers * self._ahead)
            turns = ((batch % num_workers, batch // num_workers) for batch in requested)
            behind = (worker for worker, turn in turns if self._done[worker] <= turn)
            index = next(behind, self.batch % num_workers)
            process = self._workers[index]
            self.message = (
                f"its loader worker {index + 1} of {num_workers} (process {process.pid}) has given "
                f"nothing for {seconds:.0f} s: it hangs while it reads or decodes; check the disk "
                "or server of its data, or raise training.collective_timeout"
            )
            process.kill()
            return

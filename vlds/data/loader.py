"""Torch's loader over lists of positions, and what must hold of a batch's size."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from typing import Any

import torch.utils.data

from vlds.data.assemble import Parcel
from vlds.schema import Batch


class Positions:
    """This rank's lists of positions, for ever."""

    def __init__(self, start: int, size: int, slot: tuple[int, int]) -> None:
        self.start, self.size = start, size
        self.world_size, self.global_rank = slot

    def __iter__(self) -> Iterator[list[int]]:
        at = self.start
        while True:
            first = at + self.global_rank * self.size
            yield list(range(first, first + self.size))
            at += self.world_size * self.size


def check_batch(global_batch_size: int, micro_batch_size: int, world_size: int) -> None:
    """The ranks' micro-batches must fill the global batch.

    Errors: ValueError that names the numbers and possible ones.
    """
    numbers = (global_batch_size, micro_batch_size, world_size)
    if min(numbers) < 1:
        raise ValueError(
            f"global_batch_size {global_batch_size}, micro_batch_size {micro_batch_size}, "
            f"world_size {world_size}: each must be at least 1"
        )
    together = world_size * micro_batch_size
    if global_batch_size % together:
        below = global_batch_size // together * together
        sizes = [str(n) for n in (below, below + together) if n]
        raise ValueError(
            f"global_batch_size {global_batch_size} is no multiple of world_size {world_size} x "
            f"micro_batch_size {micro_batch_size} = {together}; set global_batch_size to "
            f"{' or '.join(sizes)}, or choose another micro_batch_size or number of ranks"
        )


def batch_of(parcel: Parcel) -> Batch:
    """The batch, or the error that came instead."""
    if parcel.error is not None:
        raise parcel.error
    if parcel.batch is None:
        last = parcel.bad[-1]
        raise ValueError(
            f"no substitute for sample {last.key} of data set {last.dataset} could be read: "
            f"{last.reason}; prepare the data set again"
        )
    return parcel.batch


def make_loader(
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
        worker_init_fn=_leave_signals_to_the_rank if num_workers else None,
    )


def _same(parcel: Any) -> Any:
    return parcel


def _leave_signals_to_the_rank(_worker: int) -> None:
    """A rank that is told to stop needs its workers until it has saved; it ends them itself."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)

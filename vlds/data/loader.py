"""Torch's loader over lists of positions."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch.utils.data

from vlds.data.assemble import Parcel
from vlds.data.batch_cut import BatchCut
from vlds.data.mixture import MixedOrder
from vlds.runtime.process_end import ASKING, KILLED, end_with_parent
from vlds.schema import Batch

TIMED_OUT = "DataLoader timed out"
LOST = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.*)")
"""What torch says where a worker gives nothing, and where one was killed."""


class WorkerHangs(RuntimeError):
    """A loader worker gives nothing any more."""


class Piece(NamedTuple):
    """A rank's micro-batch."""

    start: int
    """Position at which its global batch begins."""
    slots: range
    """Its slots in the global batch."""
    ends_step: bool
    """True for the rank's last micro-batch of the global batch."""


@dataclass(frozen=True)
class Positions:
    """This rank's micro-batches of an order, for ever."""

    order: MixedOrder
    cut: BatchCut
    global_rank: int
    start: int
    """Position at which the first global batch begins."""

    def __iter__(self) -> Iterator[list[int]]:
        """Positions of each micro-batch; torch's loader makes no empty batches, so that a
        micro-batch without rows stands for the first example of its global batch."""
        for piece in self.pieces():
            yield [piece.start + slot for slot in piece.slots] or [piece.start]

    def pieces(self) -> Iterator[Piece]:
        """The micro-batches, as parts of their global batches."""
        for start in count(self.start, self.order.stride):
            size = int(self.order.sizes_at(np.array([start]))[0])
            *others, last = self.cut.pieces(size, self.global_rank)
            for slots in others:
                yield Piece(start, slots, False)
            yield Piece(start, last, True)


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
    assembler: torch.utils.data.Dataset[Parcel],
    positions: Iterable[list[int]],
    num_workers: int,
    worker_timeout: float,
) -> torch.utils.data.DataLoader[Parcel]:
    """Torch's loader over lists of positions, in order. `worker_timeout`: seconds that a worker may
    take for a batch; 0: any number."""
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
        timeout=worker_timeout if num_workers else 0,
    )


def parcels(loader: torch.utils.data.DataLoader[Parcel]) -> Iterator[Parcel]:
    """What a loader gives.

    Errors: WorkerHangs that names the worker.
    """
    iterator = iter(loader)
    for number in count():
        try:
            parcel = next(iterator)
        except StopIteration:
            return
        except RuntimeError as error:
            if TIMED_OUT not in str(error):
                raise
            # Torch's loader gives the batches to its workers in turns; their list is private.
            turn = number % loader.num_workers
            process = iterator._workers[turn].pid  # type: ignore[attr-defined]
            raise WorkerHangs(
                f"its loader worker {turn + 1} of {loader.num_workers} (process {process}) has "
                f"given nothing for {loader.timeout:.0f} s: it hangs while it reads or decodes; "
                "look at where its data lie, or raise training.collective_timeout"
            ) from None
        yield parcel


def lost_worker(error: BaseException) -> str | None:
    """What to say of an error that means that a loader worker hangs or was killed; None of any
    other. Torch raises the second kind wherever the rank is just then."""
    if isinstance(error, WorkerHangs):
        return str(error)
    if not (found := LOST.search(str(error))):
        return None
    process, how = found[1], found[2].strip().rstrip(".")
    if "Killed" in how:
        how = f"was {KILLED}; a smaller data.num_workers takes less"
    return f"its loader worker (process {process}) {how}"


def _same(parcel: Any) -> Any:
    return parcel


def _belong_to_the_rank(_worker: int) -> None:
    """A rank that is told to stop needs its workers until it has saved; it ends them itself, and
    they end with it, also in the middle of a read that hangs."""
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()

"""Torch's loader over lists of positions."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch.utils.data

from vlds.data.order.batch_cut import BatchCut
from vlds.data.order.mixture import MixedOrder
from vlds.data.streams.assemble import Parcel
from vlds.runtime.process_end import ASKING, end_with_parent
from vlds.schema import Batch


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

"""What every endless stream of a mixture shares: where it is, what it hands out, what it saves."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.utils.data

from vlds.data.errors import ErrorBook, ErrorPolicy
from vlds.data.order.batch_cut import BatchCut
from vlds.data.order.mixture import MixedOrder, Phase
from vlds.data.order.permutation import differences
from vlds.data.streams.assemble import Parcel
from vlds.data.streams.loader import Piece, Positions, batch_of
from vlds.data.streams.lost_workers import parcels
from vlds.data.streams.stream_state import check_state, given_before
from vlds.schema import Batch

CACHE_BYTES = 128 << 20
"""Decoded pictures that each process keeps at most: small data sets are decoded once."""
ALONE = BatchCut()
"""One rank that computes each global batch at once."""
FIXED = tuple(f"order.{key}:" for key in ("seed", "window", "group", "lanes", "batch_size"))
"""What a new phase cannot change: a source would repeat and leave out within its epoch."""


class MixedStream(ABC):
    """Micro-batches of one rank, for ever.

    An optimizer step consists of one global batch of the order, whatever the number of ranks,
    workers and micro-batches: `BatchCut` says which of its slots a rank computes. The whole state
    is `consumed`, the position of the next global batch, counted as batches are handed out: what
    workers have prepared ahead is never lost.
    """

    notice: str | None = None
    """What a user must know of this way to read, in a line."""

    def __init__(
        self,
        order: MixedOrder,
        *,
        global_batch_size: int,
        cut: BatchCut,
        global_rank: int,
        num_workers: int,
        worker_timeout: float,
        policy: ErrorPolicy,
        ledger: Path | None,
    ) -> None:
        """`worker_timeout`: as in `parcels`. `ledger` lists bad samples."""
        sizes = [global_batch_size] if order.batch_sizes is None else order.batch_sizes.tolist()
        cut.check(min(sizes), "global_batch_size")
        self.order = order
        self.global_batch_size = global_batch_size
        self.cut = cut
        self.global_rank = global_rank
        self._num_workers = num_workers
        self._worker_timeout = worker_timeout
        self._book = ErrorBook(policy, ledger)
        self._consumed = 0
        self._iteration = 0

    @abstractmethod
    def _assemble(self) -> torch.utils.data.Dataset[Parcel]:
        """What makes batches of positions from here on, in the workers."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """What the order depends on; a state is of use only where this is the same."""

    @property
    def consumed(self) -> int:
        """Position of the next global batch."""
        return self._consumed

    @property
    def num_bad(self) -> int:
        """Examples of this rank that a substitute stood for, since the process started."""
        return self._book.num_bad

    def epochs(self) -> dict[str, float]:
        """How often each source has been gone through so far; those of unknown size are left
        out."""
        return self._epochs_before(self._consumed)

    def epochs_after(self, steps: int) -> dict[str, float]:
        """The same after so many steps of the current mixture."""
        return self._epochs_before(self.order.phase.at + steps * self.order.stride)

    def _epochs_before(self, position: int) -> dict[str, float]:
        given = self.order.given(position)
        return {o.name: sum(given[o.name]) / o.size for o in self.order.orders if o.size}

    def __iter__(self) -> Iterator[Batch]:
        return chain.from_iterable(self.steps())

    def steps(self) -> Iterator[list[Batch]]:
        """This rank's micro-batches of each global batch. Every rank has equally many; one without
        a row of its own computes another's, which is not `valid`."""
        self._iteration += 1
        return self._steps(self._iteration)

    def _steps(self, iteration: int) -> Iterator[list[Batch]]:
        positions = Positions(self.order, self.cut, self.global_rank, self._consumed)
        batches: list[Batch] = []
        for piece, parcel in zip(
            positions.pieces(),
            parcels(self._assemble(), positions, self._num_workers, self._worker_timeout),
            strict=True,
        ):
            if iteration != self._iteration:
                raise RuntimeError("the stream was moved or restarted; this iterator is void")
            batches.append(self._booked(parcel, piece))
            if piece.ends_step:
                self._consumed = piece.start + self.order.stride
                yield batches
                batches = []

    def _booked(self, parcel: Parcel, piece: Piece) -> Batch:
        """The batch of a parcel, with its bad samples counted."""
        if piece.slots:
            self._book.record(parcel.positions, parcel.bad)
            return batch_of(parcel)
        batch = batch_of(parcel)
        return replace(batch, valid=torch.zeros_like(batch.valid))

    def state(self) -> dict[str, Any]:
        """JSON-able state: one integer, what it refers to, and where the mixture was changed."""
        return {
            "consumed": self._consumed,
            "global_batch_size": self.global_batch_size,
            "phase": asdict(self.order.phase),
            "fingerprint": self.fingerprint(),
        }

    def load_state(self, state: dict[str, Any], *, new_phase: bool = False) -> None:
        """Go on where `state` was taken, on any number of ranks and workers.

        With `new_phase` the sources, their data, weights and units may have changed: each source
        goes on where it was, in the new mixture.

        Errors: ValueError with the differences where the order is another one, and where no stream
        has saved this.
        """
        check_state(state)
        lines = differences(state["fingerprint"], self.fingerprint())
        fixed = [line for line in lines if line.startswith(FIXED)] if new_phase else lines
        if fixed:
            cure = (
                "These cannot change within a run: resume with the saved ones, or start a new run."
                if new_phase
                else "Resume with the saved recipe and data, or start a new run; with --new_phase "
                "each task goes on from where it was, in the new mixture."
            )
            raise ValueError(
                "this run's data differ from those of the state to resume (saved -> now):\n  "
                + "\n  ".join(fixed)
                + f"\n{cure}"
            )
        of_one_task = self.order.batch_sizes is not None  # then the fingerprint holds their sizes
        if not of_one_task and state["global_batch_size"] != self.global_batch_size:
            warnings.warn(
                f"global_batch_size was {state['global_batch_size']}, is {self.global_batch_size}: "
                "the order of examples goes on, its batches are cut differently",
                stacklevel=2,
            )
        phase = Phase(**state["phase"])
        if new_phase and lines:
            phase = Phase(state["consumed"], given_before(state))
        self._consumed, self.order.phase = state["consumed"], phase
        self._iteration += 1

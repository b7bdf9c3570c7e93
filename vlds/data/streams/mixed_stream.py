"""What all endless streams of a mixture share: position, micro-batches, state."""

from __future__ import annotations

import re
import reprlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from itertools import chain, count
from typing import Any

import numpy as np
import torch

from vlds.data.config import DataConfig
from vlds.data.errors import ErrorBook
from vlds.data.order.mixed_order import Phase, SourceOrder
from vlds.data.order.mixture import mixed_order, mixture_of
from vlds.data.order.permutation import differences
from vlds.data.streams.assemble import Assembler, SampleReader, StreamSetup
from vlds.data.streams.loader import parcels
from vlds.data.streams.source import TaskSource
from vlds.schema import Batch

FIXED = tuple(f"order.{key}:" for key in ("seed", "window", "group", "lanes", "batch_size"))
"""What a new phase cannot change: mid-epoch, that would repeat or skip examples."""
FURTHEST = 1 << 53
"""Beyond any run; positions are 64-bit integers."""
STATE_TYPES = {"consumed": int, "global_batch_size": int, "phase": dict, "fingerprint": dict}
SHARE = re.compile(r"\d+(/\d+)?")
"""Stricter than Fraction, which would make a huge integer of 1e999999999."""


class MixedStream(ABC):
    """Micro-batches of one rank, without end.

    An optimizer step consists of one global batch of the order, whatever the number of ranks,
    workers and micro-batches: `BatchCut` says which of its slots a rank computes. Its state
    is `consumed`, the position of the next global batch, and the phase that it lies in. It counts
    batches as they are handed out, so what workers have prepared ahead is not lost.
    """

    notice: str | None = None
    """What a user must know about this reader, in a line."""

    def __init__(
        self,
        sources: Sequence[TaskSource[object]],
        orders: Sequence[SourceOrder],
        config: DataConfig,
        setup: StreamSetup,
    ) -> None:
        """`orders`: of each source's examples."""
        batch_sizes = config.batch_sizes([source.batch_size for source in sources])
        self.order = mixed_order(
            orders,
            [source.weight for source in sources],
            seed=setup.seed,
            temperature=config.temperature,
            global_batch_size=config.global_batch_size,
            batch_sizes=batch_sizes,
            lanes=config.lanes,
        )
        setup.cut.check(min(batch_sizes or [config.global_batch_size]), "global_batch_size")
        self.config = config
        self.setup = setup
        self._book = ErrorBook(config.errors, setup.ledger)
        self.consumed = 0
        """Position of the next global batch."""
        self._iteration = 0

    @abstractmethod
    def _reader(self) -> SampleReader[TaskSource[object]]:
        """The reader of the samples from `consumed` on; workers use it."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """What the order depends on; a state is of use only where this is the same."""

    @property
    def num_bad(self) -> int:
        """Examples of this rank that were replaced, since the process started."""
        return self._book.num_bad

    def epochs(self, after_steps: int | None = None) -> dict[str, float]:
        """Epochs of each source so far, or after so many steps of the current mixture; without
        sources of unknown size."""
        position = self.consumed
        if after_steps is not None:
            position = self.order.phase.at + after_steps * self.order.stride
        given = self.order.given(position)
        return {o.name: sum(given[o.name]) / o.size for o in self.order.orders if o.size}

    def __iter__(self) -> Iterator[Batch]:
        return chain.from_iterable(self.steps())

    def steps(self) -> Generator[list[Batch], None, None]:
        """This rank's micro-batches of each global batch, equally many on every rank. One without
        a row computes another rank's, which is not `valid`."""
        self._iteration += 1
        return self._steps(self._iteration)

    def _steps(self, iteration: int) -> Generator[list[Batch], None, None]:
        first, stride = self.consumed, self.order.stride
        # Torch's loader makes no empty batches, so a micro-batch without rows reads the first
        # example of its global batch.
        positions = (
            list(piece) or [start]
            for start in count(first, stride)
            for piece in self._pieces(start)
        )
        assembler = Assembler(self._reader(), self.order)
        num_workers, timeout = self.config.num_workers, self.setup.worker_timeout
        # Closed at once: an error's traceback would keep the workers.
        with closing(parcels(assembler, positions, num_workers, timeout)) as loaded:
            for start in count(first, stride):
                batches = []
                for piece in self._pieces(start):
                    parcel = next(loaded)
                    if iteration != self._iteration:
                        raise RuntimeError(
                            "the stream was moved or restarted; this iterator is void"
                        )
                    if piece:
                        self._book.record(parcel.positions, parcel.bad)
                    batch = parcel.unpack()
                    if not piece:
                        batch = replace(batch, valid=torch.zeros_like(batch.valid))
                    batches.append(batch)
                self.consumed = start + stride
                yield batches

    def _pieces(self, start: int) -> list[range]:
        """Positions of this rank's micro-batches in the global batch that begins at `start`."""
        size = int(self.order.sizes_at(np.array([start]))[0])
        pieces = self.setup.cut.pieces(size, self.setup.global_rank)
        return [range(start + slots.start, start + slots.stop) for slots in pieces]

    def state(self) -> dict[str, Any]:
        """JSON-able state: one integer, what it refers to, and where the mixture was changed."""
        return {
            "consumed": self.consumed,
            "global_batch_size": self.config.global_batch_size,
            "phase": asdict(self.order.phase),
            "fingerprint": self.fingerprint(),
        }

    def load_state(self, state: dict[str, Any], *, new_phase: bool = False) -> None:
        """Continue where `state` was saved, on any number of ranks and workers.

        With `new_phase` the sources, their data, weights and units may have changed: each source
        continues where it was, in the new mixture.

        Errors: ValueError with the differences for the state of another order, and for a state that
        no stream saves.
        """
        check_state(state)
        lines = differences(state["fingerprint"], self.fingerprint())
        fixed = [line for line in lines if line.startswith(FIXED)] if new_phase else lines
        if fixed:
            cure = (
                "These cannot change within a run: resume with the saved ones, or start a new run."
                if new_phase
                else "Resume with the saved recipe and data, or start a new run; with --new_phase "
                "each task continues from where it was, in the new mixture."
            )
            raise ValueError(
                "this run's data differ from those of the state to resume (saved -> now):\n  "
                + "\n  ".join(fixed)
                + f"\n{cure}"
            )
        saved_size, size = state["global_batch_size"], self.config.global_batch_size
        # For batches of one task the fingerprint holds their sizes.
        if self.order.batch_sizes is None and saved_size != size:
            warnings.warn(
                f"global_batch_size was {saved_size}, is {size}: the order of examples continues, "
                "its batches are cut differently",
                stacklevel=2,
            )
        phase = Phase(**state["phase"])
        if new_phase and lines:
            phase = Phase(state["consumed"], given_before(state))
        self.consumed, self.order.phase = state["consumed"], phase
        self._iteration += 1


def check_state(state: Mapping[str, Any]) -> None:
    """Errors: ValueError that names a field and its value that no stream saves."""
    for name, kind in STATE_TYPES.items():
        if type(state.get(name)) is not kind:
            raise invalid_state(name, state.get(name))
    if not 0 <= state["consumed"] < FURTHEST:
        raise invalid_state("consumed", state["consumed"])
    if state["global_batch_size"] < 1:
        raise invalid_state("global_batch_size", state["global_batch_size"])
    order = state["fingerprint"].get("order")
    if not isinstance(order, dict):
        raise invalid_state("fingerprint.order", order)
    if not _is_phase(state["phase"], state["consumed"], order.get("lanes")):
        raise invalid_state("phase", state["phase"])


def _is_phase(phase: Mapping[str, Any], consumed: int, lanes: Any) -> bool:
    """True if it began before this position, and has counts of examples for each lane."""
    at, given = phase.get("at"), phase.get("given")
    if phase.keys() != {"at", "given"} or type(at) is not int or not isinstance(given, dict):
        return False
    if not 0 <= at <= consumed:
        return False
    return all(
        isinstance(counts, list)
        and len(counts) == lanes
        and all(type(count) is int and 0 <= count <= at for count in counts)
        for counts in given.values()
    )


def given_before(state: Mapping[str, Any]) -> dict[str, list[int]]:
    """Examples of each source before a state, lane by lane. They follow from the mixture in which
    the state was saved.

    Errors: ValueError for a mixture that no run has.
    """
    order = state["fingerprint"]["order"]
    try:
        if not all(map(SHARE.fullmatch, order["shares"].values())):
            raise invalid_state("fingerprint.order.shares", order["shares"])
        mixture = mixture_of(order)
        mixture.phase = Phase(**state["phase"])
        return mixture.given(state["consumed"])
    # A hand-written state may hold any numbers and words.
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError) as error:
        raise invalid_state("fingerprint.order", order) from error


def invalid_state(name: str, value: Any) -> ValueError:
    """The error for a field whose value no stream saves."""
    return ValueError(
        f"its position in the data is invalid: data.{name} is {reprlib.repr(value)}, which no run "
        "has saved; move that folder away to resume from the state before it, or name another "
        "output"
    )

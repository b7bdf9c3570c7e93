"""The streams that training and evaluation read: this rank's micro-batches, in order.

Whatever the number of ranks, workers and accumulation steps, the examples of an optimizer step are
the positions [p, p + global_batch_size) of the order. A rank takes micro_batch_size neighbours of
every world_size x micro_batch_size. The whole state is `consumed`, counted as batches are handed
out: what workers have prepared ahead is never lost.
"""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.utils.data

from vlds.data.assemble import Assembler, Parcel
from vlds.data.errors import BadSample, ErrorBook, ErrorPolicy
from vlds.data.eval_order import EvalOrder
from vlds.data.mixture import Phase, Unit, mixed_order
from vlds.data.order import differences
from vlds.data.source import Source
from vlds.schema import Batch, ImageSpec

CACHE_BYTES = 128 << 20
"""Decoded pictures that each process keeps at most: small data sets are decoded once."""
FIXED = tuple(f"order.{key}:" for key in ("seed", "window", "group", "lanes", "batch_size"))
"""What a new phase cannot change: a source would repeat and leave out within its epoch."""


class _Positions:
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


class TrainStream:
    """Micro-batches of one rank, for ever."""

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        tokenizer: Any,
        image: ImageSpec | None,
        seed: int,
        global_batch_size: int,
        micro_batch_size: int,
        world_size: int = 1,
        global_rank: int = 0,
        num_workers: int = 0,
        unit: Unit = "example",
        temperature: float | None = None,
        window: int = 64,
        group: int = 1,
        lanes: int = 1,
        errors: ErrorPolicy | None = None,
        ledger: Path | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """Check everything, read each data set's first sample; `ledger` lists bad samples."""
        check_batch(global_batch_size, micro_batch_size, world_size)
        names = [source.name for source in sources]
        if not sources or len(set(names)) < len(names):
            raise ValueError(f"sources {names}: give at least one, and each a name of its own")
        for source in sources:
            source.check(image)
        self.sources = list(sources)
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self._slot = world_size, global_rank
        self._num_workers = num_workers
        self.order = mixed_order(
            names,
            [source.counts for source in sources],
            [source.weight for source in sources],
            seed=seed,
            unit=unit,
            temperature=temperature,
            window=window,
            group=group,
            lanes=lanes,
            global_batch_size=global_batch_size,
            micro_batch_size=micro_batch_size,
        )
        policy = errors or ErrorPolicy()
        self._assembler = Assembler(
            sources, self.order, tokenizer, image, seed=seed, policy=policy, cache_bytes=cache_bytes
        )
        self._book = ErrorBook(policy, ledger)
        self._consumed = 0
        self._handed_out: list[int] = []
        self._iteration = 0

    @property
    def consumed(self) -> int:
        """Examples handed out so far, over all ranks."""
        return self._consumed

    @property
    def num_bad(self) -> int:
        """Examples of this rank that a substitute stood for, since the process started."""
        return self._book.num_bad

    def position_of(self, row: int) -> int:
        """Position in the stream of a row of the batch handed out last."""
        return self._handed_out[row]

    def epochs(self) -> dict[str, float]:
        """How often each source has been gone through so far."""
        given = self.order.given(self._consumed)
        return {order.name: sum(given[order.name]) / order.size for order in self.order.orders}

    def __iter__(self) -> Iterator[Batch]:
        self._iteration += 1
        return self._batches(self._iteration)

    def _batches(self, iteration: int) -> Iterator[Batch]:
        positions = _Positions(self._consumed, self.micro_batch_size, self._slot)
        loader = make_loader(self._assembler, positions, self._num_workers)
        for parcel in loader:
            if iteration != self._iteration:
                raise RuntimeError("the stream was moved or iterated anew; this iterator is void")
            self._book.record(parcel.positions, parcel.bad)
            batch = batch_of(parcel)
            self._consumed += self.micro_batch_size * self._slot[0]
            self._handed_out = parcel.positions
            yield batch

    def fingerprint(self) -> dict[str, Any]:
        """What the order depends on; a state is of use only where this is the same."""
        data = {
            source.name: {dataset.label: dataset.fingerprint() for dataset in source.datasets}
            for source in self.sources
        }
        return {"order": self.order.fingerprint(), "data": data}

    def state(self) -> dict[str, Any]:
        """JSON-able state: one integer, what it refers to, and where the mixture was changed."""
        return {
            "consumed": self._consumed,
            "global_batch_size": self.global_batch_size,
            "phase": asdict(self.order.phase),
            "given": self.order.given(self._consumed),
            "fingerprint": self.fingerprint(),
        }

    def load_state(self, state: dict[str, Any], *, new_phase: bool = False) -> None:
        """Go on where `state` was taken, on any number of ranks and workers.

        With `new_phase` the sources, their data, weights and units may have changed: each source
        goes on where it was, in the new mixture.

        Errors: ValueError with the differences where the order is another one.
        """
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
        if state["global_batch_size"] != self.global_batch_size:
            warnings.warn(
                f"global_batch_size was {state['global_batch_size']}, is {self.global_batch_size}: "
                "the order of examples goes on, its batches are cut differently",
                stacklevel=2,
            )
        self._consumed = int(state["consumed"])
        changed = new_phase and bool(lines)
        self.order.phase = (
            Phase(self._consumed, state["given"]) if changed else Phase(**state["phase"])
        )
        self._iteration += 1


class EvalStream:
    """One rank's part of an evaluation: some of its batches, whatever the number of ranks."""

    def __init__(
        self,
        source: Source,
        order: EvalOrder,
        *,
        tokenizer: Any,
        image: ImageSpec | None,
        world_size: int = 1,
        global_rank: int = 0,
        num_workers: int = 0,
        task_index: int = 0,
    ) -> None:
        """`task_index`: number of the task in the recipe."""
        source.check(image)
        self.bad: list[BadSample] = []
        """Examples of this rank that could not be read, as of the last iteration."""
        self._assembler = Assembler(
            [source],
            order,
            tokenizer,
            image,
            seed=None,
            policy=ErrorPolicy(),
            cache_bytes=0,
            first_task=task_index,
        )
        self._batches = order.batches[global_rank::world_size]
        self._num_workers = num_workers

    def __len__(self) -> int:
        """Batches of this rank."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        self.bad = []
        for parcel in make_loader(self._assembler, self._batches, self._num_workers):
            first: dict[int, BadSample] = {}  # substitutes that are bad as well are of no interest
            for entry in parcel.bad:
                first.setdefault(entry.position, entry)
            self.bad += first.values()
            yield batch_of(parcel)


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
    assembler: Assembler, positions: Iterable[list[int]], num_workers: int
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
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

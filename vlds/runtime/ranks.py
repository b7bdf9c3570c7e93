"""The ranks of a run and the collectives that training needs."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
import torch.nn.functional as F
from torch import Tensor

from vlds.runtime.devices import device_of, free_memory, most_memory
from vlds.runtime.folders import FolderInUse, folder_lock
from vlds.runtime.rank_environment import (
    RankPlace,
    check_alone,
    is_rank,
    local_rank,
    read_place,
)


@dataclass(frozen=True)
class Ranks(RankPlace):
    """This process among all ranks of the run. Every method is collective: all ranks call it in
    the same order."""

    device: torch.device
    collective_timeout: float = 600.0
    """Seconds after which ranks that wait for each other give up."""

    @property
    def is_first(self) -> bool:
        """True for the rank that writes files and talks to the user."""
        return self.global_rank == 0

    @property
    def on_this_machine(self) -> range:
        """Global ranks of all processes on this machine."""
        # Launchers number the ranks machine by machine: of 16 ranks on two machines of 8, rank 11
        # is local rank 3, and its machine has 8 to 15.
        first = self.global_rank - self.local_rank
        return range(first, first + self.local_world_size)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks, where the values are; as float64, so that counts stay exact."""
        total = values.to(torch.float64, copy=True)
        dist.all_reduce(total)
        return total

    def any(self, flag: bool) -> bool:
        """True if the flag is set on any rank."""
        return self.any_of(flag)[0]

    def any_of(self, *flags: bool) -> list[bool]:
        """For each flag, True if it is set on any rank."""
        return self.sum(torch.tensor(flags, dtype=torch.float64)).bool().tolist()

    def max(self, value: float) -> float:
        """The largest of the ranks' values."""
        largest = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest.item()

    def gather(self, value: Any) -> list[Any] | None:
        """The values of all ranks on the first rank, None elsewhere."""
        # Along a tree: of 8 ranks, 1, 3, 5, 7 hand theirs to 0, 2, 4, 6; then 2 and 6 both to 0 and
        # 4; then 4 all four to 0. torch's gather_object pads all values to the longest, and lets
        # the first rank take them one by one: with 512 ranks of one machine, that took 48 s.
        values, step = [value], 1
        while step < self.world_size:
            if self.global_rank & step:
                _send(values, self.global_rank - step)
                return None
            if self.global_rank + step < self.world_size:
                values += _receive(self.global_rank + step)
            step *= 2
        return values

    def broadcast(self, value: Any) -> Any:
        """The first rank's value, on all ranks."""
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def share(self, tensor: Tensor) -> None:
        """Overwrite a tensor with the first rank's."""
        dist.broadcast(tensor, src=0)

    def most_memory(self) -> int:
        """The most bytes that a rank has used so far: of its GPU, or else of main memory."""
        return int(self.max(most_memory(self.device)))

    def have_memory(self, size: int) -> bool:
        """True if each rank can ask for so many bytes where it computes."""
        # GPUs are not shared.
        num_sharing = self.local_world_size if self.device.type == "cpu" else 1
        return not self.any(num_sharing * size > free_memory(self.device))

    def bound_waiting(self) -> None:
        """Give every process group the run's timeout: DeepSpeed creates some with torch's default,
        up to half an hour."""
        # These calls are private in torch 2.9; a test shows that they work.
        for group in list(c10d._world.pg_map):
            c10d._set_pg_timeout(timedelta(seconds=self.collective_timeout), group)

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier()


def _send(value: Any, to: int) -> None:
    """Hand any value to another rank, through main memory."""
    data = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
    dist.send(torch.tensor([len(data)]), to)
    dist.send(data, to)


def _receive(origin: int) -> Any:
    """What another rank sends."""
    dist.recv(size := torch.zeros(1, dtype=torch.int64), origin)
    dist.recv(data := torch.empty(int(size), dtype=torch.uint8), origin)
    return pickle.loads(data.numpy().tobytes())


@contextmanager
def hold_folder(ranks: Ranks, folder: Path) -> Iterator[None]:
    """Lock an output folder for this run, on the first rank. Collective.

    Errors: ValueError on all ranks if another program writes there.
    """
    # All ranks learn whether the first one has the lock: if it alone raised, the others would wait
    # in their next collective.
    with ExitStack() as stack:
        refusal = None
        if ranks.is_first:
            try:
                stack.enter_context(folder_lock(folder))
            except FolderInUse as error:
                refusal = str(error)
        if (refusal := ranks.broadcast(refusal)) is not None:
            raise ValueError(refusal)
        yield


def rank_from_environment() -> Ranks:
    """This process's place as the launcher set it; the only rank if no launcher started it.

    Errors: ValueError if the environment holds only some of a launcher's variables.
    """
    if not is_rank(os.environ):
        check_alone(os.environ)
        os.environ.update(local_rank(0, 1, 0))
    place = read_place(os.environ)
    return Ranks(**vars(place), device=device_of(place.local_rank))


# Rows of all ranks, through which gradients flow back: for losses that compare the examples of a
# global batch. Shapes: b rows of this rank, n of all ranks, d width.


class Gathered(NamedTuple):
    """Rows of all ranks in the order of the global batch."""

    rows: Tensor
    """(n, d)."""
    first: int
    """Index of this rank's first row among them."""


class GatherRows(torch.autograd.Function):
    """The rows of all ranks. A row's gradient is the sum of what all ranks send back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int], rank: int) -> Tensor:
        ctx.begin, ctx.count = sum(counts[:rank]), counts[rank]
        # all_gather needs parts of one size, so the rows are padded to the largest count.
        padded = F.pad(rows, (0, 0, 0, max(counts) - len(rows))).contiguous()
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        # A copy: all_reduce works in place, and autograd owns the gradient.
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.begin : ctx.begin + ctx.count], None, None


def gather_rows(rows: Tensor) -> Gathered:
    """The rows (b, d) of all ranks, which may have different numbers of rows. Collective; with a
    single rank, the rows themselves."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return Gathered(rows, 0)
    # Each rank fills in its own count; the sum is the list of all.
    rank, counts = dist.get_rank(), torch.zeros(dist.get_world_size(), dtype=torch.int64)
    counts[rank] = len(rows)
    dist.all_reduce(counts)
    numbers: list[int] = counts.tolist()
    whole: Tensor = GatherRows.apply(rows, numbers, rank)  # type: ignore[no-untyped-call]
    return Gathered(whole, sum(numbers[:rank]))

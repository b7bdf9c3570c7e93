"""AdamW that does not touch the weights of absent tasks, nor weights that no loss has read yet. Its
update is torch's, or that of transformers' former AdamW.

Weights per task are stacked in one parameter, or are a task's head, and ZeRO joins parameters to
flat partitions. Torch's AdamW would treat what an absent task owns as if its gradient were zero:
momentum and decay move it, and its second moment decays, so that the next step with examples is too
long. Here a flat partition is cut into segments, each shared by all tasks or owned by one. A step
updates the segments of the tasks that are present, and counts updates per task. This equals AdamW
over one parameter per task, with gradients of None for absent tasks and idle weights.

Update t moves a weight w at learning rate r and weight decay d, with the moments m and v:

    torch:         w -= r d w;  w -= r m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)
    transformers:  w -= r m / (1 - beta1^t) sqrt(1 - beta2^t) / (sqrt(v) + eps);  w -= r d w

But for decay, the second is the first with eps / sqrt(1 - beta2^t) in place of eps: 32 times as
much in the first update, so that small gradients move weights less.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.adamw import AdamW, adamw

from vlds.config import AdamWUpdate
from vlds.models.optimizer_rules import TaskSlices

MOMENTS = ("exp_avg", "exp_avg_sq")
SHARED_OWNER = 0
"""Owner of a segment that belongs to all tasks; task k is owner 1 + k."""
UNREAD_OWNER = -1
"""Owner of a segment that no loss has read yet. As an index it is the last of an array of owners,
where `TaskAdamW._runs` puts an entry for it."""
NO_UPDATE = -1
"""In place of the number of updates so far, of a segment that this step leaves alone: a number that
no segment has."""


@dataclass(frozen=True)
class Segments:
    """The pieces of a flat tensor: (n,) numbers of elements, and (n,) owners."""

    sizes: NDArray[np.int64]
    owners: NDArray[np.int64]


class TaskAdamW(AdamW):
    """AdamW over flat tensors whose segments are updated only when their task is present."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        num_tasks: int,
        betas: tuple[float, float],
        eps: float,
        update: AdamWUpdate = "torch",
    ) -> None:
        super().__init__(groups, betas=betas, eps=eps, fused=True)
        self.num_tasks = num_tasks
        self.update = update
        self.segments: dict[Tensor, Segments] = {}
        """Flat tensor -> its segments. They are known once ZeRO has made the flat tensors."""
        self.present = np.ones(1 + num_tasks, dtype=bool)
        """(1 + tasks,) owners that the next step updates; SHARED_OWNER is always one."""

    def set_present(self, tasks: Tensor) -> None:
        """Say which tasks (k,) have examples in the global batch of the next step."""
        self.present[1:] = tasks.numpy()

    @property
    def task_updates(self) -> list[int]:
        """Updates of each task's weights so far. Those of all flat tensors are equal."""
        state = self.state[next(iter(self.segments))]
        return state["step"][1:].tolist() if state else [0] * self.num_tasks

    def start(self, updates: int, task_updates: Sequence[int]) -> None:
        """Make the state after so many updates, its moments still zero."""
        for flat in self.segments:
            self.state[flat] = new_state(flat, [updates, *task_updates])

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the shared segments and those of the tasks that are present."""
        for group in self.param_groups:
            for flat in group["params"]:
                if flat.grad is not None:
                    self._update(flat, flat.grad, group)

    def _update(self, flat: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[flat]
        if not state:
            state |= new_state(flat, [0] * (1 + self.num_tasks))
        sizes, updates = self._runs(self.segments[flat], state["step"].numpy())
        tensors = (flat, gradient, *(state[moment] for moment in MOMENTS))
        runs = [tensor.split(sizes.tolist()) for tensor in tensors]
        beta1, beta2 = group["betas"]
        rate, decay = group["lr"], group["weight_decay"]
        decays_behind = self.update == "transformers"
        for chosen, eps in self._calls(updates, beta2, group["eps"]):
            weights, gradients, first, second = (list(compress(run, chosen)) for run in runs)
            adamw(
                params=weights,
                grads=gradients,
                exp_avgs=first,
                exp_avg_sqs=second,
                max_exp_avg_sqs=[],
                # Scratch: torch adds 1 to the step of each part.
                state_steps=list(
                    torch.tensor(updates[chosen], dtype=torch.float32, device=flat.device)
                ),
                fused=True,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=rate,
                weight_decay=0.0 if decays_behind else decay,
                eps=eps,
                maximize=False,
            )
            if decays_behind and weights and decay:
                # No product with 1 - rate * decay: fp32 rounds it by up to 3e-8, which is 3 % of a
                # decay of 1e-6, and for all weights the same way.
                torch._foreach_add_(weights, weights, alpha=-rate * decay)
        # One more for each owner that was present, as bool adds to int.
        state["step"] += torch.from_numpy(self.present)

    def _calls(
        self, updates: NDArray[np.int64], beta2: float, eps: float
    ) -> list[tuple[NDArray[np.bool_], float]]:
        """Calls of torch's kernel: which runs each updates, and with which eps.

        The kernel counts updates for each run, but has one eps. That of transformers depends on the
        count, of which there are at most as many as owners.
        """
        moves = updates != NO_UPDATE
        if self.update == "torch":
            return [(moves, eps)]
        return [
            (updates == count, eps / math.sqrt(1 - beta2 ** (int(count) + 1)))
            for count in np.unique(updates[moves])
        ]

    def _runs(
        self, segments: Segments, updates: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Join neighbours with the same number of updates: sizes, and updates so far or NO_UPDATE.

        `updates`: (1 + tasks,) of each owner. If every task is in every batch, a flat tensor is one
        run, and a step as fast as torch's.
        """
        of_owners = np.where(self.present, updates, NO_UPDATE)
        # One more entry at the end, which is where the index UNREAD_OWNER points.
        of_segments = np.append(of_owners, NO_UPDATE)[segments.owners]
        # A run starts where the number differs from that before; the first one always, because
        # what stands before it is smaller than any number.
        starts = np.flatnonzero(np.diff(of_segments, prepend=NO_UPDATE - 1))
        return np.add.reduceat(segments.sizes, starts), of_segments[starts]


def new_state(flat: Tensor, updates: Sequence[int]) -> dict[str, Tensor]:
    """Moments of zero, and (1 + tasks,) updates of each owner."""
    moments = {key: torch.zeros_like(flat) for key in MOMENTS}
    return {"step": torch.tensor(updates), **moments}


# Where weights lie in ZeRO's flat partitions is private to DeepSpeed 0.19. Each rank holds one flat
# tensor of fp32 masters for each group of parameters. Stages 1 and 2 join the parameters of a group
# and cut the whole; stage 3 cuts each parameter and joins the rank's parts.


class Piece(NamedTuple):
    """Consecutive elements of one parameter in a flat partition; between pieces lies padding."""

    offset: int
    """Where they begin in the partition."""
    start: int
    """Where they begin in the flattened parameter."""
    size: int
    parameter: nn.Parameter


def flat_segments(
    zero: Any,
    stage: int,
    global_rank: int,
    slices: Mapping[nn.Parameter, TaskSlices],
    idle: Collection[nn.Parameter],
) -> dict[Tensor, Segments]:
    """This rank's flat tensors under a ZeRO optimizer, cut by owner. `slices`: of the parameters
    that are stacked over tasks, or belong to one. `idle`: those that no loss has read yet."""
    segments: dict[Tensor, Segments] = {}
    if stage == 3:
        for flat, group in zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True):
            length = sum(parameter.partition_numel() for parameter in group)
            segments[flat] = segments_of(cut_each(group, global_rank), length, slices, idle)
    else:
        for flat, group in zip(
            zero.single_partition_of_fp32_groups, zero.bit16_groups, strict=True
        ):
            segments[flat] = segments_of(cut_whole(group), flat.numel(), slices, idle)
    return segments


def cut_whole(group: Sequence[Any]) -> list[Piece]:
    """Stages 1 and 2, which note this rank's part of each parameter."""
    pieces = []
    for parameter in group:
        if (mapping := parameter._hp_mapping) is not None:
            inside, part = mapping.hp_fragment_address, mapping.lp_fragment_address
            pieces.append(Piece(inside.start, part.start, part.numel, parameter))
    return sorted(pieces, key=lambda piece: piece.offset)


def cut_each(group: Sequence[Any], global_rank: int) -> list[Piece]:
    """Stage 3: equal parts of each parameter, the last one padded."""
    pieces, offset = [], 0
    for parameter in group:
        size = parameter.partition_numel()
        start = global_rank * size
        if (filled := min(size, parameter.ds_numel - start)) > 0:
            pieces.append(Piece(offset, start, filled, parameter))
        offset += size
    return pieces


def segments_of(
    pieces: Sequence[Piece],
    length: int,
    slices: Mapping[nn.Parameter, TaskSlices],
    idle: Collection[nn.Parameter],
) -> Segments:
    """Cut a partition of `length` elements by owner."""
    ends: list[int] = []
    owners: list[int] = []

    def up_to(end: int, owner: int) -> None:
        """What reaches from the last end to this one has one owner; nothing if it is empty."""
        if end > (ends[-1] if ends else 0):
            ends.append(end)
            owners.append(owner)

    for piece in pieces:
        # Padding before the piece: its gradient is zero, so any owner that is there will do.
        up_to(piece.offset, SHARED_OWNER)
        stop = piece.start + piece.size
        if piece.parameter in idle:
            up_to(piece.offset + piece.size, UNREAD_OWNER)
        elif (of_tasks := slices.get(piece.parameter)) is not None:
            first, size = of_tasks
            # A rank's piece may begin and end inside a task's slice: from the slice that holds its
            # first element to the one that holds its last (rounded up), cut off at its end.
            for number in range(piece.start // size, -(-stop // size)):
                end = min((number + 1) * size, stop)
                # From a place in the parameter to one in the partition.
                up_to(piece.offset + end - piece.start, 1 + first + number)
        # Nothing is left of a piece that is idle or has slices.
        up_to(piece.offset + piece.size, SHARED_OWNER)
    up_to(length, SHARED_OWNER)
    return Segments(np.diff(ends, prepend=0), np.array(owners))

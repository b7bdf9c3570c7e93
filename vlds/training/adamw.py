"""AdamW that does not touch the weights of absent tasks, nor weights that no loss has read yet.

Weights per task are stacked in one parameter, or are a task's head, and ZeRO joins parameters to
flat partitions. Torch's AdamW would treat what an absent task owns as if its gradient were zero:
momentum and decay move it, and its second moment decays, so that the next step with examples is too
long. Here a flat partition is cut into segments, each shared by all tasks or owned by one. A step
updates the segments of the tasks that are present, and counts updates per task. This equals torch's
AdamW over one parameter per task, with gradients of None for absent tasks and idle weights.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.adamw import AdamW, adamw

from vlds.models.optimizer_rules import TaskSlices

MOMENTS = ("exp_avg", "exp_avg_sq")
SHARED = 0
"""Owner of a segment that belongs to all tasks; task k is owner 1 + k."""
IDLE = -1
"""Owner of a segment that no loss has read yet."""
STILL = -1


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
    ) -> None:
        super().__init__(groups, betas=betas, eps=eps, fused=True)
        self.num_tasks = num_tasks
        self.segments: dict[Tensor, Segments] = {}
        """Flat tensor -> its segments. They are known once ZeRO has made the flat tensors."""
        self.present = np.ones(1 + num_tasks, dtype=bool)
        """(1 + tasks,) owners that the next step updates."""

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
        sizes, steps = self._runs(self.segments[flat], state["step"].numpy())
        moves = steps != STILL

        def moving(tensor: Tensor) -> list[Tensor]:
            return list(compress(tensor.split(sizes.tolist()), moves))

        beta1, beta2 = group["betas"]
        adamw(
            params=moving(flat),
            grads=moving(gradient),
            exp_avgs=moving(state["exp_avg"]),
            exp_avg_sqs=moving(state["exp_avg_sq"]),
            max_exp_avg_sqs=[],
            # Scratch: torch adds 1 to the step of each part.
            state_steps=list(torch.tensor(steps[moves], dtype=torch.float32, device=flat.device)),
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        state["step"] += torch.from_numpy(self.present)

    def _runs(
        self, segments: Segments, updates: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Join neighbours with the same number of updates: sizes, and updates so far or STILL.

        If every task is in every batch, a flat tensor is one run, and a step as fast as torch's.
        """
        # The last entry is that of IDLE.
        steps = np.append(np.where(self.present, updates, STILL), STILL)[segments.owners]
        starts = np.flatnonzero(np.diff(steps, prepend=STILL - 1))
        return np.add.reduceat(segments.sizes, starts), steps[starts]


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
        if end > (ends[-1] if ends else 0):
            ends.append(end)
            owners.append(owner)

    for piece in pieces:
        up_to(piece.offset, SHARED)
        stop = piece.start + piece.size
        if piece.parameter in idle:
            up_to(piece.offset + piece.size, IDLE)
        elif (of_tasks := slices.get(piece.parameter)) is not None:
            first, size = of_tasks
            for number in range(piece.start // size, -(-stop // size)):
                end = min((number + 1) * size, stop)
                up_to(piece.offset + end - piece.start, 1 + first + number)
        up_to(piece.offset + piece.size, SHARED)
    up_to(length, SHARED)
    return Segments(np.diff(ends, prepend=0), np.array(owners))

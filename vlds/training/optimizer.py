"""The optimizer: AdamW over ZeRO's flat tensors, its groups and schedule, and the parts in which a
micro-batch is computed.

AdamW does not touch the weights of absent tasks, nor weights that no loss has read yet. Its update
is torch's, or that of transformers' former AdamW.

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
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.adamw import AdamW, adamw

from vlds.models.model import Model
from vlds.models.roles import TaskSlices, optimizer_rules
from vlds.recipe.config import AdamWUpdate, OptimizerConfig, Recipe
from vlds.schema import OptimizerRule

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
        """(1 + tasks,) owners that the next step updates: SHARED_OWNER always, and the tasks with
        examples in its global batch."""

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
        """Update the segments of a flat tensor whose owners are present."""
        state, segments = self.state[flat], self.segments[flat]
        if not state:
            state |= new_state(flat, [0] * (1 + self.num_tasks))
        beta1, beta2 = group["betas"]
        rate, decay, eps = group["lr"], group["weight_decay"], group["eps"]
        # Updates so far of each owner (1 + tasks,), then of each segment (n,). The entry at the end
        # is where the index UNREAD_OWNER points.
        of_owners = np.where(self.present, state["step"].numpy(), NO_UPDATE)
        of_segments = np.append(of_owners, NO_UPDATE)[segments.owners]
        # Join neighbours with the same number: if every task is in every batch, a flat tensor is
        # one run, and a step as fast as torch's. A run starts where the number differs from that
        # before; the first one always, because what stands before it is smaller than any number:
        # 7 7 -1 7 -> runs of 2, 1 and 1 segments.
        starts = np.flatnonzero(np.diff(of_segments, prepend=NO_UPDATE - 1))
        sizes, updates = np.add.reduceat(segments.sizes, starts).tolist(), of_segments[starts]
        tensors = (flat, gradient, *(state[moment] for moment in MOMENTS))
        runs = [tensor.split(sizes) for tensor in tensors]
        # Torch's kernel counts updates for each run, but has one eps. That of transformers depends
        # on the count, so it needs a call for each: at most as many as there are owners.
        moves = updates != NO_UPDATE
        calls = [(moves, eps)]
        decays_behind = self.update == "transformers"
        if decays_behind:
            calls = [
                (updates == count, eps / math.sqrt(1 - beta2 ** (int(count) + 1)))
                for count in np.unique(updates[moves])
            ]
        for chosen, run_eps in calls:
            weights, gradients, first, second = (list(compress(run, chosen)) for run in runs)
            steps = torch.tensor(updates[chosen], dtype=torch.float32)
            steps = steps.to(flat.device, non_blocking=True)
            adamw(
                params=weights,
                grads=gradients,
                exp_avgs=first,
                exp_avg_sqs=second,
                max_exp_avg_sqs=[],
                state_steps=list(steps),  # scratch: torch adds 1 to each
                fused=True,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=rate,
                weight_decay=0.0 if decays_behind else decay,
                eps=run_eps,
                maximize=False,
            )
            if decays_behind and weights and decay:
                # No product with 1 - rate * decay: fp32 rounds it by up to 3e-8, which is 3 % of a
                # decay of 1e-6, and for all weights the same way.
                torch._foreach_add_(weights, weights, alpha=-rate * decay)
        # One more for each owner that was present, as bool adds to int.
        state["step"] += torch.from_numpy(self.present)


def new_state(flat: Tensor, updates: Sequence[int]) -> dict[str, Tensor]:
    """Moments of zero, and (1 + tasks,) updates of each owner, where torch's AdamW has one."""
    moments = {key: torch.zeros_like(flat) for key in MOMENTS}
    return {"step": torch.tensor(updates), **moments}


class FlatPiece(NamedTuple):
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
    that are stacked over tasks, or belong to one. `idle`: those that no loss has read yet.

    Each rank holds one flat tensor of fp32 masters for each group of parameters. Where parameters
    lie in it is private to DeepSpeed 0.19.
    """
    segments: dict[Tensor, Segments] = {}
    if stage == 3:
        # Each parameter is cut into equal parts, the last one padded; the rank's parts are joined.
        # 10 elements on 4 ranks: parts of 3, of which the last holds 1.
        for flat, group in zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True):
            pieces, offset = [], 0
            for parameter in group:
                size = parameter.partition_numel()
                start = global_rank * size
                if (filled := min(size, parameter.ds_numel - start)) > 0:
                    pieces.append(FlatPiece(offset, start, filled, parameter))
                offset += size
            segments[flat] = segments_of(pieces, offset, slices, idle)
        return segments
    # Stages 1 and 2 join a group's parameters and cut the whole, so that a part of some of them is
    # on this rank; DeepSpeed notes which.
    for flat, group in zip(zero.single_partition_of_fp32_groups, zero.bit16_groups, strict=True):
        pieces = []
        for parameter in group:
            if (mapping := parameter._hp_mapping) is not None:
                inside, part = mapping.hp_fragment_address, mapping.lp_fragment_address
                pieces.append(FlatPiece(inside.start, part.start, part.numel, parameter))
        pieces.sort(key=lambda piece: piece.offset)
        segments[flat] = segments_of(pieces, flat.numel(), slices, idle)
    return segments


def segments_of(
    pieces: Sequence[FlatPiece],
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
            # first element to the one that holds its last (rounded up), cut off at its end. With
            # slices of 4, elements 6 to 9 are 2 of slice 1, then 2 of slice 2.
            for number in range(piece.start // size, -(-stop // size)):
                end = min((number + 1) * size, stop)
                # From a place in the parameter to one in the partition.
                up_to(piece.offset + end - piece.start, 1 + first + number)
        # Nothing is left of a piece that is idle or has slices.
        up_to(piece.offset + piece.size, SHARED_OWNER)
    up_to(length, SHARED_OWNER)
    return Segments(np.diff(ends, prepend=0), np.array(owners))


# AdamW's groups and the schedule: which weights decay, which part learns at which rate, and when.

PART_RATES = ("connector_learning_rate", "norms_learning_rate", "heads_learning_rate")
"""Fields of the optimizer with the rates of parts that are not methods."""


def rate_field(part: str, recipe: Recipe) -> str:
    """The field with the rate of a part that is not a method, as `Model.part_of` or a recipe's
    `trained_text` calls it.

    Errors: ValueError if the kind of model names no field for it.
    """
    fields = {**recipe.model.rate_fields, "heads": "heads_learning_rate"}
    if fields.get(part) not in PART_RATES:
        raise ValueError(
            f"the model trains a part '{part}', which has no learning rate in the optimizer; let "
            f"`rate_fields` of {type(recipe.model).__name__} name one of {', '.join(PART_RATES)}, "
            "or train it with a method"
        )
    return fields[part]


def check_rates(recipe: Recipe) -> None:
    """Errors: ValueError if the optimizer has the rate of a part that the model does not train, or
    none for one that it trains."""
    trained = {rate_field(name.replace(" ", "_"), recipe) for name in recipe.trained_text}
    for field in PART_RATES:
        rate = getattr(recipe.optimizer, field)
        if rate is not None and field not in trained:
            known = [part for part, its in recipe.model.rate_fields.items() if its == field]
            parts = [part.replace("_", " ") for part in known or [field.split("_")[0]]]
            text = [name.replace("_", " ") for name in recipe.trained_text]
            what = ", ".join([*recipe.methods, *text]) or "nothing"
            raise ValueError(
                f"optimizer.{field}: got {rate}, but the model trains no {' or '.join(parts)}; "
                f"what trains: {what}; leave it out, or let the model train that part"
            )


def parameter_groups(model: Model, recipe: Recipe) -> list[dict[str, Any]]:
    """One group for each (peak learning rate, weight decay): its "params", "peak_lr",
    "weight_decay", and "lr" 0.

    Errors: ValueError if nothing trains, or a method declares no rule for one of its tensors.
    """
    # Few groups: each becomes one flat tensor of ZeRO, and a call of the kernel.
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    rules = optimizer_rules(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            peak = peak_learning_rate(model.part_of(name), recipe)
            decay = recipe.optimizer.weight_decay if decays(rules[name], recipe.optimizer) else 0.0
            groups.setdefault((peak * rules[name].rate, decay), []).append(parameter)
    if not groups:
        raise ValueError(
            "nothing trains: methods is empty, and no other part of the model trains; name a "
            "method, or a head of a task"
        )
    return [
        {"params": parameters, "peak_lr": peak, "lr": 0.0, "weight_decay": decay}
        for (peak, decay), parameters in groups.items()
    ]


def decays(rule: OptimizerRule, config: OptimizerConfig) -> bool:
    """True if weight decay acts on a parameter."""
    if config.weight_decay_groups == "vl_adapter" and rule.vl_adapter_decays is not None:
        return rule.vl_adapter_decays
    return rule.decays


def peak_learning_rate(part: str, recipe: Recipe) -> float:
    """The peak rate of a part, which is a method or has a `rate_field`.

    Errors: ValueError if it is neither.
    """
    if (method := recipe.methods.get(part)) is not None:
        own = method.learning_rate
    else:
        own = getattr(recipe.optimizer, rate_field(part, recipe))
    return recipe.optimizer.learning_rate if own is None else own


def schedule_factor(step: int, steps: int, config: OptimizerConfig) -> float:
    """Factor of the peak rate in step 0, 1, ...: linear warm-up from 0, flat, decay to 0 at
    `steps`, in a line or as half a cosine.

    As in VL-Adapter the first step has rate 0, and by default the decay follows the warm-up at
    once.
    """
    warmup = int(config.warmup_ratio * steps)
    if step < warmup:
        return step / warmup
    start = warmup if config.decay_start is None else max(warmup, int(config.decay_start * steps))
    if step < start:
        return 1.0
    left = max(0.0, (steps - step) / max(1, steps - start))
    return (1 - math.cos(math.pi * left)) / 2 if config.decay == "cosine" else left


def run_factor(step: int, recipe: Recipe) -> float:
    """Factor of the peak rate in a run's step 0, 1, ...: that of the schedule, which methods may
    begin again."""
    num_steps = recipe.training.num_steps
    edges = {0, num_steps}
    for method in recipe.methods.values():
        edges.update(method.schedule_starts(num_steps))
    begin = max(edge for edge in edges if edge <= step)
    end = min(edge for edge in edges if edge > step)
    return schedule_factor(step - begin, end - begin, recipe.optimizer)


def set_learning_rate(groups: Iterable[dict[str, Any]], factor: float) -> None:
    """Write the rate of this step into the optimizer."""
    for group in groups:
        group["lr"] = group["peak_lr"] * factor


Ints = NDArray[np.int64]


def similar_rows(sizes: Tensor, parts: int) -> list[Tensor]:
    """Cut b >= `parts` rows into `parts` sets of row numbers with the fewest padded tokens in all.

    Each part is padded to its own longest row. Tasks mixed within a micro-batch differ widely (two
    pictures or one, a word or a sentence to write), and every row pays for the largest. The loss is
    a sum over rows, so cutting changes nothing but the padding. Every micro-batch on every rank has
    the same number of parts, because all ranks must gather weights in the same order under ZeRO-3.

    `sizes`: (b, k) tokens of each row, as `Model.sizes` counts them. Rows are sorted by their
    sizes, the first column first, and cut between unlike rows where there are enough of them.
    """
    # lexsort sorts by its last key first.
    table = sizes.cpu().numpy().astype(np.int64)
    order = np.lexsort(table.T[::-1])
    # Sorted sizes 5 5 7 9 -> edges 0 2 3 4.
    table = table[order]
    unlike = np.flatnonzero((table[1:] != table[:-1]).any(1)) + 1
    edges = np.arange(len(table) + 1)
    if len(unlike) + 1 >= parts:
        edges = np.concatenate([[0], unlike, [len(table)]])
    cuts = edges[cheapest_cuts(table, edges, parts)]
    return [torch.from_numpy(order[a:b]) for a, b in pairwise(cuts)]


def cheapest_cuts(sizes: Ints, edges: Ints, parts: int) -> list[int]:
    """Numbers of the edges between which the parts lie, first and last included.

    Dynamic programming over costs[i, j], the tokens of a part from edge i to edge j: its rows
    times its largest sizes (r, k).
    """
    segments = np.maximum.reduceat(sizes, edges[:-1])  # (g, k) largest between neighbouring edges
    starts = np.arange(len(segments))
    # inside[i, j]: segment j's sizes if a part from segment i on could hold it, else 0.
    inside = np.where((starts[None] >= starts[:, None])[..., None], segments[None], 0)
    largest = np.maximum.accumulate(inside, axis=1).sum(-1)  # (g, g) from segment i through j
    rows = edges[None, 1:] - edges[:-1, None]
    costs = np.where(rows > 0, rows * largest, np.inf)
    # best[j]: the cheapest cut of the rows up to segment j into as many parts as so far.
    best, choices = costs[0], []
    for _ in range(parts - 1):
        # A part that begins with segment i follows those that end with segment i - 1.
        totals = best[:-1, None] + costs[1:]
        choices.append(totals.argmin(0))
        best = totals.min(0)
    cuts = [len(segments)]  # follow the choices back from the end
    for chosen in reversed(choices):
        cuts.append(int(chosen[cuts[-1] - 1]) + 1)
    return [0, *reversed(cuts)]

"""MetaAdapter (Hou et al. 2021, https://arxiv.org/abs/2105.11905): weights from which a task is
learnt in few steps, by a first-order mixture of MAML and Reptile, before an engine holds the model.

In each outer step, from the weights theta, each task in turn takes a step of Adam on one half of
its examples, remembers where it is, takes a second step on the other half, and goes back to theta:

    theta <- theta + rate * mean over tasks of (theta'' - theta')

The reference is `train_maml_epoch` (jindongwang/transferlearning, code/ASR/Adapter/train.py). As
there, Adam has no first moment, its second moments and step counts are never reset, weight decay is
added to the clipped gradient, and a gradient that is not finite changes nothing.

An outer step reads global batches of the run's data, in a separate order. The loss on half of a
task's examples is the run's loss (vlds/training/loss.py), as if these were the global batch, so
ranks and micro-batches change nothing. All trainable weights have the same rate. A task moves its
own head only, and its own slice of weights that are stacked over tasks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from vlds.data.streams.stream import MixedStream
from vlds.models.loading.drawn_weights import seed_of
from vlds.models.model import Model, step_draws
from vlds.models.roles import task_slices
from vlds.recipe.config import MetaConfig, Recipe
from vlds.runtime.ranks import Ranks
from vlds.runtime.terminal import Pace, clock, tell
from vlds.schema import Batch
from vlds.training.loss import LossTotals, coefficients, count

Losses = dict[str, tuple[float, float]]
"""Task -> loss on one half, and on the other half after a step on the first one."""
Half = Callable[[], float]
"""Sets the gradients of the loss on half of a task's examples, and returns that loss."""


def outer_rate(rate: float, step: int, steps: int) -> float:
    """The rate of outer step 0, 1, ...: from `rate` linearly to 0 at `steps`."""
    return rate * (1 - step / steps)


class MetaStopped(Exception):
    """A stop was requested before the last outer step. Raised on all ranks; the message names
    the step."""


def meta_seed(seed: int) -> int:
    """The seed of meta-learning's order of examples, and of its random draws."""
    return seed_of(seed, "meta")


def batches_a_step(recipe: Recipe) -> int:
    """Global batches that an outer step reads: if each holds one task, about one for each task."""
    return len(recipe.tasks) if recipe.data.unit == "global_batch" else 1


def check_meta(model: Model) -> None:
    """Errors: ValueError if a method acts in every optimizer step: meta-learning's steps would not
    call it."""
    for name in model.step_rules:
        raise ValueError(
            f"meta: methods.{name} follows the run's optimizer steps (as AdaLoRA's budget does), "
            "before which meta-learning comes; leave meta out, or choose another method"
        )


def meta_learn(
    model: Model,
    recipe: Recipe,
    ranks: Ranks,
    stream: MixedStream,
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run the outer steps on trainable weights; returns what the metrics keep. Collective.

    `stream`: a separate one, in the order of `meta_seed`. `stopping` is asked after each outer
    step. Errors: MetaStopped if a rank should stop.
    """
    config = recipe.meta
    assert config is not None
    learner = MetaLearner(model.to(ranks.device), recipe, config, ranks)
    statistics = [(buffer, buffer.clone()) for _, buffer in model.moving_buffers()]
    num_batches = batches_a_step(recipe)
    progress = MetaProgress(recipe, config.steps, silent=not ranks.is_first)
    with closing(stream.steps()) as global_batches:
        for step in range(config.steps):
            batches = [next(global_batches) for _ in range(num_batches)]
            losses = learner.step(batches, outer_rate(config.outer_rate, step, config.steps))
            if ranks.any(stopping()):
                raise MetaStopped(f"in step {step + 1} of {config.steps} of meta-learning")
            progress.after_step(step + 1, losses)
    # The statistics have seen weights inside tasks, which the model does not keep.
    for buffer, before in statistics:
        buffer.copy_(before)
    return progress.end(learner.steps.num_skipped)


@dataclass(frozen=True)
class Copy:
    """A weight that trains, or one task's slice of a stack, in fp32."""

    weight: nn.Parameter
    task: int | None
    """Number of the only task that it belongs to; None: to all."""
    is_slice: bool
    values: nn.Parameter

    def part(self, tensor: Tensor) -> Tensor:
        """The copy's part of a tensor with the weight's shape."""
        return tensor[self.task] if self.is_slice else tensor


class MetaLearner:
    """Outer steps of a model that is whole on every rank."""

    def __init__(self, model: Model, recipe: Recipe, config: MetaConfig, ranks: Ranks) -> None:
        self.model, self.ranks, self.seed = model, ranks, meta_seed(recipe.seed)
        self.names, self.tasks = list(recipe.tasks), list(recipe.tasks.values())
        slices = task_slices(model, len(self.tasks))
        self.copies: list[Copy] = []
        for weight in (p for p in model.parameters() if p.requires_grad):
            of_tasks = slices.get(weight)
            is_stack = of_tasks is not None and of_tasks.size < weight.numel()
            # Adam counts steps per copy, so a stack has one for each task's slice. A head is one
            # task's as a whole.
            owner = None if of_tasks is None else of_tasks.first
            for task, part in enumerate(weight) if is_stack else [(owner, weight)]:
                # copy=True: an fp32 model would share its memory otherwise.
                copied = nn.Parameter(part.detach().to(torch.float32, copy=True))
                self.copies.append(Copy(weight, task, is_stack, copied))
        values, optimizer = [copy.values for copy in self.copies], recipe.optimizer
        adam = torch.optim.Adam(
            values,
            lr=config.learning_rate,
            betas=(0.0, optimizer.betas[1]),  # as in the reference: no first moment
            eps=optimizer.eps,
            weight_decay=config.weight_decay,
        )
        self.steps = MetaSteps(values, adam, optimizer.clip_norm)
        self._num_halves = 0

    def step(self, global_batches: Sequence[Sequence[Batch]], rate: float) -> Losses:
        """One outer step on this rank's micro-batches of some global batches. Collective."""
        pairs = task_halves(global_batches, len(self.tasks), self.ranks)
        if not pairs:
            return {}
        halves = [
            (partial(self.gradients, first), partial(self.gradients, second))
            for first, second in pairs
        ]
        losses = self.steps.step(halves, rate)
        self.write()
        names = [self.names[first.task] for first, _ in pairs]
        return dict(zip(names, losses, strict=True))

    def gradients(self, half: TaskHalf) -> float:
        """Set the gradients of the loss on half of a task's examples; returns the loss. Collective.

        A copy whose weight the loss has not read gets no gradient, and Adam leaves it alone.
        """
        self.write()
        self.model.train()  # also drops what the model has kept from earlier weights
        copies = [copy for copy in self.copies if copy.task in (None, half.task)]
        sums = [torch.zeros_like(copy.values) for copy in copies]
        read = torch.zeros(len(copies), dtype=torch.float64)
        loss = torch.zeros(1, dtype=torch.float64)
        # Each half is step 0 of another seed: methods that follow a schedule stay at its start.
        draws = seed_of(self.seed, "half", self._num_halves), 0
        self._num_halves += 1
        for number, batch in enumerate(half.batches):
            scale = coefficients(batch, half.totals, self.tasks)
            with step_draws(self.model, *draws, number, self.ranks.global_rank):
                device = self.ranks.device
                there = scale.to(device, non_blocking=True)
                output = self.model(batch.to(device), there)
                output.loss.backward()
            loss += output.loss.item()
            for index, copy in enumerate(copies):
                if (gradient := copy.weight.grad) is not None and batch.valid.any():
                    sums[index] += copy.part(gradient)
                    read[index] = 1
            self.model.zero_grad()
        # One sum over ranks for all weights, which costs less than one each.
        sizes = [values.numel() for values in sums]
        summed = self.ranks.sum(torch.cat([values.flatten() for values in sums])).split(sizes)
        loss, read = self.ranks.sum(torch.cat([loss, read])).split([1, len(copies)])
        for copy, gradient, is_read in zip(copies, summed, read.tolist(), strict=True):
            if is_read:
                copy.values.grad = gradient.view_as(copy.values).to(copy.values)
        return float(loss)

    @torch.no_grad()
    def write(self) -> None:
        """Give the model the values of the copies, rounded to its type."""
        for copy in self.copies:
            copy.part(copy.weight).copy_(copy.values)


@dataclass
class MetaSteps:
    """Outer steps over tasks."""

    weights: Sequence[nn.Parameter]
    optimizer: torch.optim.Adam
    clip_norm: float
    """Largest norm of a gradient; 0 switches clipping off."""
    num_skipped: int = 0
    """Steps inside tasks whose loss or gradient was not finite."""

    @torch.no_grad()
    def step(self, tasks: Sequence[tuple[Half, Half]], rate: float) -> list[tuple[float, float]]:
        """One outer step; returns each task's losses on its halves."""
        start = [weight.clone() for weight in self.weights]
        changes = [torch.zeros_like(weight) for weight in self.weights]
        losses = []
        for first, second in tasks:
            before = self.inner(first)
            middle = [weight.clone() for weight in self.weights]
            losses.append((before, self.inner(second)))
            for change, weight, old in zip(changes, self.weights, middle, strict=True):
                change += weight - old
            self.put(start)
        moved = zip(start, changes, strict=True)
        self.put([old + rate * change / len(tasks) for old, change in moved])
        return losses

    def inner(self, half: Half) -> float:
        """A step on half of a task's examples; returns the loss before the step."""
        self.optimizer.zero_grad()
        with torch.enable_grad():
            loss = half()
        norm = clip_grad_norm_(self.weights, self.clip_norm or inf)
        if isfinite(loss) and norm.isfinite():
            self.optimizer.step()
        else:
            self.num_skipped += 1
        return loss

    def put(self, values: Sequence[Tensor]) -> None:
        """Set the weights."""
        for weight, value in zip(self.weights, values, strict=True):
            weight.copy_(value)


@dataclass(frozen=True)
class TaskHalf:
    """Half of a task's examples."""

    task: int
    batches: list[Batch]
    """This rank's examples, a batch for each micro-batch. All ranks have equally many batches,
    because a loss may be collective; one without an example of the half holds a row that is not
    `valid`."""
    totals: LossTotals
    """The half's examples and target tokens on all ranks."""


def task_halves(
    global_batches: Sequence[Sequence[Batch]], num_tasks: int, ranks: Ranks
) -> list[tuple[TaskHalf, TaskHalf]]:
    """Both halves of each task that has at least two examples, given this rank's micro-batches of
    one or more global batches. Collective.

    A task's examples are numbered over all ranks, in the order of the global batches; odd numbers
    are the second half. So the cut into ranks and micro-batches changes nothing, and each rank has
    a part of both halves.
    """
    # (g, ranks, k) examples of each task, then the numbers of this rank's first ones: as many as
    # are in earlier global batches, and on lower ranks.
    counts = torch.zeros(len(global_batches), ranks.world_size, num_tasks, dtype=torch.float64)
    for number, batches in enumerate(global_batches):
        counts[number, ranks.global_rank] = count(batches, num_tasks)[0]
    # Of a task on 2 ranks, counts [[3, 2], [1, 4]] -> first numbers [[0, 3], [5, 6]].
    flat = ranks.sum(counts).flatten(0, 1)
    numbers = (flat.cumsum(0) - flat).view_as(counts)[:, ranks.global_rank].long()
    # (task, half) -> rows of each micro-batch in turn.
    rows: dict[tuple[int, int], list[list[int]]] = defaultdict(list)
    micro_batches = [batch for batches in global_batches for batch in batches]
    names = [(task, half) for task in range(num_tasks) for half in range(2)]
    for batches, of_tasks in zip(global_batches, numbers.tolist(), strict=True):
        for batch in batches:
            for name in names:
                rows[name].append([])
            for row, task in enumerate(batch.task_index.tolist()):
                if batch.valid[row]:
                    rows[task, of_tasks[task] % 2][-1].append(row)
                    of_tasks[task] += 1
    # Without a row of a half, a micro-batch keeps its first row, marked as not valid: all ranks
    # must compute equally many.
    found: dict[tuple[int, int], list[Batch]] = defaultdict(list)
    for name in names:
        for batch, own in zip(micro_batches, rows[name], strict=True):
            chosen = batch.select(torch.tensor(own or [0]))
            invalid = torch.zeros_like(chosen.valid)
            found[name].append(chosen if own else replace(chosen, valid=invalid))
    sizes = ranks.sum(torch.tensor([[len(own) for own in rows[name]] for name in names]))
    totals = ranks.sum(torch.stack([count(found[name], num_tasks) for name in names]))
    halves = [
        TaskHalf(
            task=name[0],
            # Micro-batches without a row of the half on any rank are left out, on all ranks alike.
            batches=[batch for batch, size in zip(found[name], of_half, strict=True) if size],
            totals=LossTotals(*of_totals),
        )
        for name, of_half, of_totals in zip(names, sizes, totals, strict=True)
    ]
    pairs = zip(halves[::2], halves[1::2], strict=True)
    return [(first, second) for first, second in pairs if second.totals.examples.any()]


class MetaProgress:
    """Collects the losses of outer steps, and tells their means every `log_every` steps."""

    def __init__(self, recipe: Recipe, num_steps: int, *, silent: bool) -> None:
        self.num_steps, self.log_every = num_steps, recipe.training.log_every
        self.silent = silent
        self.steps_with = dict.fromkeys(recipe.tasks, 0)
        """Task -> outer steps in which it had enough examples."""
        self._pace = Pace()
        self._interval: dict[str, list[tuple[float, float]]] = {}
        self._means: Losses = {}

    def after_step(self, step: int, losses: Losses) -> None:
        """Take the losses of outer step number `step`, from 1 on."""
        for task, pair in losses.items():
            self.steps_with[task] += 1
            self._interval.setdefault(task, []).append(pair)
        if step % self.log_every == 0 or step == self.num_steps:
            for task, pairs in self._interval.items():
                first, second = (sum(each) / len(pairs) for each in zip(*pairs, strict=True))
                self._means[task] = first, second
            self._interval = {}
            left = self._pace.seconds / step * (self.num_steps - step)
            shown = "  ".join(f"{t} {a:.3f} then {b:.3f}" for t, (a, b) in self._means.items())
            self._say(f"meta-learning {step}/{self.num_steps}  {shown}  {clock(left)} left")

    def end(self, num_skipped: int) -> dict[str, Any]:
        """Say what went wrong; returns what the metrics keep."""
        if num_skipped:
            self._say(
                f"meta-learning: {num_skipped} steps inside tasks were skipped, because loss or "
                "gradient was not finite; a lower meta.learning_rate may help"
            )
        for task, steps in self.steps_with.items():
            if steps < self.num_steps:
                self._say(
                    f"meta-learning: {task} took part in {steps} of {self.num_steps} steps; in "
                    "the others it had fewer than two examples"
                )
        return {
            "steps": self.num_steps,
            "skipped": num_skipped,
            "seconds": self._pace.seconds,
            **{f"loss_{n}": {t: pair[n - 1] for t, pair in self._means.items()} for n in (1, 2)},
        }

    def _say(self, text: str) -> None:
        if not self.silent:
            tell(text, flush=True)

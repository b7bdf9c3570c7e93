"""MetaAdapter in a run: outer steps over the run's tasks, before an engine holds the model.

An outer step reads a global batch of the run's data, in a separate order. The loss on half of a
task's examples is the run's loss (vlds/models/loss.py), as if these were the global batch, so ranks
and micro-batches change nothing. All trainable weights have the same rate. A task moves its own
head only, and its own slice of weights that are stacked over tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vlds.beginning.meta_progress import Losses, MetaProgress
from vlds.beginning.meta_steps import MetaSteps, outer_rate
from vlds.beginning.task_halves import TaskHalf, task_halves
from vlds.config import MetaConfig, Recipe
from vlds.data.streams.mixed_stream import MixedStream
from vlds.models.loading.draws import seed_of
from vlds.models.loss import coefficients
from vlds.models.model import Model
from vlds.models.optimizer_rules import TaskSlices, task_slices
from vlds.models.step_draws import step_draws
from vlds.runtime.ranks import Ranks
from vlds.schema import Batch


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
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        self.copies = [copy for p in trained for copy in copies_of(p, slices.get(p))]
        values, optimizer = [copy.values for copy in self.copies], recipe.optimizer
        adam = torch.optim.Adam(
            values,
            lr=config.learning_rate,
            betas=(0.0, optimizer.betas[1]),
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
            scale = coefficients(batch, half.totals, self.tasks).to(self.ranks.device)
            with step_draws(self.model, *draws, number, self.ranks.global_rank):
                output = self.model(batch.to(self.ranks.device), scale)
                output.loss.backward()
            loss += output.loss.item()
            for index, copy in enumerate(copies):
                if (gradient := copy.weight.grad) is not None and batch.valid.any():
                    sums[index] += copy.part(gradient)
                    read[index] = 1
            self.model.zero_grad()
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


def copies_of(weight: nn.Parameter, slices: TaskSlices | None) -> list[Copy]:
    """Copies of a weight: one for each task if it is stacked over them, else one."""
    values = weight.detach()
    if slices is None or slices.size == weight.numel():
        task = None if slices is None else slices.first  # a head has one task
        return [Copy(weight, task, False, copied(values))]
    return [Copy(weight, task, True, copied(part)) for task, part in enumerate(values)]


def copied(values: Tensor) -> nn.Parameter:
    """In fp32."""
    return nn.Parameter(values.to(torch.float32, copy=True))

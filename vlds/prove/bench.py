"""The bench on which properties are tried: a recipe's own model, data and methods, on one process,
in float32, and some rows that it learns from.

Rows are read once through the run's own stream and collated again in any combination, so that two
ways to compute the same examples differ in nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vlds.data.streams.assemble import StreamSetup
from vlds.evaluation.sources import with_lists
from vlds.models.build import ModelSetup, build_model
from vlds.models.collate import only_used
from vlds.models.kernels.attention import TORCH_ATTENTION, attention_by
from vlds.models.kernels.dropout import Draws, StepDropout, dropout_by
from vlds.models.methods.context import StepRule
from vlds.models.model import Model, step_draws
from vlds.prove.finding import (
    EXACT,
    OF_CHANGES,
    OF_GRADIENTS,
    OF_LOSSES,
    ROUNDING,
    Tolerance,
    compare_numbers,
    roundings,
)
from vlds.prove.started import Launch, launch
from vlds.recipe.config import Recipe
from vlds.runtime.deepspeed_start import LONGEST_WAIT, start_ranks
from vlds.runtime.process import find
from vlds.runtime.ranks import Ranks
from vlds.schema import Batch, Collator, Images, Row, Sample, Turn
from vlds.training.deepspeed_config import complete_deepspeed_config
from vlds.training.loss import StepLoss
from vlds.training.optimizer import similar_rows
from vlds.training.prepare import Prepared, check_precision, prepare, stream_of, with_steps
from vlds.training.run import load_model

FARTHEST = 1 << 16
"""Positions of the stream among which each task's first rows are looked for."""
FLIPS = 12
"""Flips where a difference is beyond its tolerance: the chance that they miss a switch which every
third flip moves is 1 %."""
ALONE = "ds_configs/zero2.json"
"""DeepSpeed's settings of the bench's one process."""


@dataclass
class NotingCollator:
    """A collator that keeps what it was given."""

    collator: Collator
    rows: Sequence[Row] = ()
    images: Images = None
    stored: dict[int, Sample] = field(default_factory=dict)
    """Row -> its sample, as it is read from its shard again; of rows that a shard's index names."""

    def __call__(self, rows: Sequence[Row], images: Images, *, evaluation: bool) -> Batch:
        # Again for the same rows where some were refused and replaced: the last call counts.
        self.rows, self.images = list(rows), images
        return self.collator(rows, images, evaluation=evaluation)

    def prompt_lengths(self, prompts: Sequence[tuple[str, int]]) -> list[int]:
        return self.collator.prompt_lengths(prompts)

    def answer_lengths(self, answers: Sequence[tuple[str, int]]) -> list[int]:
        return self.collator.answer_lengths(answers)

    def turns_length(self, turns: Sequence[Turn]) -> int:
        return self.collator.turns_length(turns)


class NoDropout(StepDropout):
    """Drops nothing: with dropout, two ways to compute differ by what they draw."""

    def __init__(self) -> None:
        super().__init__(0, 0)

    def dropout(
        self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        return input

    def draws(self, shape: torch.Size, p: float) -> Draws:
        return Undropped()


class Undropped:
    """The draws of a layer that drops nothing inside its own computation."""

    def of(self, examples: slice) -> Draws:
        return self

    def dropped(self, values: Tensor) -> Tensor:
        return values


@dataclass(frozen=True)
class Measured:
    """What a training step computes of some rows before it moves a weight."""

    losses: Mapping[str, Tensor]
    """Row -> summed loss of its tokens or classes, and what methods add to it."""
    gradients: Mapping[str, Tensor]
    """Trained weight -> gradient of the step's loss."""


class Bench:
    """Opens a recipe for properties to try. What takes long is made when it is first asked for."""

    def __init__(
        self,
        recipe: Recipe,
        *,
        scratch: Path,
        rows: int = 16,
        steps: int = 100,
        launch: Launch = launch,
    ) -> None:
        """`scratch`: an empty folder for all files; `rows`: how many are compared; `steps`: in how
        many some are learnt by heart; `launch`: starts commands of `vlds`.

        Errors: ValueError for what is wrong with the recipe, its files or its data, as `vlds
        train`.
        """
        self.scratch, self.num_rows, self.steps, self.launch = scratch, rows, steps, launch
        self.flips = 1
        """How often weights are rounded otherwise to see what that changes (`changes`)."""
        self.ranks: Ranks = start_ranks(LONGEST_WAIT)
        # Lists of answers are read once, as a run reads them.
        self.recipe = with_lists(recipe)
        self.alone = replace(
            self.recipe,
            output=str(scratch / "alone"),
            data=replace(self.recipe.data, num_workers=0),
            training=replace(self.recipe.training, best=None, precision="fp32", deepspeed=ALONE),
        )
        self.prepared: Prepared = prepare(self.alone, self.ranks, False)
        # What the bench replaces must be right too.
        given = self.recipe.training
        check_precision(given.precision, self.ranks.device)
        complete_deepspeed_config(find(given.deepspeed), self.recipe, self.prepared.cut)
        sources = self.prepared.train_sources or self.prepared.streamed_sources
        self.alone = with_steps(self.alone, sources)

    # What the recipe names.

    @cached_property
    def processor(self) -> Any:
        """The tokenizer or processor."""
        return self.recipe.model.load_processor()

    @cached_property
    def collator(self) -> Collator:
        """What makes batches."""
        return self.recipe.model.collator(self.processor, torch.float32)

    @cached_property
    def model(self) -> Model:
        """The model with its methods at the first step, in float32 and in training mode. Properties
        that train it give it back as it was (`borrowed`)."""
        model, _ = load_model(self.alone, self.prepared, self.processor, self.ranks, None)
        model.shows_clips = True  # whether or not the rows below have one
        return model.to(self.ranks.device).train()

    @contextmanager
    def without_methods(self) -> Iterator[Model]:
        """A second model without methods and heads, in evaluation mode and without gradients, which
        is let go at the end."""
        setup = ModelSetup(kind=self.recipe.model, seed=self.recipe.seed)
        model = build_model(setup, list(self.recipe.tasks), torch.float32, self.processor)
        with model.to(self.ranks.device).evaluating():
            yield model

    @contextmanager
    def borrowed(self) -> Iterator[Model]:
        """The model, whose trained weights and moving buffers are put back at the end."""
        model = self.model
        moving: dict[str, Tensor] = dict(model.moving_buffers())
        moving |= {name: p for name, p in model.named_parameters() if p.requires_grad}
        before = {name: tensor.detach().clone() for name, tensor in moving.items()}
        try:
            yield model
        finally:
            with torch.no_grad():
                for name, tensor in moving.items():
                    tensor.copy_(before[name])
            model.zero_grad(set_to_none=True)

    @cached_property
    def compares(self) -> str:
        """What compares the examples of a batch, which then stays whole; "" if nothing does."""
        for name, method in self.recipe.methods.items():
            if method.compares_examples:
                return f"methods.{name}"
        try:
            # For its errors alone: those of the recipe itself were raised before.
            self.recipe.model.check_tasks(self.recipe.tasks, 2)
        except ValueError:
            return "the model"
        return ""

    # Rows.

    @cached_property
    def noted(self) -> NotingCollator:
        """Some of the first training examples, as many of each task, as the run itself reads
        them."""
        noting = NotingCollator(self.collator)
        setup = StreamSetup(
            collator=noting, image=self.alone.image, seed=self.alone.seed,
            cut=self.prepared.cut, blank_images=self.alone.data.blank_images,
        )  # fmt: skip
        train, streamed = self.prepared.train_sources, self.prepared.streamed_sources
        stream = stream_of(self.alone, train, streamed, setup)
        each = max(2, self.num_rows // len(self.alone.tasks))
        # Shards without an index are read in their order, from the first position on.
        positions = list(range(stream.order.stride)) if streamed else []
        found = dict.fromkeys(range(len(train)), 0)
        for start in range(0, FARTHEST * bool(train), 4096):
            sources, *_ = stream.order.at(np.arange(start, start + 4096))
            for position, source in enumerate(sources.tolist(), start):
                if found[source] < each:
                    found[source] += 1
                    positions.append(position)
            if min(found.values()) == each:
                break
        parcel = stream.assembler().__getitems__(positions)
        parcel.unpack()
        replaced = {bad.position for bad in parcel.bad}
        for number, position in enumerate(positions if train else ()):
            if position not in replaced:
                (source,), (sample,), _ = stream.order.at(np.array([position]))
                dataset, index = train[source].locate(int(sample))
                noting.stored[number] = dataset.read(index)
        return noting

    @property
    def rows(self) -> Sequence[Row]:
        """The rows; `row.images` are indices of `images`."""
        return self.noted.rows

    @property
    def images(self) -> Images:
        """The distinct images of the rows."""
        return self.noted.images

    def of_task(self, name: str) -> list[int]:
        """Numbers of a task's rows."""
        index = list(self.recipe.tasks).index(name)
        return [number for number, row in enumerate(self.rows) if row.task_index == index]

    def batch(
        self,
        numbers: Sequence[int],
        *,
        evaluation: bool = False,
        images: Images = None,
        rows: Sequence[Row] | None = None,
    ) -> Batch:
        """The batch of some rows, on the device. `images`: others in place of the rows' own, with
        the same indices; `rows`: others in place of the rows, such as ones with other answers."""
        chosen = [(self.rows if rows is None else rows)[number] for number in numbers]
        chosen, some = only_used(chosen, self.images if images is None else images)
        batch = self.collator(chosen, some, evaluation=evaluation)
        return batch.to(self.ranks.device)

    # Computing.

    def measure(
        self,
        cuts: Sequence[Sequence[int]],
        *,
        model: Model | None = None,
        parts: int = 1,
        dropout: bool = False,
    ) -> Measured:
        """What a step of one process computes of these rows in these micro-batches, with the
        kernels of training. `model`: another one than the bench's; `parts`: as `data.parts`."""
        model, tasks = model or self.model, list(self.recipe.tasks.values())
        batches = [self.batch(numbers) for numbers in cuts]
        rules = [rule for rule in model.step_rules.values() if isinstance(rule, StepRule)]
        loss = StepLoss(
            batches, tasks=tasks, batch_losses=model.batch_losses, rules=rules, ranks=self.ranks
        )
        model.zero_grad(set_to_none=True)
        losses: dict[str, Tensor] = {}
        for numbers, batch in zip(cuts, batches, strict=True):
            # What is drawn depends on examples alone, so that each cut draws the same.
            place = (self.alone.seed, 0, 0, self.ranks.global_rank)
            off = nullcontext() if dropout else dropout_by(NoDropout())
            pieces = similar_rows(model.sizes(batch), parts) if parts > 1 else []
            with step_draws(model, *place), off:
                output = model(batch, loss.coefficients(batch).to(self.ranks.device), pieces)
                loss.backward_loss(output).backward()
            sums = sum(output.added.values(), output.token_nll_sum).detach().cpu()
            names = [f"row {number} ({self.rows[number].example.id})" for number in numbers]
            losses |= dict(zip(names, sums, strict=True))
        return Measured(losses, gradients_of(model))

    @cached_property
    def changes(self) -> dict[int, float]:
        """By how much losses (`OF_LOSSES`) and gradients (`OF_GRADIENTS`) of the rows change at
        most if the last bit of half of the weights flips, which is a rounding of each."""
        numbers = list(range(len(self.rows)))
        before = self.measure([numbers])
        changes = {OF_LOSSES: 0.0, OF_GRADIENTS: 0.0}
        for number in range(self.flips):
            with self.flipped(self.alone.seed + number):
                after = self.measure([numbers])
            losses = compare_numbers("losses", after.losses, before.losses, EXACT)
            gradients = compare_numbers("gradients", after.gradients, before.gradients, EXACT)
            changes[OF_LOSSES] = max(changes[OF_LOSSES], losses.difference)
            changes[OF_GRADIENTS] = max(changes[OF_GRADIENTS], gradients.difference)
        return changes

    def flip_often(self) -> bool:
        """Measure `changes` with more flips from now on; False if that is so already.

        Where a ReLU's input is 0 but for rounding, one rounding of a weight switches a unit of it
        on or off: the gradient jumps, but only some flips show it.
        """
        more = self.flips < FLIPS
        self.flips = FLIPS
        if more:
            vars(self).pop("changes", None)
        return more

    @contextmanager
    def flipped(self, seed: int) -> Iterator[None]:
        """Flips the last bit of half of the weights, and again at the end, which gives them back
        without a copy."""

        def flip() -> None:
            draw = torch.Generator().manual_seed(seed)
            for weight in self.model.parameters():
                if weight.dtype == torch.float32:
                    bits = torch.randint(2, weight.shape, generator=draw, dtype=torch.int32)
                    weight.data.view(torch.int32).bitwise_xor_(bits.to(weight.device))

        flip()
        try:
            yield
        finally:
            flip()

    def tolerance(self, many: int, dtype: torch.dtype = torch.float32) -> Tolerance:
        """How far a number that went through the whole model in a type may be off. `many`:
        `OF_LOSSES` or `OF_GRADIENTS`."""
        if ROUNDING[dtype] > ROUNDING[torch.float32]:
            # A row's numbers are rounded so, and sums over rows and ranks are fp32: what adds up
            # are as many random steps.
            return roundings(math.isqrt(many), dtype)
        usual, far = roundings(many, dtype), OF_CHANGES * self.changes[many]
        if not usual.share < far < math.inf:
            return usual
        return Tolerance(far, f"{OF_CHANGES} times the change by one rounding of each weight")

    @cached_property
    def makes_much_of_roundings(self) -> bool:
        """True if tolerances are wider than usual, and runs that differ by rounding part within a
        few steps: of SmolLM2 before an untrained connector, one rounding of each weight changes a
        row's loss by half after three."""
        return self.tolerance(OF_GRADIENTS) != roundings(OF_GRADIENTS, torch.float32)

    @cached_property
    def drops(self) -> bool:
        """True if the model trains with dropout."""
        with_it, without = (
            self.measure([[0]], dropout=dropout).losses for dropout in (True, False)
        )
        return any(not torch.equal(with_it[name], without[name]) for name in without)

    @contextmanager
    def plainly(self) -> Iterator[Model]:
        """The model with torch's own attention and norms, and without dropout."""

        def attention(
            query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
            dropout_p: float = 0.0, is_causal: bool = False, **how: Any,
        ) -> Tensor:  # fmt: skip
            return TORCH_ATTENTION(query, key, value, attn_mask, 0.0, is_causal, **how)

        self.model.context.begin_step(self.alone.seed, 0)
        with attention_by(attention), dropout_by(NoDropout()):
            yield self.model


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the gradients of what trains; zeros where no loss has read a weight."""
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()
        for name, p in model.named_parameters()
        if p.requires_grad
    }

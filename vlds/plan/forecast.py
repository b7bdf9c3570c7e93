"""What a micro-batch takes, as a function of its number of rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch

from vlds.config import Recipe
from vlds.data.order.batch_cut import BatchCut
from vlds.models.build import build_shapes
from vlds.models.model import Model
from vlds.plan.micro_batch import micro_batch
from vlds.plan.needs import Plan
from vlds.plan.rehearsal import NOTHING, Work, rehearse
from vlds.plan.replay import Operation, seconds_here
from vlds.schema import Batch
from vlds.training.deepspeed_config import cut_batches

FEW = 16
"""Rows below which half of a micro-batch says little of a larger one."""


@dataclass(frozen=True)
class Forecast:
    """A straight line through two rehearsals."""

    rows: int
    whole: Work
    """Of a micro-batch of `rows` rows."""
    row: Work
    """What one more row adds."""
    operations: Counter[Operation]
    """Of a micro-batch of `rows` rows."""
    passes: int = 1
    """How often the model runs over a batch."""
    further: Work = NOTHING
    """What the passes after the first take of `whole`, and the losses that compare passes."""

    def at(self, rows: int) -> Work:
        """What a micro-batch of so many rows takes."""
        pairs = zip(self.whole, self.row, strict=True)
        return Work(*(max(0, whole + row * (rows - self.rows)) for whole, row in pairs))

    def seconds(self, ranks: int = 1) -> tuple[float, float]:
        """Of the products and the other operations of a micro-batch of `rows` rows, if these ranks
        share this machine's threads; a rank has at least one."""
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(max(1, threads // ranks))
            return seconds_here(self.operations)
        finally:
            torch.set_num_threads(threads)

    def most_rows(self, memory: int) -> int:
        """The largest micro-batch that fits into so many bytes; 0 if none does."""
        spare = memory - self.whole.peak
        return max(0, self.rows + spare // max(1, self.row.peak))


def forecast(recipe: Recipe, cut: BatchCut, *, on_gpu: bool = False) -> Forecast:
    """Rehearse the recipe's largest micro-batch, and one of another size, on this CPU or a GPU.
    Packed weights are rehearsed as whole ones, into which they are unpacked layer by layer.

    Errors: ValueError if the data of a task cannot be opened; RuntimeError if the model's code asks
    for numbers.
    """
    setup = replace(recipe.model_setup, kind=recipe.model.unpacked())
    model = build_shapes(setup, list(recipe.tasks), recipe.training.dtype)
    batch = micro_batch(recipe, model, cut)
    rows, parts = len(batch.ids), recipe.data.parts
    whole, operations = rehearse(model, batch, parts, on_gpu=on_gpu)
    other = other_batch(recipe, model, batch)
    if other is None:
        row = Work(*(number // rows for number in whole))
    else:
        others = len(other.ids)
        work = rehearse(model, other, parts, on_gpu=on_gpu).work
        row = Work(*((a - b) // (rows - others) for a, b in zip(whole, work, strict=True)))
    passes, further = model.num_passes, NOTHING
    if passes > 1:
        one = rehearse(single_pass(model), batch, parts, on_gpu=on_gpu).work
        further = Work(*(max(0, a - b) for a, b in zip(whole, one, strict=True)))
    return Forecast(rows, whole, row, operations, passes, further)


def single_pass(model: Model) -> Model:
    """The model, without the losses that compare passes."""
    losses = model.batch_losses.items()
    model.batch_losses = {name: loss for name, loss in losses if loss.passes == 1}
    return model


def other_batch(recipe: Recipe, model: Model, batch: Batch) -> Batch | None:
    """A micro-batch of another size: half of a large one; for a small one, more rows of a global
    batch, which are padded to the longest of more. None if it has no more."""
    rows, parts = len(batch.ids), recipe.data.parts
    if rows >= max(FEW, 2 * parts):
        return batch.select(torch.arange(rows // 2))
    larger = micro_batch(recipe, model, BatchCut())
    larger = larger.select(torch.arange(min(len(larger.ids), 2 * FEW)))
    return larger if len(larger.ids) > rows else None


def forecast_or_reason(recipe: Recipe, world_size: int, *, on_gpu: bool = False) -> Forecast | str:
    """A forecast, or why there is none: the recipe's data or tokenizer cannot be read here, or the
    model cannot be rehearsed."""
    try:
        return forecast(recipe, cut_batches(recipe, world_size), on_gpu=on_gpu)
    except ValueError as error:
        return str(error)
    except RuntimeError as error:
        return f"this model's code cannot run without numbers ({str(error).splitlines()[0]})"


def forecasts_of(
    recipe: Recipe, plans: Iterable[Plan], *, on_gpu: bool = False
) -> Iterator[tuple[Plan, Forecast | str]]:
    """Each plan with the forecast of its micro-batch, or why there is none; plans whose
    micro-batches are of one size share it."""
    known: dict[int, Forecast | str] = {}
    for plan in plans:
        if (rows := plan.micro_batch) not in known:
            known[rows] = forecast_or_reason(recipe, plan.world_size, on_gpu=on_gpu)
        yield plan, known[rows]

"""What a micro-batch takes, as a function of its number of rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import torch

from vlds.config import Recipe
from vlds.data.order.batch_cut import BatchCut
from vlds.models.build import build_shapes
from vlds.plan.micro_batch import micro_batch
from vlds.plan.rehearsal import Work, rehearse
from vlds.plan.replay import Operation, seconds_here
from vlds.training.deepspeed_config import cut_batches


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

    def at(self, rows: int) -> Work:
        """What a micro-batch of so many rows takes."""
        pairs = zip(self.whole, self.row, strict=True)
        return Work(*(max(0, whole + row * (rows - self.rows)) for whole, row in pairs))

    def seconds_here(self, rows: int, ranks: int = 1) -> tuple[float, float]:
        """Of the products and the other operations of a micro-batch of so many rows, if these ranks
        share this machine's threads."""
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(max(1, threads // ranks))
            products, others = seconds_here(self.operations)
        finally:
            torch.set_num_threads(threads)
        found = self.at(rows)
        products *= found.flops / max(1, self.whole.flops)
        others *= found.moved / max(1, self.whole.moved)
        return products, others

    def most_rows(self, memory: int) -> int:
        """The largest micro-batch that fits into so many bytes; 0 if none does."""
        spare = memory - self.whole.peak
        return max(0, self.rows + spare // max(1, self.row.peak))


def forecast(recipe: Recipe, cut: BatchCut, *, on_gpu: bool = False) -> Forecast:
    """Rehearse the recipe's largest micro-batch, and half of it, on this CPU or a GPU. Packed
    weights are rehearsed as whole ones, into which they are unpacked layer by layer.

    Errors: ValueError if the data of a task cannot be opened; RuntimeError if the model's code asks
    for numbers.
    """
    setup = replace(recipe.model_setup, kind=recipe.model.unpacked())
    model = build_shapes(setup, list(recipe.tasks), recipe.training.dtype)
    batch = micro_batch(recipe, model, cut)
    rows, parts = len(batch.ids), recipe.data.parts
    whole, operations = rehearse(model, batch, parts, on_gpu=on_gpu)
    if rows < 2 * parts:
        return Forecast(rows, whole, Work(*(number // rows for number in whole)), operations)
    half = rehearse(model, batch.select(torch.arange(rows // 2)), parts, on_gpu=on_gpu).work
    pairs = zip(whole, half, strict=True)
    row = Work(*((a - b) // (rows - rows // 2) for a, b in pairs))
    return Forecast(rows, whole, row, operations)


def forecast_or_reason(recipe: Recipe, world_size: int, *, on_gpu: bool = False) -> Forecast | str:
    """A forecast, or why there is none: the recipe's data or tokenizer cannot be read here, or the
    model cannot be rehearsed."""
    try:
        return forecast(recipe, cut_batches(recipe, world_size), on_gpu=on_gpu)
    except ValueError as error:
        return str(error)
    except RuntimeError as error:
        return f"this model's code cannot run without numbers ({str(error).splitlines()[0]})"

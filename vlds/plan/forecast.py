"""What a micro-batch takes, as a function of its number of rows."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace

import torch

from vlds.config import Recipe
from vlds.data.order.batch_cut import BatchCut
from vlds.models.build import build_shapes
from vlds.plan.micro_batch import micro_batch
from vlds.plan.rehearsal import Rehearsed, rehearse
from vlds.training.deepspeed_config import cut_batches


@dataclass(frozen=True)
class Forecast:
    """A straight line through two rehearsals."""

    rows: int
    whole: Rehearsed
    """Of a micro-batch of `rows` rows."""
    row: Rehearsed
    """What one more row adds."""

    def at(self, rows: int) -> Rehearsed:
        """What a micro-batch of so many rows takes."""
        pairs = zip(astuple(self.whole), astuple(self.row), strict=True)
        return Rehearsed(*(max(0, whole + row * (rows - self.rows)) for whole, row in pairs))

    def most_rows(self, memory: int) -> int:
        """The largest micro-batch that fits into so many bytes; 0 if none does."""
        spare = memory - self.whole.peak
        return max(0, self.rows + spare // max(1, self.row.peak))


def forecast(recipe: Recipe, cut: BatchCut) -> Forecast:
    """Rehearse the recipe's largest micro-batch, and half of it. Packed weights are rehearsed as
    whole ones, into which they are unpacked layer by layer.

    Errors: ValueError if the data of a task cannot be opened; RuntimeError if the model's code asks
    for numbers.
    """
    setup = replace(recipe.model_setup, kind=recipe.model.unpacked())
    model = build_shapes(setup, list(recipe.tasks), recipe.training.dtype)
    batch = micro_batch(recipe, model, cut)
    rows, parts = len(batch.ids), recipe.data.parts
    whole = rehearse(model, batch, parts)
    if rows < 2 * parts:
        return Forecast(rows, whole, Rehearsed(*(number // rows for number in astuple(whole))))
    half = rehearse(model, batch.select(torch.arange(rows // 2)), parts)
    pairs = zip(astuple(whole), astuple(half), strict=True)
    return Forecast(rows, whole, Rehearsed(*((a - b) // (rows - rows // 2) for a, b in pairs)))


def forecast_or_reason(recipe: Recipe, world_size: int) -> Forecast | str:
    """A forecast, or why there is none: the recipe's data or tokenizer cannot be read here, or the
    model cannot be rehearsed."""
    try:
        return forecast(recipe, cut_batches(recipe, world_size))
    except ValueError as error:
        return str(error)
    except RuntimeError as error:
        return f"this model's code cannot run without numbers ({str(error).splitlines()[0]})"

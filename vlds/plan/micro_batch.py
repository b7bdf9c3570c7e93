"""The micro-batch that a plan rehearses: the largest of the first steps of the recipe."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import chain, islice

from vlds.config import Recipe
from vlds.data.order.batch_cut import BatchCut
from vlds.data.streams.assemble import StreamSetup
from vlds.data.streams.stream import TrainStream
from vlds.evaluation.sources import training_sources
from vlds.models.model import Model
from vlds.schema import Batch

NUM_STEPS = 4
"""Steps whose micro-batches are looked at."""


def micro_batch(recipe: Recipe, model: Model, cut: BatchCut) -> Batch:
    """What the first rank computes at once.

    Errors: ValueError if the data of a task cannot be opened.
    """
    setup = StreamSetup(
        collator=recipe.model.collator(recipe.model.load_processor()),
        image=recipe.image,
        seed=recipe.seed,
        cut=cut,
        blank_images=recipe.data.blank_images,
    )
    data = replace(recipe.data, num_workers=0)
    stream = TrainStream(training_sources(recipe), data, setup)
    return largest(chain.from_iterable(islice(stream.steps(), NUM_STEPS)), model)


def largest(batches: Iterable[Batch], model: Model) -> Batch:
    """The batch with the most tokens, padding included."""
    return max(batches, key=lambda batch: len(batch.ids) * int(model.sizes(batch).amax(0).sum()))

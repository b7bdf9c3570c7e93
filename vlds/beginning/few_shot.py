"""Fills the caches of few-shot methods with the training pictures' embeddings before training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vlds.config import Recipe
from vlds.data.shards.decode import decode_pictures
from vlds.data.shards.store import Dataset
from vlds.data.streams.source import Source
from vlds.heads.texts import unit
from vlds.methods.few_shot import CacheExtension
from vlds.models.dual_encoder_model import DualEncoderModel
from vlds.models.model import Model
from vlds.models.picture_views import View
from vlds.runtime.ranks import Ranks
from vlds.schema import ImageSpec


def caches_of(model: Model) -> dict[str, CacheExtension]:
    """Task -> the cache of its head, for tasks that have one."""
    if not isinstance(model, DualEncoderModel):
        return {}
    return {name: e for name, _, e in model.extensions() if isinstance(e, CacheExtension)}


@torch.no_grad()
def fill_caches(model: Model, recipe: Recipe, sources: Sequence[Source], ranks: Ranks) -> None:
    """Embed the training pictures of each task with a cache, one embedding a picture: the direction
    of the mean over its views. Ranks share the pictures. Collective.

    Errors: ValueError if a task reads several data sets, SkipSample if a picture cannot be read.
    """
    for name, cache in caches_of(model).items():
        assert isinstance(model, DualEncoderModel)
        (source,) = (source for source in sources if source.name == name)
        if len(source.datasets) != 1:
            raise ValueError(
                f"tasks.{name}.train: names {len(source.datasets)} data sets, and a cache of few "
                "shots is of one; name one"
            )
        model.to(ranks.device).eval()
        keys = embedded(model, source.datasets[0], recipe, cache, ranks)
        numbers = source.datasets[0].class_numbers()
        rows = torch.from_numpy(np.argsort(numbers, kind="stable"))  # equally many of each class
        cache.set_keys(keys[rows].view(cache.keys.shape).to(cache.keys))
        model.train()


def embedded(
    model: DualEncoderModel,
    dataset: Dataset,
    recipe: Recipe,
    cache: CacheExtension,
    ranks: Ranks,
) -> Tensor:
    """(n, d) float64 of the samples of a data set."""
    image = recipe.image
    assert isinstance(image, ImageSpec)
    means = torch.zeros(dataset.num_samples, model.state_width, dtype=torch.float64)
    for number in range(ranks.global_rank, dataset.num_samples, ranks.world_size):
        picture = torch.from_numpy(decode_pictures(dataset.read(number), image)[0])
        picture = picture.to(ranks.device)
        numbers = range(1, cache.views + 1) if cache.views else [0]
        embeddings = model.embed_views([View(picture, view) for view in numbers])
        means[number] = unit(embeddings.double().mean(0)).cpu()
    return ranks.sum(means)

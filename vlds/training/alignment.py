"""What a model learns before it trains: region-word alignment, and the caches of few-shot methods
(`fill_caches`).

Region-word alignment: teach a vision encoder with random weights which words belong to each of
its tokens.

A tiny model cannot learn to see and to read at once in minutes. Before training, the vision
encoder and the visual embedding learn to put the visual token of a cell near the embeddings of the
words that describe the objects in it:

    loss = - sum_w log softmax(E v_cell / sqrt(d))[w] / |words(cell)|

averaged over cells, with E the shared token table (which trains too); the word of empty cells is
</s>. No head is added, so nothing is thrown away. The words come from the objects of GQA's scene
graphs (name, attributes, box), which `vlds data gqa` keeps with the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlds.data.shards.pictures import decode_image, decode_pictures
from vlds.data.shards.store import open_dataset
from vlds.data.streams.source import Source
from vlds.models.collate import View
from vlds.models.heads.texts import TextClasses, unit
from vlds.models.methods.tip_adapter import CacheExtension
from vlds.models.model import Model
from vlds.models.vision.base import freeze, thaw
from vlds.models.visual_embedding import VisualEmbedding
from vlds.recipe.config import Recipe
from vlds.runtime.ranks import Ranks
from vlds.runtime.terminal import tell
from vlds.schema import ImageSpec, PictureSpec, Sample


@dataclass(frozen=True)
class Regions:
    """Pictures with the words of every cell."""

    pixels: Tensor
    """(u, 3, h, w) uint8."""
    words: Tensor
    """(u, v, vocabulary) float32: what each cell's distribution over words should be."""


def align(model: Model, recipe: Recipe, ranks: Ranks) -> None:
    """Train vision encoder, visual embedding and token table on region words; afterwards, the same
    weights are frozen as before.

    Every rank does the same work, since the set is small. Errors: ValueError if the model has
    pretrained weights, or the data set no objects.
    """
    config = recipe.alignment
    assert config is not None
    vision, embedding = recipe.model.visual_parts(model)
    regions = read_regions(recipe, model)
    table = model.backbone.get_input_embeddings().weight
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    was_frozen = vision.frozen
    thaw(vision)
    embedding.requires_grad_(True)
    table.requires_grad_(True)
    parameters = [*vision.parameters(), *embedding.parameters(), table]
    # Fused, because its square roots are exact: those of MKL differ between processors.
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, config.steps)
    # The same draws on all ranks, which therefore end with the same weights.
    generator = np.random.default_rng(recipe.seed)
    for _ in range(config.steps):
        chosen = torch.from_numpy(generator.integers(len(regions.pixels), size=config.batch_size))
        # Cross-entropy between each cell's words and what its visual token is near to.
        tokens = embedding.embed(vision(regions.pixels[chosen]), None)
        logits = tokens @ table.T / tokens.shape[-1] ** 0.5
        loss = F.cross_entropy(logits.flatten(0, 1), regions.words[chosen].flatten(0, 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    if was_frozen:
        freeze(vision)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(wanted[name])
    if ranks.is_first:
        tell(
            f"aligned the vision encoder on {len(regions.pixels)} pictures: loss {loss.item():.3f}",
            flush=True,
        )


def check_alignment(recipe: Recipe, model: Model) -> tuple[PictureSpec, VisualEmbedding]:
    """What alignment reads and trains; ValueError if the model has no pictures or no such parts."""
    if recipe.image is None:
        raise ValueError("alignment: the vision encoder reads stored features; leave alignment out")
    return recipe.image, recipe.model.visual_parts(model)[1]


def read_regions(recipe: Recipe, model: Model) -> Regions:
    """Decode all pictures of the data set and spell out their cells."""
    config, tokenizer = recipe.alignment, model.tokenizer
    assert config is not None
    image, embedding = check_alignment(recipe, model)
    dataset = open_dataset(config.data, recipe.data.shard_cache)
    pixels, words = [], []
    vocabulary = model.backbone.get_input_embeddings().num_embeddings

    @cache
    def spell(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    for number in range(dataset.num_samples):
        sample = dataset.read(number)
        array = decode_image(sample.images[0], image, f"of sample {sample.key}")
        pixels.append(torch.from_numpy(array))
        grid, empty = embedding.grid, tokenizer.eos_token_id
        words.append(cell_words(sample, grid, vocabulary, spell, empty))
    return Regions(torch.stack(pixels), torch.stack(words))


def cell_words(
    sample: Sample,
    grid: int,
    vocabulary: int,
    spell: Callable[[str], list[int]],
    empty: int,
) -> Tensor:
    """(v, vocabulary) an even distribution over the words of the objects whose centre lies in each
    cell; the token `empty` if there are none. `spell` gives a text's tokens.

    Errors: ValueError if the sample has no scene graph.
    """
    objects = (sample.extra.get("source") or {}).get("objects")
    if objects is None:
        raise ValueError(
            f"alignment.data: sample {sample.id} of data set {sample.dataset} has no objects; name "
            "a gqa data set that was packed with its sceneGraphs file, or leave alignment out"
        )
    width, height = sample.extra["size"][0]
    words = np.zeros((grid * grid, vocabulary), np.float32)
    for entry in objects:
        tokens = spell(" ".join([*entry["attributes"], entry["name"]]))
        # += would count repeated tokens once.
        np.add.at(words[cell_of(entry, width, height, grid)], tokens, 1)
    words[words.sum(1) == 0, empty] = 1
    return torch.from_numpy(words / words.sum(1, keepdims=True))


def cell_of(entry: Mapping[str, Any], width: float, height: float, grid: int) -> int:
    """The cell, counted row by row, in which the centre of a scene graph's object lies."""
    # With a grid of 4, a centre at (150, 60) of 200 x 100 pixels: column 3, row 2, cell 11.
    column = int((entry["x"] + entry["w"] / 2) / width * grid)
    row = int((entry["y"] + entry["h"] / 2) / height * grid)
    return row * grid + column


@torch.no_grad()
def fill_caches(model: Model, recipe: Recipe, sources: Sequence[Source], ranks: Ranks) -> None:
    """Embed the training pictures of each task with a cache, one embedding a picture: the direction
    of the mean over its views. Ranks share the pictures. Collective.

    Errors: ValueError if a task reads several data sets, SkipSample if a picture cannot be read.
    """
    for name, head in model.heads.items():
        extension = head.extension if isinstance(head, TextClasses) else None
        if not isinstance(extension, CacheExtension):
            continue
        if isinstance(extension.keys, nn.Parameter) and extension.keys.any():
            continue  # they were zeros, and another run has given what it had learned (`start`)
        (source,) = (source for source in sources if source.name == name)
        if len(source.datasets) != 1:
            raise ValueError(
                f"tasks.{name}.train: names {len(source.datasets)} data sets, and a cache of few "
                "shots is of one; name one"
            )
        model.to(ranks.device).eval()
        image, dataset = recipe.image, source.datasets[0]
        assert isinstance(image, ImageSpec)
        assert model.state_width is not None
        means = torch.zeros(dataset.num_samples, model.state_width, dtype=torch.float64)
        for number in range(ranks.global_rank, dataset.num_samples, ranks.world_size):
            picture = torch.from_numpy(decode_pictures(dataset.read(number), image)[0])
            picture = picture.to(ranks.device)
            # View 0 is the picture as it is.
            views = range(1, extension.views + 1) if extension.views else [0]
            embeddings = model.embed_views([View(picture, view) for view in views])
            means[number] = unit(embeddings.double().mean(0)).cpu()
        keys = ranks.sum(means)  # the other ranks' rows are 0 here
        numbers = dataset.class_numbers()
        # Group the pictures by class, of which each has equally many: 1 0 1 0 -> rows 1 3 0 2.
        rows = torch.from_numpy(np.argsort(numbers, kind="stable"))
        extension.set_keys(keys[rows].view(extension.keys.shape).to(extension.keys))
        model.train()

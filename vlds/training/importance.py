"""`vlds importance`: how important the weights of a recipe's backbone are for its tasks' texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from vlds.data.order.mixed_order import BatchCut
from vlds.data.streams.assemble import StreamSetup
from vlds.data.streams.stream import TrainStream
from vlds.evaluation.sources import training_sources
from vlds.models.methods.importance import BACKBONE, layers_hash, squared_gradients
from vlds.recipe.config import Recipe
from vlds.runtime.files import whole_file
from vlds.runtime.terminal import follow
from vlds.schema import IGNORED_LABEL


def write_importance(recipe: Recipe, out: Path, num_samples: int) -> None:
    """Write the importance of each weight of the backbone, by Hugging Face's names, over so many
    examples in the order of training. Pictures are not read: LST's backbone sees none.

    Errors: ValueError if the recipe's model has no encoder-decoder, or its data cannot be opened.
    """
    model = recipe.model.encoder_decoder()
    texts = follow(islice(texts_of(recipe), num_samples), "adding gradients", num_samples)
    found = squared_gradients(model, texts)
    # The hash ties the file to these weights; a backbone that is drawn at random has no source.
    about = None
    if "backbone" in recipe.model.sources:
        about = {BACKBONE: layers_hash(dict(model.named_parameters()), found)}
    tensors = {name: tensor.contiguous() for name, tensor in found.items()}
    with whole_file(out, new=True) as partial:
        partial.write_bytes(save(tensors, about))


def texts_of(recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
    """Prompt (1, l) and target (1, t) of one example after another, without padding."""
    setup = StreamSetup(
        collator=recipe.model.collator(recipe.model.load_processor()),
        image=recipe.image,
        seed=recipe.seed,
        cut=BatchCut(),
    )
    data = replace(recipe.data, num_workers=0)
    # Tasks with heads have texts too: what the backbone learned is in its words.
    written = {name: replace(task, head=None) for name, task in recipe.tasks.items()}
    sources = training_sources(replace(recipe, tasks=written))
    for step in TrainStream(sources, data, setup).steps():
        for batch in step:
            assert batch.labels is not None
            for prompt, mask, target in zip(
                batch.input_ids, batch.attention_mask, batch.labels, strict=True
            ):
                yield prompt[mask.bool()][None], target[target != IGNORED_LABEL][None]

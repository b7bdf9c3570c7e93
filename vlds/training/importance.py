"""`vlds importance`: how important the weights of a recipe's backbone are for its tasks' texts."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_get_local_grad
from torch import Tensor, distributed

from vlds.data.order.mixed_order import BatchCut
from vlds.data.streams.assemble import StreamSetup
from vlds.data.streams.stream import TrainStream
from vlds.evaluation.sources import training_sources
from vlds.models.kernels.fused import restore_linear
from vlds.models.methods.importance import BACKBONE, layers_hash, squared_gradients
from vlds.models.partitioned import gathered, partitioned_reading
from vlds.recipe.config import Recipe
from vlds.runtime.deepspeed_start import LONGEST_WAIT, start_ranks
from vlds.runtime.files import whole_file
from vlds.runtime.ranks import Ranks, rank_from_environment
from vlds.runtime.terminal import follow, tell
from vlds.schema import IGNORED_LABEL


def write_importance(recipe: Recipe, out: Path, num_samples: int) -> None:
    """Write the importance of each weight of the backbone, by Hugging Face's names, over so many
    examples in the order of training. Several ranks hold a part each of the backbone and of the
    sums, and all read the same examples. Pictures are not read: LST's backbone sees none.

    Errors: ValueError if the recipe's model has no encoder-decoder, or its data cannot be opened.
    """
    ranks = rank_from_environment()
    if ranks.world_size > 1:
        ranks = start_ranks(LONGEST_WAIT)
    with (
        partitioned_reading(torch.float32, ranks.world_size)
        if ranks.world_size > 1
        else nullcontext()
    ):
        model = recipe.model.encoder_decoder()
    texts: Iterator[tuple[Tensor, Tensor]] = (
        (prompt.to(ranks.device), target.to(ranks.device))
        for prompt, target in islice(texts_of(recipe), num_samples)
    )
    if ranks.is_first:
        texts = follow(texts, "adding gradients", num_samples)
    if ranks.world_size == 1:
        sums = squared_gradients(model.to(ranks.device), texts)
    else:
        sums = squares_of_parts(model, texts, ranks)
    weights = dict(model.named_parameters())
    shapes = {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in weights.items()}
    # The hash ties the file to these weights; a backbone that is drawn at random has no source.
    about = None
    if "backbone" in recipe.model.sources:
        about = {BACKBONE: layers_hash(WholeWeights(weights), weights)}

    def whole(name: str) -> Tensor:
        """Collective."""
        if ranks.world_size == 1:
            return sums[name]
        parts = [torch.empty_like(sums[name]) for _ in range(ranks.world_size)]
        distributed.all_gather(parts, sums[name])
        # The last ranks' parts end in padding.
        return torch.cat(parts)[: math.prod(shapes[name])]

    with whole_file(out, new=True) if ranks.is_first else nullcontext(Path(os.devnull)) as partial:
        write_floats(partial, shapes, map(whole, shapes), about)
    if ranks.is_first:
        tell(f"wrote {out}")


class WholeWeights(Mapping[str, Tensor]):
    """Weights of which each is whole when it is asked for. Collective under stage 3."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights

    def __getitem__(self, name: str) -> Tensor:
        with gathered([self._weights[name]]):
            return self._weights[name].detach().clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def squares_of_parts(
    model: Any, examples: Iterable[tuple[Tensor, Tensor]], ranks: Ranks
) -> dict[str, Tensor]:
    """This rank's part of each sum that `squared_gradients` computes, for a model that stage 3 has
    partitioned. Collective: all ranks pass the same examples."""
    model.eval().requires_grad_(True)
    config = {
        "zero_optimization": {"stage": 3},
        "train_batch_size": ranks.world_size,
        "train_micro_batch_size_per_gpu": 1,
        "zero_allow_untested_optimizer": True,
    }
    # Its steps move nothing: they only make room for the next example's gradients.
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    engine, *_ = deepspeed.initialize(model=model, optimizer=still, config=config)
    restore_linear()  # `initialize` replaces torch's function, for the whole program
    engine.eval()
    sums = {
        name: torch.zeros(p.ds_tensor.ds_numel, device=ranks.device)
        for name, p in model.named_parameters()
    }
    for input_ids, labels in examples:
        engine.backward(engine(input_ids=input_ids, labels=labels).loss)
        for name, parameter in model.named_parameters():
            # The mean over ranks, which have the same gradients.
            if (part := safe_get_local_grad(parameter)) is not None:
                sums[name] += part.square()
        engine.step()
    return sums


def write_floats(
    file: Path,
    shapes: Mapping[str, tuple[int, ...]],
    values: Iterable[Tensor],
    about: dict[str, str] | None,
) -> None:
    """Write a safetensors file of fp32, one tensor after another: its own library wants all of them
    in memory."""
    header: dict[str, Any] = {} if about is None else {"__metadata__": about}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # data begin at a multiple of eight
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for tensor in values:
            stream.write(tensor.cpu().contiguous().numpy().data)


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

"""What the libraries that weights come from compute beside our models, for `vlds prove`.

A library opens the files that the recipe names by its own code alone; where weights are random, it
gets those of our model, and everything else is its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPImageProcessor, GenerationConfig

from vlds.models.loading.gate import open_checked, quiet, unpartitioned


@dataclass(frozen=True)
class Peer:
    """The same numbers by two programs."""

    what: str
    ours: Mapping[str, Tensor]
    """Row or part -> its numbers; whole numbers, such as tokens, must be the same."""
    theirs: Mapping[str, Tensor]


def opened(
    model_class: Any,
    source: str | None,
    field: str,
    config: Any,
    state: Mapping[str, Tensor],
    **options: Any,
) -> Any:
    """A library's model in float32 and evaluation mode, from a folder or hub name that `field`
    names; without one, with the weights in `state`. `options`: of the class. It is where the
    tensors of `state` are.

    Errors: ValueError if the class cannot hold these weights.
    """
    if source is None:
        with unpartitioned():
            theirs = model_class(config, **options)
        shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
        try:
            theirs.load_state_dict({n: t.reshape(shapes.get(n, t.shape)) for n, t in state.items()})
        except RuntimeError as error:
            raise ValueError(f"{model_class.__name__} cannot hold the weights: {error}") from None
    else:
        with quiet(), unpartitioned():
            theirs = open_checked(
                model_class, source, field, config=config, dtype=torch.float32, **options
            )
    if hasattr(theirs, "generation_config"):
        theirs.generation_config = GenerationConfig()  # a checkpoint's own would leak
    device = next(iter(state.values())).device
    return theirs.requires_grad_(False).eval().to(device)


def clip_pixels(source: str | None, field: str, pictures: Tensor) -> Tensor:
    """Pictures (u, 3, h, w) uint8, as CLIP's processor normalises them: that of a folder or hub
    name if it has one. Their size is the model's already, so that none is cut."""
    whole = {"do_resize": False, "do_center_crop": False}
    processor = CLIPImageProcessor(**whole)
    has_own = source is not None and (
        not Path(source).exists() or (Path(source) / "preprocessor_config.json").is_file()
    )
    if has_own:
        try:
            processor = open_checked(CLIPImageProcessor, str(source), field, **whole)
        except OSError:  # a name on the hub without one
            has_own = False
    pixels: Tensor = processor(list(pictures.cpu()), return_tensors="pt")["pixel_values"]
    return pixels.to(pictures.device)

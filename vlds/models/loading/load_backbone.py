"""Opens a model of Hugging Face that becomes a backbone."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig

from vlds.backbones.base import unique_state
from vlds.models.loading.quantised import Bits, load_language, pack_shapes
from vlds.models.loading.steady_buffers import steady_buffers
from vlds.pretrained.files import reading
from vlds.vision.base import on_meta


def load_backbone(
    model_class: Any,
    config: Any,
    path: str | None,
    dtype: torch.dtype,
    bits: Bits | None = None,
) -> tuple[Any, set[str]]:
    """The model with the weights of a folder or hub name, and the names of its tensors that come
    from there. Without a path, random weights; on the meta device, shapes. `bits`: those of packed
    layers.

    Errors: SourceError that begins with `model`.
    """
    names: set[str] = set()
    if path is None or on_meta():
        field = "model.config: it" if path is None else f"model.path: {path}"
        with reading(f"{field} describes no model"):
            model = model_class(config)
        with steady_buffers(model):
            model.to(dtype)
        pack_shapes(model, bits)
    else:
        model, missing = load_language(model_class, path, config, dtype, bits)
        names = {name for name, _ in unique_state(model)} - missing
    # Values of the checkpoint would leak into `generate` wherever ours are None.
    model.generation_config = GenerationConfig()
    return model, names

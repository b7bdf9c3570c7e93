"""What a rank holds of a model between steps, in bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from vlds.models.loading.quantised import scale_bytes
from vlds.models.model import Model
from vlds.training.adamw import MOMENTS
from vlds.training.step_rules import buffer_bytes


def held_bytes(model: Model, masters: Iterable[Tensor]) -> dict[str, int]:
    """Bytes of frozen weights, trainable weights and optimizer state on this rank. `masters`: its
    flat fp32 tensors."""
    sizes = {"frozen": 0, "trainable": 0, "optimizer": 0}
    for parameter in model.parameters():
        sizes["trainable" if parameter.requires_grad else "frozen"] += stored_bytes(parameter)
    sizes["frozen"] += scale_bytes(model)
    sizes["optimizer"] = sum((1 + len(MOMENTS)) * flat.nbytes for flat in masters)
    sizes["optimizer"] += buffer_bytes(model.step_rules)
    return sizes


def stored_bytes(parameter: Any) -> int:
    """Bytes of a weight on this rank between steps."""
    partition = getattr(parameter, "ds_tensor", parameter)
    stored: int = partition.nbytes
    is_whole = parameter.data_ptr() != partition.data_ptr()
    if getattr(parameter, "ds_persist", False) and is_whole:
        # Below stage 3's persistence threshold: it stays whole beside its partition.
        stored += parameter.ds_numel * parameter.element_size()
    return stored

"""Stage 3 partitions the frozen backbone while it is loaded; a tensor of it can be made whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed
from transformers import PreTrainedModel
from transformers.integrations import deepspeed as hf_deepspeed


class LoadingHint:
    """What transformers asks of its HfDeepSpeedConfig, without the `accelerate` package that class
    needs."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config

    def is_zero3(self) -> bool:
        """Asked by transformers before it creates a model."""
        return bool(self.config["zero_optimization"]["stage"] == 3)


@contextmanager
def partitioned_loading(config: Mapping[str, Any]) -> Iterator[None]:
    """Inside, `from_pretrained` partitions each weight as it comes from disk, if DeepSpeed's
    config says stage 3.

    No rank ever holds the whole model. The hint is taken back afterwards: it is global to
    transformers.
    """
    hint = LoadingHint(config)
    hf_deepspeed.set_hf_deepspeed_config(hint)
    try:
        with tying_by_value():
            yield
    finally:
        hf_deepspeed.unset_hf_deepspeed_config()


@contextmanager
def tying_by_value() -> Iterator[None]:
    """Inside, transformers ties partitioned weights of a checkpoint only if they are equal.

    It means to do so, but what it compares is the empty tensor that stands for a partitioned
    weight, so that it would replace any output head by the token table.
    """
    tie_all = PreTrainedModel.tie_weights

    def tie_weights(
        model: Any, missing_keys: set[str] | None = None, recompute_mapping: bool = True
    ) -> None:
        if missing_keys is not None:  # a checkpoint has been loaded
            forget_unequal_ties(model, missing_keys)
        tie_all(model, missing_keys, recompute_mapping)

    PreTrainedModel.tie_weights = tie_weights
    try:
        yield
    finally:
        PreTrainedModel.tie_weights = tie_all


def forget_unequal_ties(model: Any, missing_keys: set[str]) -> None:
    """Strike pairs of partitioned weights that differ off the model's list of ties."""
    for target, source in list(model.all_tied_weights_keys.items()):
        pair = model.get_parameter(target), model.get_parameter(source)
        partitioned = hasattr(pair[0], "ds_tensor") and hasattr(pair[1], "ds_tensor")
        if missing_keys.isdisjoint((target, source)) and partitioned and not equal_parts(*pair):
            del model.all_tied_weights_keys[target]


def equal_parts(source: Any, target: Any) -> bool:
    """True if two partitioned weights are equal. Collective."""
    if source.ds_shape != target.ds_shape:
        return False
    # The last ranks' parts end in padding.
    size = source.ds_tensor.ds_numel
    start = size * distributed.get_rank(source.ds_process_group)
    length = min(max(source.ds_numel - start, 0), size)
    equal = torch.equal(source.ds_tensor[:length], target.ds_tensor[:length])
    verdict = torch.tensor(int(equal), device=source.ds_tensor.device)
    distributed.all_reduce(verdict, distributed.ReduceOp.MIN, source.ds_process_group)
    return bool(verdict)


@contextmanager
def whole(tensor: Tensor) -> Iterator[None]:
    """Inside, a tensor that stage 3 has partitioned is whole on every rank. What was written into
    it is partitioned again; the first rank's values count. Collective."""
    if not hasattr(tensor, "ds_tensor"):
        yield
        return
    import deepspeed  # seconds, and needed only here

    with deepspeed.zero.GatheredParameters(tensor, modifier_rank=0):
        yield

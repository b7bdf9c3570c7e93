"""Stage 3 partitions the frozen backbone while it is loaded; a tensor of it can be made whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed
from transformers import modeling_utils
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
        with compared_by_parts():
            yield
    finally:
        hf_deepspeed.unset_hf_deepspeed_config()


@contextmanager
def compared_by_parts() -> Iterator[None]:
    """Inside, transformers compares the values of partitioned weights before it ties them.

    Without this it compares what a partitioned weight leaves in its place, an empty tensor, and so
    replaces any output head by the token table. A private name of transformers 5.
    """
    compare_whole = modeling_utils._tied_params_are_equal

    def compare(source: Tensor, target: Tensor) -> bool:
        if not hasattr(source, "ds_tensor"):
            return bool(compare_whole(source, target))
        return equal_parts(source, target)

    modeling_utils._tied_params_are_equal = compare
    try:
        yield
    finally:
        modeling_utils._tied_params_are_equal = compare_whole


def equal_parts(source: Any, target: Any) -> bool:
    """Whether two partitioned weights are equal. Collective."""
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

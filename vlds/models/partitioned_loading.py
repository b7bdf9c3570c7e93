"""Stage 3 partitions the frozen backbone while it is loaded; a tensor of it can be made whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
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
        yield
    finally:
        hf_deepspeed.unset_hf_deepspeed_config()


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

"""Stage 3 partitions the frozen backbone while it is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

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

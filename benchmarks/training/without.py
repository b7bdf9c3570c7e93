"""Takes one of vlds' computations away, for the gain that it brings.

Imported by `ours.py`, before it builds the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch.nn.functional as F
from torch import Tensor


@contextmanager
def nothing(*_: Any) -> Iterator[None]:
    """Stands for a context of `step_kernels`."""
    yield


def plain_nll(predicted: Any) -> Tensor:
    """Torch's cross-entropy of whole logits in float32."""
    labels = predicted.labels[predicted.is_label]
    nll = F.cross_entropy(predicted.logits.float(), labels, reduction="none")
    by_example: Tensor = predicted.by_example(nll)
    return by_example


def dropout() -> None:
    """Torch's dropout, whose draws are serial."""
    patch("vlds.models.kernels.attention.dropout_by", nothing).start()


def compiled_dropout() -> None:
    """Dropout by example in several operations of torch."""
    patch("vlds.models.kernels.dropout.compiled_drop", lambda dtype: None).start()


def attention() -> None:
    """Torch's backward pass of fused attention; that of BART and T5 keeps its scores."""
    patch("vlds.models.kernels.attention.attention_by", nothing).start()
    patch("vlds.models.backbones.attention.trains", lambda *tensors: False).start()


def norms() -> None:
    """Hugging Face's RMSNorm."""
    patch("vlds.models.kernels.attention.fast_norms", nothing).start()


def loss() -> None:
    """Torch's cross-entropy."""
    patch("vlds.models.model.nll_of", plain_nll).start()


def kept_memory() -> None:
    """glibc's own ways with freed memory."""
    patch("vlds.training.engine.keep_freed_memory", lambda: None).start()


def gradient_sums() -> None:
    """DeepSpeed's own sums and norm of gradients."""
    patch("vlds.training.engine.sum_in_place", lambda zero, ranks: None).start()


CHANGES: dict[str, Callable[[], None]] = {
    function.__name__: function
    for function in (dropout, compiled_dropout, attention, norms, loss, kept_memory, gradient_sums)
}

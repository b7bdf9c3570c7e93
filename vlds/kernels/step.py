"""Which of these kernels a model's forward and backward pass uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from vlds.kernels.attention import attention, attention_by
from vlds.kernels.dropout import StepDropout, dropout_by
from vlds.kernels.partitioned_linear import partitioned_linear
from vlds.kernels.rms_norm import fast_norms


@contextmanager
def step_kernels(model: nn.Module, dropout: StepDropout) -> Iterator[None]:
    """Inside, a micro-batch of the model runs with all of them."""
    with attention_by(attention), fast_norms(model), partitioned_linear(), dropout_by(dropout):
        yield

"""The negative log-likelihood of a batch's labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlds.schema import Batch


def targets_of(batch: Batch) -> Tensor:
    """A batch's labels.

    Errors: ValueError if it has none.
    """
    if batch.labels is None:
        raise ValueError("labels: this batch has no targets; train on a split that has answers")
    return batch.labels


def nll_at(logits: Tensor, labels: Tensor, real: Tensor) -> Tensor:
    """Logits (n, w) of the labels where `real` is true, row by row -> their negative log-likelihood
    in the shape of the labels, 0 elsewhere, in at least float32."""
    precise = torch.promote_types(logits.dtype, torch.float32)
    nll = F.cross_entropy(logits.to(precise), labels[real], reduction="none")
    return nll.new_zeros(real.shape).masked_scatter(real, nll)

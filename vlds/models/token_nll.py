"""The negative log-likelihood of a batch's labels."""

from __future__ import annotations

from torch import Tensor

from vlds.kernels.token_nll import TokenNLL
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
    nll: Tensor = TokenNLL.apply(logits, labels[real])  # type: ignore[no-untyped-call]
    return nll.new_zeros(real.shape).masked_scatter(real, nll)

"""The negative log-likelihood of a batch's labels."""

from __future__ import annotations

from torch import Tensor

from vlds.kernels.token_nll import TokenNLL
from vlds.methods.batch_loss import Predicted
from vlds.schema import Batch


def targets_of(batch: Batch) -> Tensor:
    """A batch's labels.

    Errors: ValueError if it has none.
    """
    if batch.labels is None:
        raise ValueError("labels: this batch has no targets; train on a split that has answers")
    return batch.labels


def nll_of(predicted: Predicted) -> Tensor:
    """(b, t) negative log-likelihood of each label, 0 elsewhere, in at least float32."""
    labels = predicted.labels[predicted.is_label]
    nll: Tensor = TokenNLL.apply(predicted.logits, labels)  # type: ignore[no-untyped-call]
    return predicted.by_example(nll)

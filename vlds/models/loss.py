"""The loss of a batch's labels: the negative log-likelihood of tokens, the cross-entropy of
classes. vlds/training/loss.py weights them, and has all terms of a step's loss."""

from __future__ import annotations

from torch import Tensor

from vlds.models.kernels.fused import TokenNLL
from vlds.models.methods.context import Predicted
from vlds.schema import Batch


def targets_of(batch: Batch) -> Tensor:
    """A batch's labels.

    Errors: ValueError if it has none.
    """
    if batch.labels is None:
        raise ValueError("labels: this batch has no targets; train on a split that has answers")
    return batch.labels


def nll_of(predicted: Predicted) -> Tensor:
    """(b, t) loss of each label, 0 elsewhere, in at least float32: the negative log-likelihood of a
    token, or the loss of the classes that it stands for."""
    labels = predicted.labels[predicted.places]
    nll: Tensor = TokenNLL.apply(predicted.logits, labels)  # type: ignore[no-untyped-call]
    return predicted.by_example(nll, [classes.losses() for classes in predicted.classes])

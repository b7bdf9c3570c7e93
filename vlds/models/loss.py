"""The loss: of each label, and the weight of each example in that of the global batch.

`Model.token_nll` computes the cross-entropies, `Model.forward` the weighted sum.

Every task is text to text; nll_bt is the token cross-entropy of example b at target position t,
s_b the example's weight, n_b its number of target tokens, N the examples of the global batch and
N_k those of task k. Task k's own loss is

    example_mean:  L_k = sum_b s_b * (sum_t nll_bt / max(n_b, 1)) / N_k
    token_mean:    L_k = sum_bt nll_bt / sum_b n_b

(VL-Adapter's vqa_loss, gqa_loss, nlvr_loss; caption_loss), and the loss is sum_k (N_k / N) L_k. So
it is linear in nll_bt: each example has one coefficient, and with denominators summed over ranks
and accumulation steps before the backward pass neither loss nor gradient depends on how the batch
is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlds.models.kernels.fused import TokenNLL
from vlds.models.methods.context import Predicted
from vlds.schema import IGNORED_LABEL, Batch
from vlds.tasks.base import Task


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
    labels = predicted.labels[predicted.is_token]
    nll: Tensor = TokenNLL.apply(predicted.logits, labels)  # type: ignore[no-untyped-call]
    return predicted.by_example(nll, [classes.losses() for classes in predicted.classes])


@dataclass(frozen=True)
class LossTotals:
    """Per task, over the global batch: examples and target tokens, each (k,) float64."""

    examples: Tensor
    tokens: Tensor


def count(batches: Sequence[Batch], num_tasks: int) -> Tensor:
    """(2, k) float64: examples and target tokens per task in these micro-batches. Examples that are
    not valid stand in for a rank's missing row and count nowhere."""
    totals = torch.zeros(2, num_tasks, dtype=torch.float64)
    for batch in batches:
        valid = batch.valid.cpu().double()
        totals[0].index_add_(0, batch.task_index, valid)
        totals[1].index_add_(0, batch.task_index, valid * target_lengths(batch))
    return totals


def target_lengths(batch: Batch) -> Tensor:
    """(b,) number of target tokens of each example."""
    assert batch.labels is not None
    return (batch.labels != IGNORED_LABEL).sum(1).cpu()


def coefficients(batch: Batch, totals: LossTotals, tasks: Sequence[Task]) -> Tensor:
    """(b,) float32: what each example's summed token nll is multiplied by in the loss of the
    global batch."""
    num_examples = totals.examples.sum()
    lengths = target_lengths(batch).double().clamp(min=1)
    by_example = batch.weights.cpu().double() / lengths / num_examples
    share = totals.examples / num_examples / totals.tokens.clamp(min=1)
    by_token = share[batch.task_index]
    token_mean = torch.tensor([task.reduction == "token_mean" for task in tasks])
    by_task = torch.where(token_mean[batch.task_index], by_token, by_example)
    return (by_task * batch.valid.cpu()).float()


def task_losses(
    nll_sums: Tensor, batch: Batch, totals: LossTotals, tasks: Sequence[Task]
) -> Tensor:
    """(k,) this batch's share of every task's own loss L_k; sums over ranks and micro-batches give
    L_k."""
    share = totals.examples.clamp(min=1) / totals.examples.sum()
    weighted = nll_sums.cpu().double() * coefficients(batch, totals, tasks).double()
    losses = torch.zeros(len(tasks), dtype=torch.float64)
    return losses.index_add_(0, batch.task_index, weighted) / share

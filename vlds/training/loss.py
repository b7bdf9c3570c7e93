"""The loss of an optimizer step: all of its terms, and what each is multiplied by.

    loss = sum_k (N_k / N) L_k  +  sum_b c_b sum_m term_m(b)  +  sum_m penalty_m

nll_bt is the cross-entropy of example b at target position t (`nll_of` in vlds/models/loss.py; a
head's example has one "token", whose cross-entropy is that of its classes), s_b the example's
weight, n_b its number of target tokens, N the examples of the global batch and N_k those of task k.

1. The tasks. Task k's own loss is by its `reduction` (VL-Adapter's vqa_loss, gqa_loss, nlvr_loss;
   caption_loss)

       example_mean:  L_k = sum_b s_b * (sum_t nll_bt / max(n_b, 1)) / N_k
       token_mean:    L_k = sum_bt nll_bt / sum_b n_b

   So the loss is linear in nll_bt, and each example has one coefficient c_b. The denominators are
   summed over ranks and accumulation steps before the backward pass: neither loss nor gradient
   depends on how the global batch is cut.
2. Methods' terms of each example, in the unit of its summed nll (`BatchLoss.of_examples` in
   vlds/models/methods/context.py). `Model.forward` adds them to the nll, so they share its c_b.
3. Methods' penalties on weights alone (`StepRule.penalty`, in the same file), once a step.

`StepLoss` joins the three. Meta-learning uses the first two on half of a task's examples
(vlds/training/meta.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import nan

import torch
from torch import Tensor

from vlds.models.methods.context import StepRule
from vlds.models.model import ModelOutput
from vlds.runtime.ranks import Ranks
from vlds.schema import IGNORED_LABEL, Batch
from vlds.tasks.base import Task


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
    """(b,) float32: the c_b by which each example's summed nll, and what methods add to it, is
    multiplied in the loss of the global batch."""
    # example_mean: c_b = (N_k / N) s_b / max(n_b, 1) / N_k, in which N_k cancels.
    # token_mean:   c_b = (N_k / N) / sum_b n_b.
    num_examples = totals.examples.sum()
    lengths = target_lengths(batch).double().clamp(min=1)
    by_example = batch.weights.cpu().double() / lengths / num_examples
    share = totals.examples / num_examples / totals.tokens.clamp(min=1)
    by_token = share[batch.task_index]
    token_mean = torch.tensor([task.reduction == "token_mean" for task in tasks])
    by_task = torch.where(token_mean[batch.task_index], by_token, by_example)
    return (by_task * batch.valid.cpu()).float()


class StepLoss:
    """The loss of one optimizer step on this rank's micro-batches, and its parts for the report."""

    def __init__(
        self,
        batches: Sequence[Batch],
        *,
        tasks: Sequence[Task],
        batch_losses: Iterable[str],
        rules: Sequence[StepRule],
        ranks: Ranks,
    ) -> None:
        """`batch_losses`: the methods that have terms of examples. Collective: counts the global
        batch."""
        self.tasks, self.rules, self.ranks = tasks, rules, ranks
        self.num_micro_batches = len(batches)
        self.totals = LossTotals(*ranks.sum(count(batches, len(tasks))))
        self.task_losses = torch.zeros(len(tasks), dtype=torch.float64)
        """(k,) this rank's shares of the L_k; their sums over ranks are the L_k."""
        self.added = dict.fromkeys(batch_losses, 0.0)
        """Method -> this rank's share of its terms."""
        self.not_finite: list[str] = []
        """Ids of this rank's examples whose own loss is not finite."""
        self._passed: list[tuple[Batch, Tensor, list[Tensor]]] = []

    def coefficients(self, batch: Batch) -> Tensor:
        """(b,) what `Model.forward` multiplies the examples' losses by; on the host."""
        return coefficients(batch, self.totals, self.tasks)

    def backward_loss(self, output: ModelOutput) -> Tensor:
        """The scalar to differentiate for a micro-batch."""
        # The penalties are of weights alone, so each micro-batch of each rank adds an equal share.
        share = 1 / (self.ranks.world_size * self.num_micro_batches)
        penalties = [p for rule in self.rules if (p := rule.penalty()) is not None]
        penalty = share * torch.stack(penalties).sum() if penalties else 0.0
        # ZeRO averages gradients over ranks, and the coefficients' denominators count all of them.
        # A loss that is not finite gets NaN, and so a gradient for which ZeRO skips the step.
        factor = torch.where(output.loss.isfinite(), float(self.ranks.world_size), nan)
        return (output.loss + penalty) * factor

    def record(self, batch: Batch, scale: Tensor, output: ModelOutput) -> None:
        """Keep what a micro-batch has given. `scale`: its coefficients."""
        kept = [output.token_nll_sum.detach(), *output.added.values()]
        self._passed.append((batch, scale, kept))

    def finish(self, norm: Tensor | float) -> float:
        """Add all micro-batches to the parts, once the optimizer has its work; returns the
        gradient's norm."""
        # All numbers in one copy: each would make the host wait until a GPU has done its work.
        # float64 holds those of all types exactly.
        tensors = [values for *_, kept in self._passed for values in kept]
        # The norm may be on the host already.
        norms = [norm] if isinstance(norm, Tensor) and norm.device == tensors[0].device else []
        flat = torch.cat([values.flatten().double() for values in (*tensors, *norms)]).cpu()
        parts = iter(flat.split([values.numel() for values in (*tensors, *norms)]))
        # Divide by the N_k / N in c_b, which L_k does not have.
        share = self.totals.examples.clamp(min=1) / self.totals.examples.sum()
        for batch, scale, kept in self._passed:
            nll_sums, *added = (next(parts).to(values.dtype) for values in kept)
            bad = (~nll_sums.isfinite()).nonzero().flatten()
            self.not_finite += [batch.ids[row] for row in bad]
            weighted = nll_sums.double() * scale.double()
            by_task = torch.zeros(len(self.tasks), dtype=torch.float64)
            self.task_losses += by_task.index_add_(0, batch.task_index, weighted) / share
            for name, sums in zip(self.added, added, strict=True):
                self.added[name] += float(scale.to(sums) @ sums)
        return float(next(parts)) if norms else float(norm)

"""What a method does at every optimizer step, beside training its weights by the loss.

Uses: AdaLoRA's budget (vlds/methods/rank_budget.py), which adds to the loss, reads gradients and
sets weights to zero; schedules by step, such as a gate's temperature, which a rule writes into a
buffer; losses of weights alone, such as their distance from the start. A loss of the batch is a
`BatchLoss`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from torch import Tensor, nn


class StepRule(nn.Module, ABC):
    """Acts in every optimizer step, on all ranks alike: nothing in it may differ between them.

    Its buffers are its state: run states hold them. They are not persistent, so that artifacts do
    not. ZeRO stage 3 is refused with it (`Method.partitionable`), so weights are whole.
    """

    def penalty(self) -> Tensor | None:
        """What the global batch's loss has in addition, once a step: a scalar of weights alone."""
        return None

    def needs_gradients(self, step: int, num_steps: int) -> Sequence[nn.Parameter]:
        """Parameters whose gradients `after_step` reads, in the step that is now done as number
        `step` of `num_steps`, from 1 on."""
        return ()

    @abstractmethod
    def after_step(
        self, step: int, num_steps: int, gradients: Mapping[nn.Parameter, Tensor] | None
    ) -> Mapping[nn.Parameter, Tensor]:
        """Act once the weights have changed; parameter -> mask of the entries to set to zero.

        `gradients`: those of the global batch in fp32, before clipping; None if the step was
        skipped because they were not finite.
        """

"""An example method that is conditioned on pictures: factors behind feed-forward layers, made from
the mean of an example's visual tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from vlds.models.methods.base import Method
from vlds.models.methods.context import BatchContext
from vlds.models.methods.host import Host, LinearExtension, weight_options


@dataclass(frozen=True, kw_only=True)
class PictureScale(Method):
    """y = (1 + W v) * W(x), with v the mean of the example's visual tokens and W = 0 at first."""

    def attach(self, host: Host) -> list[nn.Parameter]:
        """Put factors behind every feed-forward layer."""
        host.context.reads_examples = True
        trained: list[nn.Parameter] = []
        for linear in host.linears("ffn_out").values():
            scale = Scale(linear, host.context)
            host.extend_linear(linear, scale)
            trained += scale.parameters()
        return trained


class Scale(LinearExtension):
    """The factors behind one layer."""

    def __init__(self, linear: nn.Linear, context: BatchContext) -> None:
        super().__init__()
        width = linear.out_features
        self.factors = nn.Linear(width, width, bias=False, **weight_options(linear))
        nn.init.zeros_(self.factors.weight)
        self.context = context

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """(b, l, d) -> (b, l, d)."""
        visual = self.context.visual
        assert visual is not None
        rows = self.context.example_of_rows(len(outputs))
        scaled: Tensor = outputs * (1 + self.factors(visual.mean())[rows, None])
        return scaled

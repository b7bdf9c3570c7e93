"""Heads of linear layers: one, or two as in the answer heads of VL-T5, LXMERT, CLIP-ViL and METER.

With a frozen model and no methods, one layer is a linear probe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from vlds.runtime.checks import Count
from vlds.tasks.class_output import Head


@dataclass(frozen=True, kw_only=True)
class LinearHead(Head):
    """W x + b, drawn from N(0, 0.02^2)."""

    def build(self, width: int) -> nn.Module:
        return drawn(nn.Linear(width, len(self.names)))


def drawn(layer: nn.Linear) -> nn.Linear:
    """The layer with weights from N(0, 0.02^2) and biases of 0, as BERT's family begins."""
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


@dataclass(frozen=True, kw_only=True)
class MLPHead(Head):
    """Two linear layers with a norm and GELU between them; weights drawn from N(0, 0.02^2).

    gelu_norm: W2 norm(gelu(W1 x + b1)) + b2, as in VL-T5 and CLIP-ViL (vqa_model.py)
    norm_gelu: W2 gelu(norm(W1 x + b1)) + b2, as in METER (meter_module.py)
    """

    hidden: Count | None = None
    """Width between the layers; default: twice that of the model's states, as in VL-T5."""
    order: Literal["gelu_norm", "norm_gelu"] = "gelu_norm"
    """What comes first behind the first layer; METER: norm_gelu, with `hidden` as wide as its
    states."""

    def build(self, width: int) -> nn.Module:
        hidden = self.hidden or 2 * width
        # Weights are called by their place: 0 and 3, and the norm's by 2, or 1 in norm_gelu.
        between: list[nn.Module] = [nn.GELU(), nn.LayerNorm(hidden)]
        if self.order == "norm_gelu":
            between.reverse()
        first, last = nn.Linear(width, hidden), nn.Linear(hidden, len(self.names))
        return nn.Sequential(drawn(first), *between, drawn(last))

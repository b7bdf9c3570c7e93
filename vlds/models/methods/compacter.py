"""Compacter (Karimi Mahabadi et al. 2021, https://arxiv.org/abs/2106.04647): adapters whose halves
are sums of Kronecker products, the parameterised hypercomplex multiplication (PHM) of Zhang et al.
2021,

    y = x H + b,    H = sum_i A_i (x) B_i,    A_i: n x n,  B_i: in/n x out/n,

as VL-Adapter has them (https://arxiv.org/abs/2112.06825): its published rows are n = 2 with rules
A of each half's own and whole blocks B. Its code also has the limit n = 1 with blocks of low rank,
y = x (W_left W_right) + b: `LowRankAdapter`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from vlds.models.methods.adapter import materialise, merge_first
from vlds.models.methods.base import Layout, Library, Method, Stored, is_t5
from vlds.models.methods.bottleneck import StackedBottleneck, StackedBottleneckModule, both_halves
from vlds.models.methods.context import spread, stacked_linear
from vlds.models.methods.host import Host
from vlds.runtime.checks import Count, NotNegative
from vlds.schema import STACKED, OptimizerRule, OptimizerRules

STACKED_B = OptimizerRule(decays=False, vl_adapter_decays=True, per_task=True)
"""Rule of the biases of PHM and low-rank layers. The original code decays them: it tells biases by
the word bias in their names, and theirs is `b`."""
LEAVES = {"rule": "phm_rule", "blocks": "W", "left": "W_left", "right": "W_right", "bias": "b"}
"""Weight of a PHM or low-rank layer -> its name in other libraries."""


@dataclass(frozen=True, kw_only=True)
class Compacter(StackedBottleneck):
    """Bottlenecks of few weights: sums of Kronecker products."""

    reasons: ClassVar[Mapping[Library, str]] = {
        "peft": "peft has no Compacter; `vlds convert adapters` has a layout for it"
    }
    library_leaves: ClassVar[Mapping[str, str]] = LEAVES

    phm_dim: Count = 2
    """Number n of Kronecker products in a sum; must divide the widths of model and bottleneck."""
    rule: Literal["own", "over_tasks", "everywhere"] = "own"
    """Who shares a rule A: nobody, the tasks of one half, or all halves of all layers."""
    rule_init_std: NotNegative = 0.01
    """Initial standard deviation of the rules."""
    block_rank: Count | None = None
    """Rank of the blocks B, as products of two thin matrices; default: whole blocks."""

    def module(self, linear: nn.Linear, host: Host, first: list[Any]) -> CompacterModule:
        rule = first[0].down_rule if first and self.rule == "everywhere" else None
        return CompacterModule(self, linear, host, rule)

    def merge(self, name: str, model: nn.Module, tasks: Sequence[str]) -> Mapping[str, Method]:
        """Plain adapters that compute the same."""
        return {name: materialise(self, self.sharing, name, model, tasks)}

    def layout(self, library: Library, name: str, model: Any) -> Layout:
        """As for all bottlenecks. A rule that all share has the names of all of them in the
        original code, and a single name in adapters."""
        layout = super().layout(library, name, model)
        if self.rule != "everywhere":
            return layout
        rules = [tensor for tensor in layout.tensors if tensor.endswith("_rule")]
        # The original code also registers the shared rule at the model itself, as phm_rule.
        keys = (*(key for rule in rules for key in layout.tensors[rule].keys), "phm_rule")
        if library == "adapters":
            keys = (f"{'' if is_t5(model) else 'model.'}shared_parameters.{{task}}.phm_rule",)
        return replace(layout, tensors={**layout.tensors, **dict.fromkeys(rules, Stored(keys))})

    def adapters_config(self) -> dict[str, Any]:
        return super().adapters_config() | {
            "phm_layer": True,
            "phm_dim": self.phm_dim,
            "shared_phm_rule": self.rule == "everywhere",
            "factorized_phm_W": self.block_rank is not None,
            "phm_rank": self.block_rank or 1,
        }


class CompacterModule(StackedBottleneckModule):
    """The bottlenecks of all tasks behind one layer."""

    optimizer_rules: ClassVar[OptimizerRules] = both_halves(
        rule=STACKED, blocks=STACKED, left=STACKED, right=STACKED, bias=STACKED_B
    )

    def __init__(
        self, config: Compacter, linear: nn.Linear, host: Host, rule: nn.Parameter | None
    ) -> None:
        """`rule`: the one that all modules share, unless this module makes it, or has its own."""
        super().__init__(config, linear, host)
        n, rank = config.phm_dim, config.block_rank
        if self.width % n or self.bottleneck % n:
            raise ValueError(
                f"phm_dim: {n} does not divide both the layer's width, {self.width}, and the "
                f"bottleneck's, {self.bottleneck}; choose a common divisor"
            )

        def new_rule(num: int) -> nn.Parameter:
            rule = torch.empty(num if config.rule == "own" else 1, n, n, n, **self.options)
            return nn.Parameter(nn.init.normal_(rule, std=config.rule_init_std))

        # A rule that all modules share is one parameter, which `first` of them has made.
        self.down_rule = new_rule(self.num_down) if rule is None else rule
        self.up_rule = self.down_rule if config.rule == "everywhere" else new_rule(self.num_up)
        self.down_bias = nn.Parameter(torch.zeros(self.num_down, self.bottleneck, **self.options))
        self.up_bias = nn.Parameter(torch.zeros(self.num_up, self.width, **self.options))
        wide, narrow = self.width // n, self.bottleneck // n
        if rank is None:
            self.leaves = ("rule", "blocks", "bias")
            self.down_blocks = self.new_factor(self.num_down, n, wide, narrow)
            self.up_blocks = self.new_factor(self.num_up, n, narrow, wide)
        else:
            self.leaves = ("rule", "left", "right", "bias")
            self.down_left = self.new_factor(self.num_down, n, wide, rank)
            self.down_right = self.new_factor(self.num_down, n, rank, narrow)
            self.up_left = self.new_factor(self.num_up, n, narrow, rank)
            self.up_right = self.new_factor(self.num_up, n, rank, wide)

    def layer(self, rows: Tensor, *weights: Tensor) -> Tensor:
        product: Callable[..., Tensor] = phm if "blocks" in self.leaves else thin_phm
        if max(map(len, weights)) > 1:
            return product(rows, *weights)
        return product(rows[None], *weights).squeeze(0)  # in front, the dimension of tasks


# In the einsums below, s numbers the tasks, a and c the pieces of inputs and outputs, k and p the
# places within a piece, i the terms of the sum, r the ranks: H[a k, c p] = sum_i A[i, a, c]
# B[i, k, p]. What the tasks share has 1 in the place of their number.


def phm(rows: Tensor, rule: Tensor, blocks: Tensor, bias: Tensor) -> Tensor:
    """(tasks, ..., in) -> (tasks, ..., out), from rules (tasks, n, n, n), blocks (tasks, n, in/n,
    out/n) and biases (tasks, out)."""
    _, n, inputs, outputs = blocks.shape
    if rows[0].numel() // rows.shape[-1] < inputs and not torch.is_grad_enabled():
        # An answer's next token: with so few rows, H would cost more than its product with them.
        pieces = torch.einsum("s...ak,sikp->s...aip", rows.unflatten(-1, (n, inputs)), blocks)
        done = torch.einsum("s...aip,siac->s...cp", pieces, rule).flatten(-2)
        return done + spread(bias, done)
    # One product: (a c, i) by (i, k p).
    products = rule.flatten(2).mT @ blocks.flatten(2)
    matrix = (
        products.view(-1, n, n, inputs, outputs)
        .transpose(2, 3)
        .reshape(-1, n * inputs, n * outputs)
    )
    return stacked_linear(rows, matrix.mT, bias)


def thin_phm(rows: Tensor, rule: Tensor, left: Tensor, right: Tensor, bias: Tensor) -> Tensor:
    """(tasks, ..., in) -> (tasks, ..., out), from rules (tasks, n, n, n) and blocks as products
    (tasks, n, in/n, r) by (tasks, n, r, out/n). Nothing of the size in x out is made."""
    # Narrow first: down to the rank, across the rule, and up again.
    pieces = torch.einsum("s...ak,sikr->s...air", rows.unflatten(-1, (left.shape[1], -1)), left)
    pieces = torch.einsum("s...air,siac->s...cir", pieces, rule)
    done = torch.einsum("s...cir,sirp->s...cp", pieces, right).flatten(-2)
    return done + spread(bias, done)


@dataclass(frozen=True, kw_only=True)
class LowRankAdapter(StackedBottleneck):
    """Bottlenecks whose halves have a low rank themselves."""

    libraries: ClassVar[frozenset[Library]] = frozenset({"reference"})
    reasons: ClassVar[Mapping[Library, str]] = merge_first("LowRankAdapter")
    library_leaves: ClassVar[Mapping[str, str]] = LEAVES

    rank: Count = 1
    """Rank of each half."""

    def module(self, linear: nn.Linear, host: Host, first: list[Any]) -> LowRankAdapterModule:
        return LowRankAdapterModule(self, linear, host)

    def merge(self, name: str, model: nn.Module, tasks: Sequence[str]) -> Mapping[str, Method]:
        """Plain adapters that compute the same."""
        return {name: materialise(self, self.sharing, name, model, tasks)}


class LowRankAdapterModule(StackedBottleneckModule):
    """The bottlenecks of all tasks behind one layer."""

    leaves = ("left", "right", "bias")
    optimizer_rules: ClassVar[OptimizerRules] = both_halves(
        left=STACKED, right=STACKED, bias=STACKED_B
    )

    def layer(self, rows: Tensor, *weights: Tensor) -> Tensor:
        left, right, bias = weights
        # From the left: (rows left) right costs r (in + out) a row, rows (left right) in x out.
        return stacked_linear(stacked_linear(rows, left.mT), right.mT, bias)

    def __init__(self, config: LowRankAdapter, linear: nn.Linear, host: Host) -> None:
        super().__init__(config, linear, host)
        rank = config.rank
        self.down_left = self.new_factor(self.num_down, self.width, rank)
        self.down_right = self.new_factor(self.num_down, rank, self.bottleneck)
        self.up_left = self.new_factor(self.num_up, self.bottleneck, rank)
        self.up_right = self.new_factor(self.num_up, rank, self.width)
        self.down_bias = nn.Parameter(torch.zeros(self.num_down, self.bottleneck, **self.options))
        self.up_bias = nn.Parameter(torch.zeros(self.num_up, self.width, **self.options))

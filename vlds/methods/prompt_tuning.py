"""Prompt tuning (Lester et al. 2021, https://arxiv.org/abs/2104.08691), with a small network that
makes the prompts while they train, as VL-Adapter has it (https://arxiv.org/abs/2112.06825):

    prompts = W_2 tanh( W_1 E + b_1 ) + b_2,    E: a table of `length` embeddings.

They stand before the text in the encoder's input, and the decoder attends to them too. On T5 they
have relative positions like the text behind them; on BART no positions, but the embedding norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlds.methods.adapter import init_linear
from vlds.methods.base import Method, ModelExtension, extend_model, find_linears
from vlds.methods.routing import TaskRouting
from vlds.schema import TargetModules


@dataclass(frozen=True, kw_only=True)
class PromptTuning(Method):
    """Learned embeddings before the text."""

    sharing: Literal["single", "multiple"] = "single"
    """One set of prompts for all tasks, or one per task."""
    length: int = 40
    """Number of prompts."""
    hidden_dim: int | None = 800
    """Width of the network that makes the prompts; null: they are learned as they are."""

    def __post_init__(self) -> None:
        if self.part == "vision":
            raise ValueError("part: the vision encoder reads no text; use backbone")
        for name in ("length", "hidden_dim"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: got {value}; give at least 1")

    def attach(
        self,
        name: str,
        model: nn.Module,
        targets: TargetModules,
        tasks: Sequence[str],
        routing: TaskRouting,
    ) -> list[nn.Parameter]:
        """Put the prompts beside the model."""
        projection = model.get_submodule(find_linears(model, targets, "attn_q")[0])
        assert isinstance(projection, nn.Linear)
        num = 1 if self.sharing == "single" else len(tasks)
        prompts = Prompts(self, projection, num, targets.linear_init_std, routing)
        extend_model(model, name, prompts)
        return list(prompts.parameters())

    @torch.no_grad()
    def merge(self, name: str, model: nn.Module, tasks: Sequence[str]) -> PromptTuning:
        """Keep the prompts, without the network that made them."""
        prompts = model.get_submodule(f"extensions.{name}")
        assert isinstance(prompts, Prompts)
        prompts.bake()
        return replace(self, hidden_dim=None)


class Prompts(ModelExtension):
    """The prompts of all tasks."""

    def __init__(
        self,
        config: PromptTuning,
        projection: nn.Linear,
        num: int,
        init_std: float | None,
        routing: TaskRouting,
    ) -> None:
        super().__init__()
        self.routing = routing
        weight, width = projection.weight, projection.in_features
        options: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        table = torch.empty(num, config.length, width, **options)
        self.table = nn.Parameter(nn.init.normal_(table, std=1.0 if init_std is None else init_std))
        self.has_network = config.hidden_dim is not None
        if config.hidden_dim is not None:
            hidden = config.hidden_dim
            self.hidden_weight = nn.Parameter(torch.empty(num, hidden, width, **options))
            self.hidden_bias = nn.Parameter(torch.empty(num, hidden, **options))
            self.output_weight = nn.Parameter(torch.empty(num, width, hidden, **options))
            self.output_bias = nn.Parameter(torch.empty(num, width, **options))
            init_linear(self.hidden_weight, self.hidden_bias, init_std)
            init_linear(self.output_weight, self.output_bias, init_std)

    def forward(self) -> Tensor:
        """(b, length, d): each row's prompts."""
        return self.routing.of_rows(self.prompts())

    def prompts(self) -> Tensor:
        """(tasks or 1, length, d)."""
        if not self.has_network:
            return self.table
        hidden = self.table @ self.hidden_weight.mT + self.hidden_bias[:, None]
        return hidden.tanh() @ self.output_weight.mT + self.output_bias[:, None]

    def bake(self) -> None:
        """Make the prompts the table, and drop the network."""
        if self.has_network:
            self.table = nn.Parameter(self.prompts().contiguous(), requires_grad=False)
            self.has_network = False
            for name in ("hidden_weight", "hidden_bias", "output_weight", "output_bias"):
                delattr(self, name)

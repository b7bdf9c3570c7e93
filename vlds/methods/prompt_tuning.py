"""Prompt tuning (Lester et al. 2021, https://arxiv.org/abs/2104.08691), with a small network that
makes the prompts while they train, as VL-Adapter has it (https://arxiv.org/abs/2112.06825):

    prompts = W_2 tanh( W_1 E + b_1 ) + b_2,    E: a table of `length` embeddings.

They stand before the text in the encoder's input, and the decoder attends to them too. On T5 they
have relative positions like the text behind them; on BART no positions, but the embedding norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn

from vlds.methods.base import Method, ModelExtension, extend_model, find_linears
from vlds.methods.prompt_network import PromptNetwork
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
        weight, width = projection.weight, projection.in_features
        network = PromptNetwork(
            1 if self.sharing == "single" else len(tasks),
            self.length,
            width,
            self.hidden_dim,
            width,
            targets.linear_init_std,
            {"device": weight.device, "dtype": weight.dtype},
        )
        extend_model(model, name, Prompts(network, routing))
        return list(network.parameters())

    def merge(self, name: str, model: nn.Module, tasks: Sequence[str]) -> PromptTuning:
        """Keep the prompts, without the network that made them."""
        prompts = model.get_submodule(f"extensions.{name}")
        assert isinstance(prompts, Prompts)
        prompts.network.bake()
        return replace(self, hidden_dim=None)


class Prompts(ModelExtension):
    """The prompts of all tasks."""

    def __init__(self, network: PromptNetwork, routing: TaskRouting) -> None:
        super().__init__()
        self.network, self.routing = network, routing

    def forward(self) -> Tensor:
        """(b, length, d): each row's prompts."""
        return self.routing.of_rows(self.network())

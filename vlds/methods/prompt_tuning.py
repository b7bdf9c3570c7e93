"""Prompt tuning (Lester et al. 2021, https://arxiv.org/abs/2104.08691), with a small network that
makes the prompts while they train, as VL-Adapter has it (https://arxiv.org/abs/2112.06825):

    prompts = W_2 tanh( W_1 E + b_1 ) + b_2,    E: a table of `length` embeddings.

They stand before the text in the encoder's input, and the decoder attends to them too. On T5 they
have relative positions like the text behind them; on BART no positions, but the embedding norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from vlds.methods.base import ModelExtension, extend_model, find_linears
from vlds.methods.prompt_network import LearnedEmbeddings, PromptNetwork
from vlds.methods.routing import TaskRouting
from vlds.schema import TargetModules


@dataclass(frozen=True, kw_only=True)
class PromptTuning(LearnedEmbeddings):
    """Learned embeddings before the text."""

    def attach(
        self,
        name: str,
        model: nn.Module,
        targets: TargetModules,
        tasks: Sequence[str],
        routing: TaskRouting,
    ) -> list[nn.Parameter]:
        """Put the prompts beside the model."""
        projection = next(iter(find_linears(model, targets, "attn_q").values()))
        width = projection.in_features
        network = self.network(projection, width, len(tasks), targets.linear_init_std)
        extend_model(model, name, Prompts(network, routing))
        return list(network.parameters())


class Prompts(ModelExtension):
    """The prompts of all tasks."""

    def __init__(self, network: PromptNetwork, routing: TaskRouting) -> None:
        super().__init__()
        self.network, self.routing = network, routing

    def forward(self) -> Tensor:
        """(b, length, d): each row's prompts."""
        return self.routing.of_rows(self.network())

"""Learned embeddings, and the small network that makes prompts or prefixes of them in training:

W_2 tanh( W_1 E + b_1 ) + b_2,    E: a table of `length` embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from vlds.methods.adapter import init_linear
from vlds.methods.base import Case, Method, Toy, num_slices
from vlds.methods.extended import added_tensors
from vlds.methods.host import Host, weight_options
from vlds.methods.layouts import Layout, Library, Stored
from vlds.runtime.checks import Count
from vlds.schema import STACKED, STACKED_UNDECAYED, OptimizerRules

ORIGINAL_NAMES = {
    "table": "0.weight",
    "hidden_weight": "1.weight",
    "hidden_bias": "1.bias",
    "output_weight": "3.weight",
    "output_bias": "3.bias",
}
"""Tensor of a network -> its name in the original code."""


@dataclass(frozen=True, kw_only=True)
class LearnedEmbeddings(Method):
    """What prompts and prefixes have in common."""

    merges_to_itself: ClassVar[bool] = True
    original_owner: ClassVar[str] = ""
    """What the original code's names of the prompts begin with."""

    sharing: Literal["single", "multiple"] = "single"
    """One set for all tasks, or one per task."""
    length: Count = 40
    """Number of prompts or prefixes."""
    hidden_dim: Count | None = 800
    """Width of the network that makes them in training; null: they are learned as they are."""

    def __post_init__(self) -> None:
        if self.part == "vision":
            raise ValueError(
                f"part: {type(self).__name__} stands before text, and the vision encoder reads "
                "none; use backbone"
            )

    def merge(self, name: str, model: nn.Module, tasks: Sequence[str]) -> Mapping[str, Method]:
        """Keep what the network makes, without the network."""
        for module in model.get_submodule(f"extensions.{name}").modules():
            if isinstance(module, PromptNetwork):
                module.bake()
        return {name: replace(self, hidden_dim=None)}

    def refusal(self, library: Library, model: Any) -> str | None:
        """The original code has no prompts without the network."""
        reason = super().refusal(library, model)
        if reason is None and library == "reference" and self.hidden_dim is None:
            return "the original code always makes prompts with a network (hidden_dim)"
        return reason

    def layout(self, library: Library, name: str, model: Any) -> Layout:
        """The original code's: a small network for each task."""
        tensors = {}
        for tensor in added_tensors(model, name):
            original = ORIGINAL_NAMES[tensor.leaf.rpartition(".")[2]]
            key = f"prompt_modules.prompts.{{task}}.prefix_embedding.{original}"
            tensors[tensor.name] = Stored((self.original_owner + key,))
        return Layout(tensors)

    @classmethod
    def network_cases(cls, owner: str, width: int, num_outputs: int) -> dict[str, Case]:
        """One for all tasks, one per task, without a network. `owner`: the network's name in its
        module; `width` of the embeddings; numbers that stand for an embedding."""
        hidden, length = 6, 3
        method = cls(length=length, hidden_dim=hidden)
        num = length * width + hidden * (width + 1) + num_outputs * (hidden + 1)
        one = Case(
            method,
            num,
            f"{owner}.table {owner}.hidden_weight {owner}.output_weight",
            f"{owner}.hidden_bias {owner}.output_bias",
            merged=(cls,),
        )
        per_task = replace(method, sharing="multiple")
        bare = replace(method, hidden_dim=None)
        needs_network = {"reference": r"makes prompts with a network \(hidden_dim\)"}
        return {
            "": one,
            "per task": replace(one, method=per_task, num_trained=Toy.tasks * num),
            "bare": Case(
                bare,
                length * num_outputs,
                f"{owner}.table",
                merged=(cls,),
                refused=needs_network if "reference" in cls.libraries else {},
            ),
        }


class PromptNetwork(nn.Module):
    """Tables and networks of all tasks, stacked (tasks or 1, ...)."""

    optimizer_rules: ClassVar[OptimizerRules] = {
        "table": STACKED,
        "hidden_weight": STACKED,
        "hidden_bias": STACKED_UNDECAYED,
        "output_weight": STACKED,
        "output_bias": STACKED_UNDECAYED,
    }

    def __init__(
        self,
        config: LearnedEmbeddings,
        host: Host,
        like: nn.Linear | nn.Embedding,
        output_width: int,
    ) -> None:
        """Embeddings of the width and type of `like`, which reads the model's states or is the
        table of its words."""
        super().__init__()
        num, _ = num_slices(config.sharing, len(host.tasks))
        width, hidden_dim, options = (
            like.in_features if isinstance(like, nn.Linear) else like.embedding_dim,
            config.hidden_dim,
            weight_options(like),
        )
        init_std = host.targets.linear_init_std
        self.has_layers = hidden_dim is not None
        inputs = output_width if hidden_dim is None else width
        table = torch.empty(num, config.length, inputs, **options)
        self.table = nn.Parameter(nn.init.normal_(table, std=1.0 if init_std is None else init_std))
        if hidden_dim is not None:
            self.hidden_weight = nn.Parameter(torch.empty(num, hidden_dim, width, **options))
            self.hidden_bias = nn.Parameter(torch.empty(num, hidden_dim, **options))
            self.output_weight = nn.Parameter(torch.empty(num, output_width, hidden_dim, **options))
            self.output_bias = nn.Parameter(torch.empty(num, output_width, **options))
            init_linear(self.hidden_weight, self.hidden_bias, init_std)
            init_linear(self.output_weight, self.output_bias, init_std)

    def forward(self) -> Tensor:
        """(tasks or 1, length, output_width)."""
        if not self.has_layers:
            return self.table.clone()  # ZeRO-3 takes the table itself away after this
        hidden = self.table @ self.hidden_weight.mT + self.hidden_bias[:, None]
        return hidden.tanh() @ self.output_weight.mT + self.output_bias[:, None]

    @torch.no_grad()
    def bake(self) -> None:
        """Make what the network gives the table, and drop the network."""
        if self.has_layers:
            self.table = nn.Parameter(self(), requires_grad=False)
            self.has_layers = False
            for name in ("hidden_weight", "hidden_bias", "output_weight", "output_bias"):
                delattr(self, name)

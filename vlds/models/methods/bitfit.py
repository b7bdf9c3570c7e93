"""Methods that train weights of the model's own. `Full` trains all: the yardstick of the others,
and how a backbone is made. `BitFit` (Ben Zaken et al. 2022, https://arxiv.org/abs/2106.10199)
trains the biases.

T5 has almost no biases. Ladder Side-Tuning (https://arxiv.org/abs/2206.06522), which published
VL-T5's row of BitFit, adds one to every linear layer, every norm and the output layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from vlds.models.methods.base import Layout, Library, Method, Stored
from vlds.models.methods.host import (
    Host,
    LinearExtension,
    added_tensors,
    bias_parameters,
    is_own,
    is_plain,
    weight_options,
)
from vlds.schema import UNDECAYED, OptimizerRules, Role


@dataclass(frozen=True, kw_only=True)
class Full(Method):
    """Full fine-tuning: train every weight of the part; of a language model the output layer too,
    whether it is tied to the token table or not."""

    def attach(self, host: Host) -> list[nn.Parameter]:
        """All parameters of the part.

        Errors: ValueError if the part has none (features stored in shards), or quantised ones.
        """
        model = host.model
        parameters = list(model.parameters())
        if not parameters:
            raise ValueError(
                f"Full trains the {self.part}, but {type(model).__name__} has no weights; "
                "remove the method"
            )
        if any(not is_plain(parameter) for parameter in parameters):
            raise ValueError(
                f"Full trains every weight, and {type(model).__name__} has quantised ones, which "
                "cannot train; load it unquantised, or choose another method"
            )
        return [*parameters, *host.outside]

    def merge(self, name: str, model: nn.Module, tasks: Sequence[str]) -> Mapping[str, Method]:
        """Nothing to do: the weights are already the model's own."""
        return {}

    def after_export(self) -> None:
        """The files hold all of it."""


ATTENTION_ROLES: tuple[Role, ...] = (
    "attn_q", "attn_k", "attn_v", "attn_out",
    "cross_attn_q", "cross_attn_k", "cross_attn_v", "cross_attn_out",
)  # fmt: skip
LINEAR_ROLES: tuple[Role, ...] = (*ATTENTION_ROLES, "ffn_in", "ffn_out")


@dataclass(frozen=True, kw_only=True)
class BitFit(Method):
    """Train the biases of linear layers and norms."""

    reasons: ClassVar[Mapping[Library, str]] = {
        "peft": "peft gives no layer a new bias",
        "reference": "the original code gives no layer a new bias",
    }

    add_biases: bool = False
    """Give linear layers without a bias one (all of T5's are without)."""
    add_norm_and_head_biases: bool = False
    """Give the backbone's norms without a bias, and its output layer, one too. The visual
    embedding's norms have `visual_embedding.norm_biases`."""
    init: Literal["zero", "ladder_side_tuning"] = "zero"
    """Initial values of added biases. zero: the run starts as the frozen model. ladder_side_tuning:
    those of attention and of the output layer are drawn from U(-1/sqrt(in), 1/sqrt(in))."""
    train_position_biases: bool = True
    """Train T5's relative position biases too; Ladder Side-Tuning does not."""

    def __post_init__(self) -> None:
        if self.add_norm_and_head_biases and self.part == "vision":
            raise ValueError(
                "add_norm_and_head_biases: got true for the vision encoder, which has no output "
                "layer; leave it out"
            )
        if self.init != "zero" and not (self.add_biases or self.add_norm_and_head_biases):
            raise ValueError(
                f"init: got {self.init}, but no biases are added; set add_biases, or leave it out"
            )

    def attach(self, host: Host) -> list[nn.Parameter]:
        """The biases that are there, and new ones where asked for.

        Errors: ValueError if linear layers have no bias and `add_biases` is false, if some of them
        cannot get one, or if there is no bias at all.
        """
        model, bare = host.model, bare_linears(host, *LINEAR_ROLES)
        if self.add_biases and self.part == "vision":
            # Vision encoders come in many classes: some layers play no role and would be left out.
            unknown = [
                path
                for path, module in model.named_modules()
                if isinstance(module, nn.Linear)
                and module.bias is None
                and path not in bare
                and is_own(path)
            ]
            if unknown:
                raise ValueError(
                    f"add_biases: {len(unknown)} linear layers of {type(model).__name__} without a "
                    f"bias play no role, so none can be added (the first: {unknown[0]}); leave "
                    "add_biases out to train the biases that are there, or choose another method"
                )
        if bare and not self.add_biases:
            raise ValueError(
                f"{len(bare)} linear layers of {type(model).__name__} have no bias (the first: "
                f"{next(iter(bare))}); set add_biases to true to give them one, or choose another "
                "method"
            )
        trained: list[nn.Parameter] = []
        if self.add_norm_and_head_biases:
            bare |= bare_linears(host, "head")
            for norm in host.modules_of("norm").values():
                if getattr(norm, "bias", None) is None:
                    weight = norm.get_parameter("weight")
                    # Under ZeRO-3, ds_numel is the size of the whole weight.
                    width = getattr(weight, "ds_numel", weight.numel())
                    added = AddedBias(width, {"device": weight.device, "dtype": weight.dtype})
                    host.extend_norm(norm, added)
                    trained += added.parameters()
        drawn = bare_linears(host, *ATTENTION_ROLES, "head") if self.init != "zero" else {}
        for path, linear in bare.items():
            bound = linear.in_features**-0.5 if path in drawn else 0.0
            added = AddedBias(linear.out_features, weight_options(linear), bound)
            host.extend_linear(linear, added)
            trained += added.parameters()
        if self.train_position_biases:
            trained += bias_parameters(model)
        else:  # T5's tables of them are called relative_attention_bias.weight
            named = model.named_parameters()
            trained += [p for path, p in named if is_own(path) and path.endswith("bias")]
        if not trained:
            raise ValueError(f"{type(model).__name__} has no biases; choose another method")
        return trained

    def merge(self, name: str, model: nn.Module, tasks: Sequence[str]) -> Mapping[str, Method]:
        """Nothing to do: the biases are already the model's own.

        Errors: ValueError if some were added, which the model's class has no room for.
        """
        if added_tensors(model, name):
            option, layers = (
                ("add_biases", "linear layers")
                if self.add_biases
                else ("add_norm_and_head_biases", "norms and the output layer")
            )
            raise ValueError(
                f"{option}: the {layers} of {type(model).__name__} have none in their own class; "
                "use `vlds convert hf`, which keeps them beside the backbone"
            )
        return {}

    def layout(self, library: Library, name: str, model: Any) -> Layout:
        # Names as in the code of Ladder Side-Tuning.
        added = added_tensors(model, name)
        return Layout({t.name: Stored((f"{t.layer}.bias",), stacked=False) for t in added})


def bare_linears(host: Host, *roles: str) -> dict[str, nn.Linear]:
    """Path -> linear layer without a bias, of those that play the roles. Roles that the model does
    not have, such as cross-attention, are skipped."""
    linears = host.linears(*roles, optional=roles)
    return {path: linear for path, linear in linears.items() if linear.bias is None}


class AddedBias(LinearExtension):
    """The bias of a linear layer or a norm that has none."""

    optimizer_rules: ClassVar[OptimizerRules] = {"bias": UNDECAYED}

    def __init__(self, width: int, options: Mapping[str, Any], bound: float = 0.0) -> None:
        """`options`: device and type. The initial values are drawn from U(-bound, bound)."""
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width, **options))
        if bound:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return outputs + self.bias

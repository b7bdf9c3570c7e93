"""Methods of Hugging Face's peft (https://github.com/huggingface/peft): DoRA, rsLoRA, PiSSA, LoHa,
LoKr, VeRA, OFT and others, by peft's own names, settings and layers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import nn

from vlds.methods.base import Case, Method, Toy
from vlds.methods.extended import (
    Extended,
    ExtendedLinear,
    added_tensors,
    foldable_weight,
    take_first,
)
from vlds.methods.host import CROSS_ATTENTION, Host, find_modules
from vlds.methods.layouts import PEFT_MODEL, Layout, Library, Stored
from vlds.methods.peft_layers import ADAPTER, PeftExtension, check_patterns, put_behind
from vlds.methods.peft_settings import (
    ABOUT_FILES,
    ADALORA,
    BY_NAME,
    CHANGES_BASE,
    WHICH_LAYERS,
    peft_config,
    shortest_schedule,
)
from vlds.methods.rank_budget import RankBudget
from vlds.schema import Role


@dataclass(frozen=True, kw_only=True)
class Peft(Method):
    """A method of peft, which needs the package: pip install 'vlds[peft]'."""

    libraries: ClassVar[frozenset[Library]] = frozenset({"peft"})

    type: str
    """peft's PeftType, such as LORA."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of peft's config class, by its names."""
    roles: Sequence[Role] = ()
    """Which layers; none if the settings hold target_modules."""

    def __post_init__(self) -> None:
        if bool(self.roles) == ("target_modules" in self.settings):
            raise ValueError(
                "roles: name roles, such as [attn_q, attn_v], or settings.target_modules, and not "
                "both"
            )
        peft_config(self.type, self.settings)

    @property
    def changes_base(self) -> bool:
        """True if attaching changes the layers' own weights."""
        return self.settings.get("init_lora_weights") in CHANGES_BASE

    @property
    def partitionable(self) -> bool:
        """AdaLoRA reads whole weights and gradients."""
        return self.type != ADALORA

    def check_steps(self, num_steps: int) -> None:
        """Errors: ValueError if AdaLoRA's budget cannot fall in so many steps."""
        if self.type == ADALORA and num_steps < shortest_schedule(self.settings):
            raise ValueError(
                f"settings: tinit {self.settings.get('tinit', 0)} and tfinal "
                f"{self.settings.get('tfinal', 0)} leave no step of {num_steps} in which AdaLoRA's "
                "budget falls; give fewer, or more steps"
            )

    def attach(self, host: Host) -> list[nn.Parameter]:
        """Let peft put its layers into the model, and move each behind the layer that it is for.

        Errors: ValueError if peft cannot, or a layer is one of another method's.
        """
        config = peft_config(self.type, self.settings, self.pattern(host))
        if not self.settings.keys().isdisjoint(BY_NAME):
            check_patterns(host.model, config)
        trained: list[nn.Parameter] = []
        pairs = put_behind(host.model, host.name, config)
        for layer, extension in pairs:
            trained += [p for p in extension.parameters() if p.requires_grad]
            if self.changes_base:
                host.changed.append(layer.get_parameter("weight"))
        if self.type == ADALORA:
            host.step_rules.append(RankBudget(config, [extension for _, extension in pairs]))
        return trained

    def pattern(self, host: Host) -> str | None:
        """A pattern of the paths of all layers that the roles name.

        Errors: ValueError if one of them cannot be extended.
        """
        optional = CROSS_ATTENTION if set(self.roles) - set(CROSS_ATTENTION) else ()
        paths: list[str] = []
        for role in dict.fromkeys(self.roles):
            if role not in optional or role in host.targets.paths:
                paths += find_modules(host.model, host.targets, role)
        return "|".join(map(re.escape, dict.fromkeys(paths))) or None

    @torch.no_grad()
    def merge(self, name: str, model: nn.Module, tasks: Sequence[str]) -> Mapping[str, Method]:
        """As peft merges each layer.

        Errors: ValueError if a layer is quantised, or peft cannot.
        """
        for layer in [m for m in model.modules() if isinstance(m, Extended)]:
            if name not in layer.extensions:
                continue
            if isinstance(layer, ExtendedLinear):
                foldable_weight(layer)
            extension = take_first(layer, name)
            assert isinstance(extension, PeftExtension)
            extension.fold(layer)
        return {}

    def after_export(self) -> Peft:
        """It starts plainly beside weights that its first start has changed already."""
        if not self.changes_base:
            return self
        return replace(self, settings={**self.settings, "init_lora_weights": True})

    def refusal(self, library: Library, model: Any) -> str | None:
        """peft's folders hold the adapter, and not the weights that it has changed."""
        if library == "peft" and self.changes_base:
            start = self.settings["init_lora_weights"]
            return (
                f"init_lora_weights: {start} changes the backbone's own weights, and peft's folder "
                "holds the adapter alone; use `vlds convert hf`, then `vlds convert peft` on the "
                "folder that it writes, or `vlds convert merge`"
            )
        return super().refusal(library, model)

    def layout(self, library: Library, name: str, model: Any) -> Layout:
        """peft's own names and settings."""
        added = added_tensors(model, name)
        keys = {t.name: peft_key(t.layer, t.leaf) for t in added}
        stored = {tensor: Stored((key,), stacked=False) for tensor, key in keys.items()}
        config = peft_config(self.type, self.settings).to_dict()
        settings = json.loads(json.dumps(config, default=sorted))
        kept = {k: v for k, v in settings.items() if k not in ABOUT_FILES | WHICH_LAYERS}
        paths = list(dict.fromkeys(tensor.layer for tensor in added))
        return Layout(stored, {**kept, "peft_type": self.type, "target_modules": paths})

    @classmethod
    def cases(cls) -> Mapping[str, Case]:
        """Beside query and value of all attentions; LN_TUNING: all norms of T5 alone."""
        return {
            word: Case(cls(type=kind, settings=settings, roles=roles), **expected)
            for word, (kind, settings, roles, expected) in CASES.items()
        }


def peft_key(layer: str, leaf: str) -> str:
    """Where peft's files have a tensor of a layer."""
    words = [word for word in leaf.split(".")[1:] if word != ADAPTER]
    if words[0] in ("vera_A", "vera_B"):
        return f"base_model.{words[0]}"  # one for all layers
    if words[0] == "lora_magnitude_vector":
        words = words[:1]
    return f"{PEFT_MODEL}{layer}.{'.'.join(words)}"


QUERY_VALUE: tuple[Role, ...] = ("attn_q", "attn_v", "cross_attn_q", "cross_attn_v")
NUM = 3 * Toy.layers * 2
"""Queries and values of the toy backbone."""
CASES: dict[str, tuple[str, dict[str, Any], tuple[Role, ...], dict[str, Any]]] = {
    "": (
        "LORA",
        {"r": 2, "lora_alpha": 2, "use_dora": True},
        QUERY_VALUE,
        {"num_trained": NUM * (2 * 2 * Toy.width + Toy.width)},
    ),
    "rslora": (
        "LORA",
        {"r": 4, "lora_alpha": 2, "use_rslora": True},
        QUERY_VALUE,
        {"num_trained": NUM * 4 * 2 * Toy.width, "starts_frozen": True},
    ),
    "pissa": (
        "LORA",
        {"r": 2, "lora_alpha": 2, "init_lora_weights": "pissa"},
        QUERY_VALUE,
        {
            "num_trained": NUM * 2 * 2 * Toy.width,
            "refused": {"peft": "init_lora_weights: pissa changes the backbone's own weights"},
        },
    ),
    "adalora": (
        ADALORA,
        {"init_r": 4, "target_r": 2, "lora_alpha": 4},
        QUERY_VALUE,
        {"num_trained": NUM * (4 * 2 * Toy.width + 4), "starts_frozen": True},
    ),
    "loha": (
        "LOHA",
        {"r": 2, "alpha": 2},
        QUERY_VALUE,
        {"num_trained": NUM * 4 * 2 * Toy.width, "starts_frozen": True},
    ),
    "lokr": (
        "LOKR",
        {"r": 1, "alpha": 1, "decompose_factor": 4},
        QUERY_VALUE,
        {"num_trained": NUM * (4 * 4 + 2 * 4), "starts_frozen": True},
    ),
    "vera": (
        "VERA",
        {"r": 4},
        QUERY_VALUE,
        {"num_trained": NUM * (4 + Toy.width), "starts_frozen": True},
    ),
    "oft": (
        "OFT",
        {"oft_block_size": 4, "use_cayley_neumann": False},
        QUERY_VALUE,
        {"num_trained": NUM * 4 * 6, "starts_frozen": True},
    ),
    "norms": ("LN_TUNING", {}, ("norm",), {"starts_frozen": True}),
}
"""Word -> type, settings, roles, and what the contract tests expect."""

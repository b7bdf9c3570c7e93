"""Methods of Hugging Face's peft (https://github.com/huggingface/peft): DoRA, rsLoRA, PiSSA, LoHa,
LoKr, VeRA, OFT, AdaLoRA and others, by peft's own names, settings and layers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vlds.models.methods.base import PEFT_MODEL, Layout, Library, Method, Stored
from vlds.models.methods.context import StepRule
from vlds.models.methods.host import (
    CROSS_ATTENTION,
    Extended,
    ExtendedLinear,
    Host,
    added_tensors,
    foldable_weight,
    is_tied,
    take_first,
)
from vlds.models.methods.peft_layers import (
    ABOUT_FILES,
    ADALORA,
    ADAPTER,
    BY_NAME,
    CHANGES_BASE,
    WHICH_LAYERS,
    PeftExtension,
    check_patterns,
    peft_config,
    put_behind,
    rank_allocator,
    shortest_schedule,
)
from vlds.schema import Role


@dataclass(frozen=True, kw_only=True)
class Peft(Method):
    """A method of peft, which needs the package: pip install 'vlds[peft]'."""

    libraries: ClassVar[frozenset[Library]] = frozenset({"peft"})

    type: str
    """peft's PeftType, such as LORA."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Fields of peft's config class for that type, by its names."""
    roles: Sequence[Role] = ()
    """Layers that the method extends; leave it out if the settings hold target_modules."""

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
        # As in LoRA: a model may lack cross-attention unless `roles` names nothing else.
        optional = CROSS_ATTENTION if set(self.roles) - set(CROSS_ATTENTION) else ()
        paths: list[str] = []
        for role in dict.fromkeys(self.roles):
            if role not in optional or role in host.targets.paths:
                paths += host.modules_of(role)
        # peft takes a pattern of whole paths; a list would also match the ends of other paths.
        pattern = "|".join(map(re.escape, dict.fromkeys(paths))) or None
        config = peft_config(self.type, self.settings, pattern)
        # Patterns of the recipe may backtrack for years; the one above is harmless.
        if not self.settings.keys().isdisjoint(BY_NAME):
            check_patterns(host.model, config)
        trained: list[nn.Parameter] = []
        pairs = put_behind(host.model, host.name, config)
        for layer, extension in pairs:
            trained += [p for p in extension.parameters() if p.requires_grad]
            if self.changes_base:
                if is_tied(host.model, layer):
                    raise ValueError(
                        f"settings.init_lora_weights: {self.settings['init_lora_weights']} takes a "
                        "part out of the output layer's weights, which are the token table's too; "
                        "leave that layer out, or take init_lora_weights: true"
                    )
                host.changed.append(layer.get_parameter("weight"))
        if self.type == ADALORA:
            host.step_rules.append(RankBudget(config, [extension for _, extension in pairs]))
        return trained

    @torch.no_grad()
    def merge(self, name: str, model: nn.Module, tasks: Sequence[str]) -> Mapping[str, Method]:
        """As peft merges each layer.

        Errors: ValueError if a layer is quantised or shares its weight, or peft cannot.
        """
        for layer in [m for m in model.modules() if isinstance(m, Extended)]:
            if name not in layer.extensions:
                continue
            if isinstance(layer, ExtendedLinear):
                foldable_weight(layer)
            if is_tied(model, layer):
                raise ValueError(
                    "it extends the output layer, whose weights are the token table's too, and "
                    "folding would change both; use `vlds convert hf`, which keeps it beside the "
                    "backbone"
                )
            extension = take_first(layer, name)
            assert isinstance(extension, PeftExtension)
            extension.fold(layer)
        return {}

    def after_export(self) -> Peft:
        # Beside weights that the first start has changed already, it starts plainly.
        if not self.changes_base:
            return self
        return replace(self, settings={**self.settings, "init_lora_weights": True})

    def refusal(self, library: Library, model: Any) -> str | None:
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
        added, stored = added_tensors(model, name), {}
        for tensor in added:
            # The leaf `tuner.lora_A.default.weight` is lora_A.weight in peft's files.
            words = [word for word in tensor.leaf.split(".")[1:] if word != ADAPTER]
            if words[0] == "lora_magnitude_vector":
                words = words[:1]
            key = f"{PEFT_MODEL}{tensor.layer}.{'.'.join(words)}"
            if words[0] in ("vera_A", "vera_B"):  # one for all layers
                key = f"base_model.{words[0]}"
            stored[tensor.name] = Stored((key,), stacked=False)
        config = peft_config(self.type, self.settings).to_dict()
        settings = json.loads(json.dumps(config, default=sorted))
        kept = {k: v for k, v in settings.items() if k not in ABOUT_FILES | WHICH_LAYERS}
        paths = list(dict.fromkeys(tensor.layer for tensor in added))
        return Layout(stored, {**kept, "peft_type": self.type, "target_modules": paths})


class RankBudget(StepRule):
    """AdaLoRA's budget (Zhang et al. 2023, https://arxiv.org/abs/2303.10512), shared out by peft.

    A layer's update is B diag(E) A. Each step scores the triplets (a column of B, an entry of E, a
    row of A) of all layers by |weight x gradient|, smoothed over steps, and sets the entries of the
    worst to zero. How many may stay falls from `init_r` to `target_r` a layer, cubically, between
    step `tinit` and step `tfinal` before the last; then they are fixed. An entry may come back
    before.
    """

    def __init__(self, config: Any, extensions: Sequence[PeftExtension]) -> None:
        """`config`: peft's AdaLoraConfig."""
        super().__init__()
        self.config = config
        self.factors: dict[str, nn.Parameter] = {
            f"{number}.{factor}.{ADAPTER}": getattr(extension.tuner, factor)[ADAPTER]
            for number, extension in enumerate(extensions)
            for factor in ("lora_A", "lora_B", "lora_E")
        }
        """The layers' A (r, in), B (out, r) and E (r, 1), by names in which peft finds its own."""
        # Buffers go by number, since their names cannot hold the dots of the factors' names.
        for place, (name, parameter) in enumerate(self.factors.items()):
            for kind in ("sensitivity", "uncertainty"):
                zeros = torch.zeros(parameter.shape, device=parameter.device)
                self.register_buffer(f"{kind}_{place}", zeros, persistent=False)
            if "lora_E" in name:
                dropped = torch.zeros(parameter.shape, device=parameter.device, dtype=torch.bool)
                self.register_buffer(f"dropped_{place}", dropped, persistent=False)

    def penalty(self) -> Tensor:
        """Distance of the rows of A and the columns of B from orthonormal, a mean over matrices."""
        distances = []
        for name, parameter in self.factors.items():
            if "lora_E" not in name:
                matrix = parameter.float()
                rows = matrix if "lora_A" in name else matrix.T
                unit = torch.eye(len(rows), device=rows.device)
                distances.append(torch.linalg.matrix_norm(rows @ rows.T - unit))
        mean: Tensor = self.config.orth_reg_weight * torch.stack(distances).mean()
        return mean

    def needs_gradients(self, step: int, num_steps: int) -> Sequence[nn.Parameter]:
        """All factors, until the budget is fixed."""
        return list(self.factors.values()) if step < num_steps - self.config.tfinal else ()

    @torch.no_grad()
    def after_step(
        self, step: int, num_steps: int, gradients: Mapping[nn.Parameter, Tensor] | None
    ) -> Mapping[nn.Parameter, Tensor]:
        """Score the triplets and share out the budget, as peft's `update_and_allocate` does."""
        fixed = num_steps - self.config.tfinal
        if step > fixed and self.is_reached():  # not yet if a resumed run has fewer steps
            return self.dropped()
        self.config.total_step = num_steps
        copies: dict[str, Tensor] = {}
        for name, parameter in self.factors.items():
            copies[name] = parameter.detach().float().clone()
            if gradients is not None and parameter in gradients:
                copies[name].grad = gradients[parameter]
        # peft's allocator reads nothing of a model but its named parameters.
        weights = SimpleNamespace(named_parameters=copies.items)
        # A new allocator each step, which continues from the buffers: run states hold those.
        allocator = rank_allocator(weights, self.config)
        for place, name in enumerate(self.factors):
            allocator.ipt[name] = None  # known, so that peft does not begin its averages
            allocator.exp_avg_ipt[name] = self.get_buffer(f"sensitivity_{place}")
            allocator.exp_avg_unc[name] = self.get_buffer(f"uncertainty_{place}")
        if gradients is not None and step < fixed:
            allocator.update_ipt(weights)
            for place, name in enumerate(self.factors):
                self.get_buffer(f"sensitivity_{place}").copy_(allocator.exp_avg_ipt[name])
                self.get_buffer(f"uncertainty_{place}").copy_(allocator.exp_avg_unc[name])
        budget, is_due = allocator.budget_schedule(step)
        # Due every deltaT steps. From step `fixed` on, the last budget must hold at once.
        if not is_due and step < fixed:
            return {}
        kept = allocator.mask_to_budget(weights, budget)
        for place, name in enumerate(self.factors):
            if name in kept:  # E alone; the list is flat, E is (r, 1)
                dropped = self.get_buffer(f"dropped_{place}")
                dropped.copy_(~torch.tensor(kept[name])[:, None])
        return self.dropped()

    def is_reached(self) -> bool:
        """True if no more entries are left than the last budget has."""
        dropped = self.dropped().values()
        most: int = self.config.target_r * len(dropped)
        return sum(int((~mask).sum()) for mask in dropped) <= most

    def dropped(self) -> dict[nn.Parameter, Tensor]:
        """Each layer's E -> True for entries that are out of the budget."""
        return {
            parameter: self.get_buffer(f"dropped_{place}")
            for place, (name, parameter) in enumerate(self.factors.items())
            if "lora_E" in name
        }

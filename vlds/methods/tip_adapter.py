"""Tip-Adapter-F (Zhang et al. 2022, https://arxiv.org/abs/2207.09519): the embeddings of the
training pictures vote for their classes beside the classes' texts, and train:

    logits = s f W + alpha exp(-beta (1 - f K)) L,    L: the keys' classes.

SimNL with `share: 1`, `temperature: null` and no residuals says the same before training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vlds.heads.texts import ClassTexts
from vlds.methods.base import Case, Method
from vlds.methods.few_shot import (
    CacheExtension,
    cache_logits,
    dual_encoder_cases,
    find_place,
    num_shots,
)
from vlds.methods.host import Host
from vlds.schema import OptimizerRule, OptimizerRules


@dataclass(frozen=True, kw_only=True)
class TipAdapter(Method):
    """Cached embeddings of the training pictures, which train."""

    needs_whole_model: ClassVar[bool] = True

    alpha: float = 1.0
    """Factor of the cached embeddings' logits."""
    beta: float = 5.5
    """How quickly these fall with the distance."""
    views: int = 10
    """Augmented views of each training picture: the cached embeddings begin as their means, and
    training draws among them; 0: the picture itself."""

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "views"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: got {getattr(self, name)}; give at least 0")

    def attach(self, host: Host) -> list[nn.Parameter]:
        """Put the embeddings beside the texts of the run's task with classes.

        Errors: ValueError if there is no such task, or its number of shots is unknown.
        """
        place = find_place(host)
        sizes = (len(place.head.config.names), num_shots(host, place), place.head.width)
        module = TipAdapterModule(self, *sizes, **place.options)
        place.attach(host.name, module)
        return list(module.parameters())

    @classmethod
    def cases(cls) -> Mapping[str, Case]:
        return dual_encoder_cases(cls())


class TipAdapterModule(CacheExtension):
    """The cached embeddings. Trained ones are not of length 1."""

    optimizer_rules: ClassVar[OptimizerRules] = {"keys": OptimizerRule()}

    def __init__(
        self, config: TipAdapter, num_classes: int, num_shots: int, width: int, **options: Any
    ) -> None:
        super().__init__()
        self.config, self.views = config, config.views
        self.keys = nn.Parameter(torch.zeros(num_classes, num_shots, width, **options))

    def forward(self, images: Tensor, texts: ClassTexts) -> Tensor:
        keys = self.keys.to(images)
        affinity = (-self.config.beta * (1 - images @ keys.flatten(0, 1).mT)).exp()
        cached = cache_logits(affinity, keys.new_ones(keys.shape[:2]), self.config.alpha)
        return texts.scale * images @ texts.template.mT + cached

"""Tip-Adapter-F (Zhang et al. 2022, https://arxiv.org/abs/2207.09519): the embeddings K of the
training pictures vote for their classes L beside the classes' texts W, and train:

    logits = s f W + alpha exp(-beta (1 - f K)) L

Before training, SimNL with `share: 1` and `temperature: null` computes the same if the classes have
no descriptions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vlds.heads.texts import ClassTexts
from vlds.methods.few_shot import CacheExtension, CacheMethod, cache_logits
from vlds.methods.host import Host
from vlds.schema import OptimizerRule, OptimizerRules


@dataclass(frozen=True, kw_only=True)
class TipAdapter(CacheMethod):
    """Cached embeddings of the training pictures, which train."""

    def attach(self, host: Host) -> list[nn.Parameter]:
        """As `CacheMethod.put`."""
        module, _ = self.put(host, TipAdapterModule)
        return list(module.parameters())


class TipAdapterModule(CacheExtension):
    """The cached embeddings, which lose their length of 1 in training."""

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

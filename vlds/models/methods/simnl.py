"""SimNL and DualAdapter: few-shot classification that also learns what a picture is not (Zhang et
al. 2024, https://arxiv.org/abs/2403.12964; version 2 is SimNL, version 1 DualAdapter). With f an
image embedding, N(x) = x / |x|, W the class prototypes, K the cached embeddings of the shots, V the
classes that these vote for:

    positive = s f W + alpha exp(-beta (1 - f K+)) V
    negative = .15 s (1 - f W-) + alpha exp(-beta f K-) V'
    logits   = share positive + (1 - share) negative
    W  = .45 N(template + t1) + .55 N(described + t2),    K+ = N(K + k+)
    W- = N(negative text + n),                            K- = N(negative keys + k-)

Only the residuals t1, t2, k+, n, k- train, each classes x width and 0 at first; s is the model's
own scale (100 in CLIP, where the original code has 100 and 15).

Shapes: b rows, c classes, k shots of each class, d width of the embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlds.models.heads.texts import ClassTexts, unit
from vlds.models.methods.context import BatchLoss, Predicted
from vlds.models.methods.host import Host
from vlds.models.methods.tip_adapter import (
    CacheExtension,
    CacheMethod,
    HeadPlace,
    cache_logits,
    negative_keys,
    shot_weights,
)
from vlds.runtime.checks import Count, MadeForBatch, NotNegative, Positive, Share
from vlds.schema import OptimizerRule

TEMPLATE_SHARE = 0.45
"""Share of the templates' prototypes in the mixture with those of descriptions."""
NEGATIVE_SCALE = 0.15
"""Scale of the negative text's logits, relative to the positive text's."""
MARGIN = 4.0
"""Divides 1 - cosine of two prototypes: the margin between their distances."""
TINY = 1e-7
"""`eps` of the cosines."""


@dataclass(frozen=True, kw_only=True)
class SimNL(CacheMethod):
    """Residuals of class prototypes and cached embeddings, positive and negative ones."""

    alpha: NotNegative = 3.0
    """Factor of the cached embeddings' logits."""
    beta: NotNegative = 1.0
    """Rate at which these fall with the distance."""
    share: Share = 0.75
    """Share of the positive logits; 1: no negative ones."""
    temperature: Positive | None = 1.0
    """Temperature of the softmax that weighs a class's shots by their likeness; null: all weigh the
    same. DualAdapter has 0.1."""
    weighted_negatives: bool = True
    """Weigh the shots of the negative logits too; DualAdapter does not."""
    reranking: NotNegative = 1.0
    """Weight of the loss that keeps a picture nearer to its class than to the nearest ones."""
    neighbours: Count = 3
    """Number of the nearest prototypes that this loss compares."""
    consistency: NotNegative = 8.0
    """Weight of the loss that keeps the prototypes near those without residuals."""
    negative_rate: NotNegative = 5.0
    """Factor of the learning rate of the negative residuals."""

    def attach(self, host: Host) -> list[nn.Parameter]:
        """Put the residuals beside the texts of the run's task with classes, and add to the loss.

        Errors: ValueError if there is no such task, or its number of shots is unknown.
        """
        module, place = self.put(host, SimNLModule)
        host.batch_losses.append(SimNLLoss(self, module, place))
        return list(module.parameters())


class Logits(NamedTuple):
    """The parts of the logits, (b, c) each."""

    positive_text: Tensor
    positive_cache: Tensor
    negative_text: Tensor
    negative_cache: Tensor

    def mixed(self, share: float) -> Tensor:
        """(b, c) their mixture, with this share of the positive ones."""
        positive = self.positive_text + self.positive_cache
        return share * positive + (1 - share) * (self.negative_text + self.negative_cache)


class Prototypes(NamedTuple):
    """The classes' texts with residuals."""

    template: Tensor
    """(c, d), length 1."""
    described: Tensor
    """(c, d), length 1."""

    def mixed(self) -> Tensor:
        """(c, d), not of length 1."""
        return TEMPLATE_SHARE * self.template + (1 - TEMPLATE_SHARE) * self.described


class SimNLModule(CacheExtension):
    """The residuals, and the cached embeddings."""

    reads_descriptions: ClassVar[bool] = True
    reads_negatives: ClassVar[bool] = True

    template: nn.Parameter
    described: nn.Parameter
    key: nn.Parameter
    negative_text: nn.Parameter
    negative_key: nn.Parameter

    def __init__(
        self, config: SimNL, num_classes: int, num_shots: int, width: int, **options: Any
    ) -> None:
        super().__init__()
        self.config, self.views = config, config.views
        self.register_buffer("keys", torch.zeros(num_classes, num_shots, width, **options))
        # Zeros: training begins at the prototypes and keys without residuals.
        names = ["template", "described", "key"]
        names += ["negative_text", "negative_key"] if config.share < 1 else []
        for name in names:
            setattr(self, name, nn.Parameter(torch.zeros(num_classes, width, **options)))
        # The first three are positive, the others negative.
        rates = {name: OptimizerRule(rate=config.negative_rate) for name in names[3:]}
        self.optimizer_rules = dict.fromkeys(names, OptimizerRule()) | rates
        self.noted = MadeForBatch()

    def forward(self, images: Tensor, texts: ClassTexts) -> Tensor:
        self.noted.value = images, texts  # the loss reads the same ones
        if self.config.share == 1:
            return torch.add(*self.positive(images, texts))
        return self.logits(images, texts).mixed(self.config.share)

    def logits(self, images: Tensor, texts: ClassTexts) -> Logits:
        """All parts of the logits."""
        config, cached = self.config, self.keys.to(images)
        absent = unit(texts.negative + self.negative_text)
        by_text = NEGATIVE_SCALE * texts.scale * (1 - images @ absent.mT)
        keys = unit(negative_keys(cached) + self.negative_key[:, None]).flatten(0, 1)
        # A picture that is like the other classes' shots speaks against the class.
        affinity = (-config.beta * (images @ keys.mT)).exp()
        weights = shot_weights(cached, config.temperature if config.weighted_negatives else None)
        by_shots = cache_logits(affinity, weights, config.alpha)
        return Logits(*self.positive(images, texts), by_text, by_shots)

    def positive(self, images: Tensor, texts: ClassTexts) -> tuple[Tensor, Tensor]:
        """The logits by the classes' texts, and those by the cached embeddings."""
        config, cached = self.config, self.keys.to(images)
        keys = unit(cached + self.key[:, None]).flatten(0, 1)
        affinity = (-config.beta * (1 - images @ keys.mT)).exp()
        weights = shot_weights(cached, config.temperature)
        by_text = texts.scale * (images @ self.prototypes(texts).mixed().mT)
        return by_text, cache_logits(affinity, weights, config.alpha)

    def prototypes(self, texts: ClassTexts) -> Prototypes:
        """The texts that are compared with pictures."""
        return Prototypes(
            unit(texts.template + self.template), unit(texts.described + self.described)
        )


class SimNLLoss(BatchLoss):
    """The two terms beside the cross-entropy."""

    def __init__(self, config: SimNL, module: SimNLModule, place: HeadPlace) -> None:
        self.config, self.module, self.place = config, module, place

    def of_examples(self, passes: Sequence[Predicted]) -> Tensor:
        config, (predicted, *_) = self.config, passes
        images, texts = self.module.noted.take()
        prototypes = self.module.prototypes(texts)
        labels = predicted.classes[self.place.number].targets.argmax(1)
        reranked = reranking(images, prototypes.mixed(), labels, config.neighbours)
        # The second loss reads weights alone: it is the same for every example.
        lost = config.reranking * reranked + config.consistency * consistency(prototypes, texts)
        return self.place.by_row(predicted, lost)


def reranking(images: Tensor, prototypes: Tensor, labels: Tensor, neighbours: int) -> Tensor:
    """(b,) of images (b, d), prototypes (c, d), labels (b,): the hinge loss between an image's
    distance to its class's prototype and those to the nearest prototypes (which may include the
    class's), with a margin that grows with the angle between the prototypes; a mean over these."""
    # Through a matrix product, small distances would be rounding errors.
    distances = torch.cdist(images, prototypes, compute_mode="donot_use_mm_for_euclid_dist")
    own = distances.gather(1, labels[:, None])
    near, numbers = distances.topk(min(neighbours, len(prototypes)), largest=False)
    cosines = (prototypes[labels][:, None] * prototypes[numbers]).sum(-1)
    return (own + (1 - cosines) / MARGIN - near).relu().mean(1)


def consistency(prototypes: Prototypes, texts: ClassTexts) -> Tensor:
    """Distance of the mixed prototypes (c, d) from the texts: 1 - cosine, averaged. As in the
    original code, each of the d cosines is taken over the classes, not over the embedding."""
    mixed, shares = prototypes.mixed(), (TEMPLATE_SHARE, 1 - TEMPLATE_SHARE)
    pairs = zip(shares, (texts.template, texts.described), strict=True)
    distances = [
        share * (1 - F.cosine_similarity(mixed, text, dim=0, eps=TINY)) for share, text in pairs
    ]
    return torch.stack(distances).sum(0).mean()

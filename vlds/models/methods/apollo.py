"""APoLLo, as the paper describes it (Chowdhury et al. 2023, https://arxiv.org/abs/2312.01564):
prompts in both towers of CLIP, an adapter behind each that looks at the other's embeddings, and
losses that keep what both say near what the frozen model says of augmented inputs.

The public code does not realise this (its adapters never train, its attention runs over the rows of
the batch, its consistency returns nothing), so these are our choices:
- the adapter's norms stand before its layers. Where they stand behind the sums, as in the paper's
  drawing, no weights make the adapter the identity; here the output layers begin as zeros;
- a picture's embedding attends to the classes' texts, and each class's text to all of them and to
  the picture: no row of a batch sees another one;
- the augmented inputs are a random part of the picture, and the classes' descriptions, in place of
  generated pictures; InfoNCE has its positive pair in the denominator;
- AdamW; the weights of the losses are fields.

Shapes: b rows, c classes, n rows of all ranks, d width of the embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlds.models.heads.texts import ClassExtension, ClassTexts, TextHead, Twin, unit
from vlds.models.methods.base import Method
from vlds.models.methods.context import BatchLoss, Predicted
from vlds.models.methods.coupled_prompts import CoupledPrompts, Switch, attach_prompts
from vlds.models.methods.host import Host
from vlds.models.methods.tip_adapter import HeadPlace, find_place
from vlds.runtime.checks import Count, MadeForBatch, NotNegative, ShareBelow1
from vlds.runtime.ranks import gather_rows

CONTRAST_TEMPERATURE = 0.2
"""InfoNCE divides similarities by it."""
DIVERGENCE_TEMPERATURE = 0.04
"""The divergence divides similarities by it, to make them distributions."""


@dataclass(frozen=True, kw_only=True)
class APoLLo(Method):
    """Coupled prompts, cross-modal adapters, and consistency with the frozen model."""

    recomputable: ClassVar[bool] = False
    needs_whole_model: ClassVar[bool] = True
    compares_examples: ClassVar[bool] = True

    depth: Count = 9
    """Layers with prompts, from the first on."""
    length: Count = 2
    """Prompts in a layer: as many words of the template, and as many tokens behind a picture."""
    adapters: bool = True
    """Put an adapter behind each tower; without, and with no other losses, it is MaPLe."""
    heads: Count = 8
    """Heads of the adapters' attention."""
    expansion: Count = 4
    """Width of the adapters' feed-forward layers, relative to the embeddings'."""
    dropout: ShareBelow1 = 0.1
    """Dropout in the adapters."""
    contrast: NotNegative = 1.0
    """Weight of InfoNCE against the frozen model's embeddings; 0: none."""
    divergence: NotNegative = 2.0
    """Weight of the divergence between the similarities of the tuned and of the frozen embedding to
    the frozen model's other embeddings; 0: none."""
    views: Count = 10
    """Augmented views of each picture; each step, the frozen model embeds one of them."""

    def attach(self, host: Host) -> list[nn.Parameter]:
        """Put prompts into the towers and adapters behind them.

        Errors: ValueError unless one task of the run has a TextHead, or if the sizes do not fit
        the model.
        """
        place = find_place(host)
        switch = Switch()
        prompts = attach_prompts(host, self.depth, self.length, switch)
        module = APoLLoModule(self, prompts, switch, place)
        place.attach(host.name, module)
        if self.contrast or self.divergence:
            host.batch_losses.append(FrozenConsistency(self, module, place))
        return [*prompts.parameters(), *module.parameters()]


class APoLLoModule(ClassExtension):
    """The adapters behind both towers, in the head that compares pictures with classes."""

    def __init__(
        self, config: APoLLo, prompts: CoupledPrompts, switch: Switch, place: HeadPlace
    ) -> None:
        super().__init__()
        self.config, self.switch = config, switch
        self.twin_views = config.views if config.contrast or config.divergence else 0
        # A bound method: as an attribute, the towers' prompts would be part of the head too.
        self.start_prompts = prompts.start
        self.image_adapter: CrossAdapter | None = None
        self.text_adapter: CrossAdapter | None = None
        if config.adapters:
            width, options = place.head.width, place.options
            self.image_adapter = CrossAdapter(config, width, **options)
            self.text_adapter = CrossAdapter(config, width, **options)
        self.embeddings = MadeForBatch()
        """Images (b, d) and texts (b, c, d) or (1, c, d) of the last pass."""

    def start(self, config: TextHead, backbone: Any, tokenizer: Any) -> None:
        """Let the prompts begin as the template's first words.

        Errors: ValueError if there are several templates, or the classes' texts have fewer than
        `length` first words in common.
        """
        if len(config.templates) != 1:
            raise ValueError(
                f"its prompts take the place of a template's first words, but the head has "
                f"{len(config.templates)} templates; give one"
            )
        # One template makes one text for each class. CLIP's tokenizer puts a start token before it.
        texts = [texts[0] for texts in config.sentences().template]
        ids: list[list[int]] = tokenizer(texts)["input_ids"]
        length, first = self.config.length, int(ids[0][0] == tokenizer.bos_token_id)
        if len({tuple(of_text[: first + length]) for of_text in ids}) > 1:
            raise ValueError(
                f"length: {length}, but the template {config.templates[0]!r} has fewer words "
                "before the class's name; give a smaller length, or another template"
            )
        # The states must be the frozen tower's, without the prompts that they will replace.
        with self.switch.off():
            self.start_prompts(backbone.text_model, ids[0], first)

    def switched_off(self) -> AbstractContextManager[None]:
        return self.switch.off()

    def forward(self, images: Tensor, texts: ClassTexts) -> Tensor:
        classes = texts.template[None]
        if self.image_adapter is not None and self.text_adapter is not None:
            # Both adapters read the towers' embeddings: neither reads the other's output.
            adapted = self.image_adapter(images[:, None], classes)[:, 0]
            classes = unit(self.text_adapter(classes, images[:, None]))
            images = unit(adapted)
        self.embeddings.value = images, classes
        logits: Tensor = texts.scale * (images[:, None] * classes).sum(-1)
        return logits


class CrossAdapter(nn.Module):
    """x + attention among x + attention to the others, through one attention layer; then a
    feed-forward layer."""

    behind_zeros = ("inside.weight", "inside.bias", "wide.weight", "wide.bias")

    def __init__(self, config: APoLLo, width: int, **options: Any) -> None:
        super().__init__()
        if width % config.heads:
            raise ValueError(
                f"heads: {config.heads} do not divide the {width} numbers of an embedding; give a "
                "number that does"
            )
        self.heads, self.dropout = config.heads, config.dropout
        self.norm = nn.LayerNorm(width, **options)
        self.inside = nn.Linear(width, 3 * width, **options)
        self.outside = nn.Linear(width, width, **options)
        self.wide_norm = nn.LayerNorm(width, **options)
        self.wide = nn.Linear(width, config.expansion * width, **options)
        self.narrow = nn.Linear(config.expansion * width, width, **options)
        # What both residual sums add is 0 at first: the adapter begins as the identity.
        for layer in (self.outside, self.narrow):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, own: Tensor, others: Tensor) -> Tensor:
        """(b or 1, n, d) of one modality, (b or 1, m, d) of the other -> (b, n, d), in float32."""
        dtype = self.inside.weight.dtype

        def split(states: Tensor) -> list[Tensor]:
            """Queries, keys and values (b, heads, n, d / heads)."""
            parts = self.inside(self.norm(states.to(dtype))).chunk(3, -1)
            return [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts]

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            scores = (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1)
            attended: Tensor = (scores @ value).transpose(1, 2).flatten(2)
            return attended

        def drop(states: Tensor) -> Tensor:
            return F.dropout(states, self.dropout, self.training)

        # Two softmaxes through one layer, whose results are added: own and others do not compete.
        query, key, value = split(own)
        _, other_key, other_value = split(others)
        attended = attend(query, key, value) + attend(query, other_key, other_value)
        # Sums are in the embeddings' float32, layers in the type of their weights.
        states = own + drop(self.outside(attended).to(own))
        wide = drop(self.wide(self.wide_norm(states.to(dtype))).relu())
        return states + drop(self.narrow(wide).to(own))


class FrozenConsistency(BatchLoss):
    """Distance of the tuned model's embeddings from the frozen one's of augmented inputs."""

    def __init__(self, config: APoLLo, module: APoLLoModule, place: HeadPlace) -> None:
        self.config, self.module, self.place = config, module, place

    def of_examples(self, passes: Sequence[Predicted]) -> Tensor:
        config = self.config

        def losses(tuned: Tensor, frozen: Tensor, first: int) -> Tensor:
            """(g, b) of g groups of tuned embeddings (g, b, d). Number i of a group belongs to
            number `first` + i of the frozen ones (n, d)."""
            total = tuned.new_zeros(tuned.shape[:2])
            if config.contrast:
                total = total + config.contrast * info_nce(tuned, frozen, first)
            if config.divergence and len(frozen) > 1:
                total = total + config.divergence * divergence(tuned, frozen, first)
            return total

        images, texts = self.module.embeddings.take()
        twin: Twin = self.place.head.twin.take()
        # Pictures are told from those of all ranks, whose rows stand before and behind this rank's.
        frozen = gather_rows(twin.images)
        of_images = losses(images[None], frozen.rows, frozen.first)[0]
        of_texts = losses(texts, twin.texts, 0).mean(-1)
        return self.place.by_row(passes[0], of_images + of_texts)


def info_nce(tuned: Tensor, frozen: Tensor, first: int) -> Tensor:
    """(g, b) cross-entropy of finding each embedding's own frozen one among all (n, d)."""
    logits = tuned @ frozen.mT / CONTRAST_TEMPERATURE
    # Number i of each group has its pair at `first` + i: with 2 groups of 3 from 4, 4 5 6 4 5 6.
    targets = first + torch.arange(tuned.shape[1], device=tuned.device)
    lost = F.cross_entropy(logits.flatten(0, 1), targets.repeat(len(tuned)), reduction="none")
    return lost.view(tuned.shape[:2])


def divergence(tuned: Tensor, frozen: Tensor, first: int) -> Tensor:
    """(g, b) Jensen-Shannon divergence between two distributions over the other frozen embeddings:
    by their similarity to the tuned embedding, and to its own frozen one."""
    # `frozen` holds all ranks' rows: number i here is number `first` + i there, and is left out.
    own = first + torch.arange(tuned.shape[1], device=tuned.device)
    # Own numbers 1 and 2 of four leave 0 2 3 and 0 1 3.
    others = torch.arange(len(frozen) - 1, device=tuned.device).expand(len(own), -1)
    others = (others + (others >= own[:, None])).expand(len(tuned), -1, -1)
    sides = (tuned, frozen[own].expand_as(tuned))
    p, q = (  # in log space
        (each @ frozen.mT / DIVERGENCE_TEMPERATURE).gather(-1, others).log_softmax(-1)
        for each in sides
    )
    # The log of the mean of both distributions.
    middle = torch.logaddexp(p, q) - math.log(2)
    halves = torch.stack([(each.exp() * (each - middle)).sum(-1) for each in (p, q)])
    return halves.mean(0)

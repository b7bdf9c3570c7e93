"""The model of METER (https://arxiv.org/abs/2111.02387): text encoder and image encoder -> streams
that attend to each other -> the pooled pair that heads read, and the words that are masked.

Shapes: b examples, u distinct images, n images per example, l tokens of text, v of an image, w
words, d width of the streams.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from vlds.kernels.dropout import pictures_follow
from vlds.methods.batch_loss import Predicted
from vlds.methods.context import Visual
from vlds.methods.extended import run_beside
from vlds.models.co_attention import INIT_STD, NORMS, ROLES, CoAttention, Fused
from vlds.models.generation.answer import Answer
from vlds.models.model import Model, Part
from vlds.models.token_nll import targets_of
from vlds.models.word_head import WordHead
from vlds.schema import IGNORED_LABEL, NO_IMAGE, Batch, Decoding, Role, TargetModules
from vlds.vision.base import GridEncoder, VisionEncoder

LAYERS: Mapping[str, tuple[str, ...]] = {
    "text": ("text.encoder.layer.*",),
    "fusion": ("fusion.text_layers.*", "fusion.image_layers.*"),
}
"""Part -> its layers, which BERT's classes and BridgeTower's name alike inside."""


class TextAndFusion(nn.Module):
    """What stands behind the image encoder."""

    def __init__(self, text: Any, fusion: CoAttention, words: WordHead | None) -> None:
        super().__init__()
        self.text, self.fusion = text, fusion
        if words is not None:
            self.words = words

    @property
    def config(self) -> Any:
        """The text encoder's."""
        return self.text.config


class CrossModalModel(Model):
    """Two encoders and the co-attention between them."""

    def __init__(
        self,
        vision: GridEncoder,
        backbone: TextAndFusion,
        *,
        encoder: VisionEncoder,
        num_images: int,
        tokenizer: Any = None,
    ) -> None:
        """`encoder`: the recipe's choice that `vision` comes from."""
        super().__init__(tokenizer)
        self.vision, self.backbone, self.num_images = vision, backbone, num_images
        self.parts = {
            "backbone": Part("backbone", roles_of(*LAYERS)),
            "text": Part("backbone", roles_of("text")),
            "fusion": Part("backbone", roles_of("fusion")),
            "vision": Part("vision", encoder.target_modules),
        }

    @property
    def state_width(self) -> int:
        """Text and picture of each pair."""
        return 2 * self.num_images * int(self.backbone.fusion.types.embedding_dim)

    def generation_defaults(self) -> GenerationConfig:
        return GenerationConfig()

    # Training.

    def predicted(self, batch: Batch) -> Predicted:
        labels = targets_of(batch)
        split = self.heads.split(batch, labels)
        text, pooled = self.fuse(batch)
        logits = self.word_logits(text[split.is_token])
        classes = self.heads.predicted(pooled[split.rows], split.rows, batch)
        return Predicted(logits, labels, classes)

    def logits(self, batch: Batch) -> Tensor:
        """(b, l, w) of the words in the text's places."""
        return self.word_logits(self.fuse(batch)[0])

    def word_logits(self, states: Tensor) -> Tensor:
        """(..., d) -> (..., w); no words at all without a head of words."""
        if isinstance(words := getattr(self.backbone, "words", None), WordHead):
            logits: Tensor = words(states)
            return logits
        return states.new_zeros(*states.shape[:-1], self.backbone.config.vocab_size)

    def first_states(self, batch: Batch) -> Tensor:
        return self.fuse(batch)[1]

    def fuse(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(b, l, d) states of the text beside the first picture, and (b, n * 2 d) the pooled pairs
        of the text with each picture, zeros where there is none."""
        self.context.set_rows(batch.task_index, None, batch.input_ids.device)
        images, shown = self.visual_tokens(batch)
        self.context.visual = Visual(images.flatten(1, 2), shown.flatten(1))
        run_beside(self.backbone)
        mask = batch.attention_mask.bool()
        self.context.token_mask = mask
        read = self.backbone.text(input_ids=batch.input_ids, attention_mask=mask.long())
        text = read.last_hidden_state
        pairs: list[Fused] = [
            self.backbone.fusion(text, mask, images[:, number], shown[:, number], number)
            for number in range(self.num_images)
        ]
        pooled = [pair.pooled * shown[:, number, :1] for number, pair in enumerate(pairs)]
        return pairs[0].text, torch.cat(pooled, 1)

    def visual_tokens(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(b, n, v, dim) tokens of each example's pictures and their mask (b, n, v); each distinct
        picture is encoded once.

        Errors: ValueError if the batch has no pictures.
        """
        if (pictures := batch.pictures) is None:
            raise ValueError("images: this batch has no pictures, and CrossModal reads them")
        with torch.no_grad() if self.vision.frozen else pictures_follow(pictures):
            features: Tensor = self.vision(pictures)
        features = features.to(self.backbone.fusion.types.weight.dtype)
        missing = self.num_images - batch.image_index.shape[1]
        index = nn.functional.pad(batch.image_index, (0, missing), value=NO_IMAGE)
        shown = (index != NO_IMAGE)[..., None].expand(-1, -1, features.shape[1])
        return features[index.clamp(min=0)], shown

    # Answers.

    @torch.no_grad()
    def write(self, batch: Batch, decoding: Decoding) -> list[Answer]:
        """Texts with the most likely word in each place that has a label."""
        gaps = targets_of(batch) != IGNORED_LABEL
        best, ids = self.logits(batch).float().log_softmax(-1).max(-1)
        filled = torch.where(gaps, ids, batch.input_ids)
        totals = (best * gaps).sum(1)
        return [
            Answer(self.read_text(row[mask]), math.exp(total), None)
            for row, mask, total in zip(
                filled, batch.attention_mask.bool(), totals.tolist(), strict=True
            )
        ]

    def read_text(self, ids: Tensor) -> str:
        """Tokens (l,) as text."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()


def roles_of(*parts: str) -> TargetModules:
    """Where methods attach in some parts of what stands behind the image encoder."""
    layers = [layer for part in parts for layer in LAYERS[part]]
    paths: dict[str, tuple[str, ...]] = {
        role: tuple(f"{layer}.{leaf}" for layer in layers if is_in(layer, role))
        for role, leaf in ROLES.items()
    }
    paths["norm"] = tuple(f"{layer}.{norm}" for layer in layers for norm in NORMS)
    return TargetModules({r: p for r, p in paths.items() if p}, linear_init_std=INIT_STD)


def is_in(layer: str, role: Role) -> bool:
    """True if a layer has the role: the text encoder's have no cross-attention."""
    return layer.startswith("fusion.") or not role.startswith("cross_attn")

"""The model of METER (Dou et al. 2022, https://arxiv.org/abs/2111.02387): text encoder and image
encoder -> streams that attend to each other -> the pooled pair that heads read, and the words that
are masked.

In METER's co-attention, each layer of a stream attends to itself and then to the other stream:

    x, y -> T(x; y), I(y; x),  T(x; y) = FFN(LN(z + Attention(z, y))), z = LN(x + Attention(x, x))

Both layers of a pair read the streams as they were before the pair. What stands for the pair of
text and picture is the first token of each stream, through the stream's pooler.

Shapes: b examples, u distinct images, n images per example, l tokens of text, v of an image, w
words, d width of the streams.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.bridgetower.configuration_bridgetower import BridgeTowerTextConfig
from transformers.models.bridgetower.modeling_bridgetower import (
    BridgeTowerBertCrossLayer,
    BridgeTowerPooler,
)

from vlds.models.generation.answer_list import Answer
from vlds.models.kinds.base import grid_features
from vlds.models.loading.resizing import Resizes
from vlds.models.loss import targets_of
from vlds.models.methods.context import Predicted, Visual
from vlds.models.methods.host import run_beside
from vlds.models.model import Model, Part, ReadAlone
from vlds.models.vision.base import GridEncoder, VisionEncoder
from vlds.runtime.checks import Count, ShareBelow1
from vlds.schema import (
    IGNORED_LABEL,
    NO_IMAGE,
    UNDECAYED,
    Batch,
    Decoding,
    OptimizerRules,
    Role,
    TargetModules,
)

ROLES: dict[Role, str] = {
    "attn_q": "attention.self.query",
    "attn_k": "attention.self.key",
    "attn_v": "attention.self.value",
    "attn_out": "attention.output.dense",
    "cross_attn_q": "crossattention.self.query",
    "cross_attn_k": "crossattention.self.key",
    "cross_attn_v": "crossattention.self.value",
    "cross_attn_out": "crossattention.output.dense",
    "ffn_in": "intermediate.dense",
    "ffn_out": "output.dense",
}
"""Role -> module of a layer."""
NORMS = ("attention.output.LayerNorm", "crossattention.output.LayerNorm", "output.LayerNorm")
INIT_STD = 0.02


@dataclass(frozen=True, kw_only=True)
class CoAttentionConfig:
    """Sizes of the two streams; the defaults are METER's."""

    width: Count = 768
    """Channels of both streams."""
    layers: Count = 6
    """Layers of each stream."""
    heads: Count = 12
    """Heads of each attention."""
    dropout: ShareBelow1 = 0.1
    """Dropout of layers and of attention weights."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"heads: got {self.heads}, which does not divide width {self.width}")


class Fused(NamedTuple):
    """What co-attention gives."""

    text: Tensor
    """(b, l, d) states of the text's tokens."""
    image: Tensor
    """(b, v, d) states of the picture's tokens."""
    pooled: Tensor
    """(b, 2 d) the text's first token and the picture's, pooled."""


def with_second_picture(types: Tensor, size: torch.Size) -> Tensor:
    """The table of types of a model with one picture an example, for one with two: the second has
    the first one's, as METER begins on NLVR2; and the other way round."""
    return torch.cat([types, types[-1:]])[: size[0]] if len(types) > 1 else types


class CoAttention(nn.Module):
    """Two streams of layers, which are those of Hugging Face's BridgeTower, built on METER. In
    METER's code they are cross_modal_text_layers, cross_modal_image_layers and so on."""

    optimizer_rules: ClassVar[OptimizerRules] = {"types.weight": UNDECAYED}
    resizes: ClassVar[Resizes] = {"types.weight": with_second_picture}

    def __init__(
        self,
        config: CoAttentionConfig,
        text_width: int,
        image_width: int,
        class_token: bool,
        num_images: int = 1,
    ) -> None:
        """`text_width`, `image_width`: channels of the encoders. `class_token`: whether the first
        token stands for the picture; else the mean of all does. `num_images`: most pictures of an
        example."""
        super().__init__()
        self.class_token = class_token
        d = config.width
        layer = BridgeTowerTextConfig(
            hidden_size=d,
            num_attention_heads=config.heads,
            intermediate_size=4 * d,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            layer_norm_eps=1e-12,
        )
        # Set by hand: layers that are made without their model choose no attention.
        layer._attn_implementation = "sdpa"
        self.text_projection = nn.Linear(text_width, d)
        self.image_projection = nn.Linear(image_width, d)
        self.types = nn.Embedding(1 + num_images, d)  # of the text, and of each picture
        self.text_layers, self.image_layers = (
            nn.ModuleList(BridgeTowerBertCrossLayer(layer) for _ in range(config.layers))
            for _ in range(2)
        )
        self.text_pooler, self.image_pooler = BridgeTowerPooler(layer), BridgeTowerPooler(layer)
        # As BERT does.
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=INIT_STD)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(
        self, text: Tensor, text_mask: Tensor, image: Tensor, image_mask: Tensor, number: int = 0
    ) -> Fused:
        """`text` (b, l, d_t), `image` (b, v, d_i), masks (b, l) and (b, v) bool, True for tokens;
        `number`: which of an example's pictures it is."""
        text = self.text_projection(text) + self.types.weight[0]
        image = self.image_projection(image) + self.types.weight[1 + number]
        # What attention adds to its scores, (b, 1, 1, s). There is always a mask, since the layers'
        # self-attention would be causal without one.
        over_text, over_image = (
            torch.zeros(mask.shape, dtype=text.dtype, device=mask.device).masked_fill(
                ~mask, torch.finfo(text.dtype).min
            )[:, None, None]
            for mask in (text_mask, image_mask)
        )
        for text_layer, image_layer in zip(self.text_layers, self.image_layers, strict=True):
            # In one statement: both layers read the streams as they were before the pair.
            text, image = (
                text_layer(text, image, over_text, over_image)[0],
                image_layer(image, text, over_image, over_text)[0],
            )
        of_image = image if self.class_token else image.mean(1, keepdim=True)
        pooled = torch.cat([self.text_pooler(text), self.image_pooler(of_image)], -1)
        return Fused(text, image, pooled)


class WordHead(nn.Module):
    """States of masked tokens (..., d) -> (..., w), as BERT predicts words: a linear layer, GELU, a
    norm, and a table that is not the encoder's. METER's mlm_score."""

    def __init__(self, width: int, num_words: int) -> None:
        super().__init__()
        self.dense, self.norm = nn.Linear(width, width), nn.LayerNorm(width, eps=1e-12)
        self.words = nn.Linear(width, num_words)
        for layer in (self.dense, self.words):
            nn.init.normal_(layer.weight, std=INIT_STD)
            nn.init.zeros_(layer.bias)

    def forward(self, states: Tensor) -> Tensor:
        logits: Tensor = self.words(self.norm(F.gelu(self.dense(states))))
        return logits


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

    # Training.

    def predicted(self, batch: Batch) -> Predicted:
        split = self.heads.split(batch, targets_of(batch.on_host))
        text, pooled = self.fuse(batch)
        logits = self.word_logits(text[split.tokens])
        classes = self.heads.predicted(pooled[split.classes[0]], split, batch)
        return Predicted(logits, targets_of(batch), split.tokens, classes)

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
        text = self.read(batch, Visual(images.flatten(1, 2), shown.flatten(1)))
        return self.join(text, batch.attention_mask.bool(), images, shown)

    def read(self, batch: Batch, seen: Visual | None) -> Tensor:
        """(b, l, d') the text encoder's states. `seen`: the pictures beside the texts, which some
        methods read; None if they are not known."""
        mask = batch.attention_mask.bool()
        self.context.visual, self.context.token_mask = seen, mask
        run_beside(self.backbone)
        read = self.backbone.text(input_ids=batch.input_ids, attention_mask=mask.long())
        states: Tensor = read.last_hidden_state
        return states

    def join(
        self, text: Tensor, mask: Tensor, images: Tensor, shown: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`fuse`, of texts (b, l, d') that were read, with their mask, and of `visual_tokens`."""
        # All pairs run in every batch, so that ranks run the same modules under ZeRO-3. A row that
        # lacks a picture borrows one, unseen by attention, and its pooled pair becomes zero.
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
        features = grid_features(self.vision, pictures).to(self.backbone.fusion.types.weight.dtype)
        # A batch has as many columns as its largest row, the model one for each possible picture.
        missing = self.num_images - batch.image_index.shape[1]
        index = nn.functional.pad(batch.image_index, (0, missing), value=NO_IMAGE)
        shown = (index != NO_IMAGE)[..., None].expand(-1, -1, features.shape[1])
        return features[index.clamp(min=0)], shown

    # Answers.

    def read_texts(self, texts: Batch) -> ReadAlone:
        # Methods that make weights from the picture need it here already.
        if self.context.reads_examples:
            return super().read_texts(texts)
        self.context.set_rows(texts.task_index, None, texts.input_ids.device)
        return ReadAlone(texts, self.read(texts, None))

    def read_picture(self, picture: Batch) -> ReadAlone:
        if self.context.reads_examples:
            return super().read_picture(picture)
        self.context.set_rows(picture.task_index, None, picture.input_ids.device)
        return ReadAlone(picture, self.visual_tokens(picture)[0][0])

    def pair_states(self, texts: ReadAlone, picture: ReadAlone) -> Tensor:
        if texts.states is None or picture.states is None:
            return super().pair_states(texts, picture)
        rows, mask = texts.batch, texts.batch.attention_mask.bool()
        self.context.set_rows(rows.task_index, None, rows.input_ids.device)
        self.context.token_mask = mask
        images = picture.states.expand(len(rows), *picture.states.shape)
        shown = (picture.batch.image_index != NO_IMAGE).expand(len(rows), -1)
        shown = nn.functional.pad(shown, (0, self.num_images - shown.shape[1]))
        seen = shown[..., None].expand(-1, -1, images.shape[2])
        return self.join(texts.states, mask, images, seen)[1]

    @torch.no_grad()
    def write(self, batch: Batch, decoding: Decoding) -> list[Answer]:
        """Texts with the most likely word in each place that has a label."""
        gaps = targets_of(batch) != IGNORED_LABEL
        best, ids = self.logits(batch).float().log_softmax(-1).max(-1)
        filled = torch.where(gaps, ids, batch.input_ids)
        # Log-probabilities add up: the answer's confidence is that of all its words together.
        totals = (best * gaps).sum(1)
        rows = zip(filled, batch.attention_mask.bool(), totals.tolist(), strict=True)
        return [
            Answer(
                self.tokenizer.decode(row[mask], skip_special_tokens=True).strip(),
                math.exp(total),
                None,
            )
            for row, mask, total in rows
        ]


def roles_of(*parts: str) -> TargetModules:
    """Where methods attach in some parts of what stands behind the image encoder."""
    layers = [layer for part in parts for layer in LAYERS[part]]
    paths: dict[str, tuple[str, ...]] = {
        role: tuple(
            f"{layer}.{leaf}"
            for layer in layers
            # The text encoder's layers have no cross-attention.
            if layer.startswith("fusion.") or not role.startswith("cross_attn")
        )
        for role, leaf in ROLES.items()
    }
    paths["norm"] = tuple(f"{layer}.{norm}" for layer in layers for norm in NORMS)
    return TargetModules({r: p for r, p in paths.items() if p}, linear_init_std=INIT_STD)

"""The kind of VL-T5 and VL-BART: vision encoder -> visual embedding -> backbone's joint encoder ->
decoder."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vlds.backbones.base import Backbone
from vlds.models.collate import JointCollator
from vlds.models.embedding_kind import EmbeddingKind
from vlds.models.joint_model import JointModel
from vlds.models.kind import named
from vlds.models.loading.draws import draw_rows
from vlds.models.loading.learned_positions import Longest, check_fits, num_positions
from vlds.models.model import BACKBONE_PREFIX, Model
from vlds.models.visual_embedding import VisualEmbedding, VisualEmbeddingConfig
from vlds.vision.base import load_weights


@dataclass(frozen=True, kw_only=True)
class JointSeq2Seq(EmbeddingKind):
    """An encoder-decoder whose encoder reads text and visual tokens together: VL-T5, VL-BART."""

    backbone: Backbone
    """The language model: a class of vlds.backbones."""
    visual_embedding: VisualEmbeddingConfig = field(default_factory=VisualEmbeddingConfig)
    """Turns grid features into visual tokens."""

    @property
    def sources(self) -> dict[str, str]:
        return named(
            {
                "backbone": self.backbone.path,
                "vision encoder": self.vision.source,
                "visual embedding": self.visual_embedding.weights,
            }
        )

    @property
    def processor_place(self) -> tuple[str | None, str]:
        backbone = self.backbone
        return backbone.tokenizer or backbone.path, "model.backbone.tokenizer"

    def check_sources(self) -> None:
        self.backbone.check_sources()
        self.vision.check_sources()

    @property
    def fewest_images(self) -> int:
        return 1

    @property
    def most_images(self) -> tuple[int, str]:
        return self.visual_embedding.num_images, "model.visual_embedding.num_images"

    def check_length(self, task: str, longest: Longest) -> None:
        """Visual tokens have no positions here, and answers are the decoder's."""
        family = self.backbone
        most = num_positions(family.model_class, family.read_config())
        if most is not None:
            for tokens in ({"prompt": longest.prompt}, {"answer": longest.answer}):
                check_fits(task, tokens, most)

    def load_processor(self) -> Any:
        return self.backbone.load_tokenizer()

    def load_processor_from(self, folder: str | Path) -> Any:
        return self.backbone.load_tokenizer_from(Path(folder))

    def local_processor(self) -> Any:
        return self.backbone.local_tokenizer()

    def collator(self, processor: Any) -> JointCollator:
        return JointCollator(processor, features=self.image is None)

    def build(self, dtype: torch.dtype, processor: Any) -> JointModel:
        """Errors: ValueError if an image has more visual tokens than the vocabulary."""
        family = self.backbone
        size = len(processor) if processor is not None else family.vocabulary_size()
        loaded = family.load(size, dtype)
        vision = self.build_vision(dtype)
        embedding = self.build_visual_embedding(loaded.model.config.d_model).to(dtype)
        if embedding.num_tokens > family.visual_tokens:
            raise ValueError(
                f"model.backbone.visual_tokens: {family.visual_tokens}, but an image has "
                f"{embedding.num_tokens} visual tokens; give the vocabulary at least as many"
            )
        model = JointModel(
            vision,
            embedding,
            loaded.model,
            encoder=self.vision,
            family=family,
            tokenizer=processor,
        )
        parts = {"vision": self.vision.source, "visual_embedding": self.visual_embedding.weights}
        model.note_sources(loaded.source_names, parts)
        rows = {BACKBONE_PREFIX + name: rows for name, rows in loaded.source_rows.items()}
        model.sources = replace(model.sources, rows=rows)
        return model

    def build_visual_embedding(self, width: int) -> VisualEmbedding:
        """The bridge, initialised as the backbone's family does, or from its file."""
        geometry, family = self.vision.geometry, self.backbone
        pooled = self.visual_embedding.grid not in (None, geometry.grid_size)
        if geometry.box_channels and pooled:
            raise ValueError(
                f"model.visual_embedding.grid: got {self.visual_embedding.grid}, but features with "
                "their own boxes are not pooled; leave it out"
            )
        norm = partial(family.visual_norm, bias=self.visual_embedding.norm_biases)
        embedding = VisualEmbedding(
            self.visual_embedding, geometry.feature_dim, width, geometry.grid_size, norm
        )
        embedding.init_weights(family.linear_init_std)
        load_weights(embedding, self.visual_embedding.weights)
        return embedding

    def draw_rows(self, model: Model, seed: int) -> None:
        """New rows of the token table; a head of its own is drawn like other weights."""
        assert isinstance(model, JointModel)
        table = model.backbone.get_input_embeddings().weight
        rows = {
            name: rows
            for name, rows in model.sources.rows.items()
            if model.get_parameter(name) is table
        }
        draw_rows(model, rows, self.backbone.new_row_std, seed)

    def export(self, model: Model, folder: Path) -> JointSeq2Seq:
        """The backbone and the tokenizer under Hugging Face's names, and a file for each other
        part."""
        assert isinstance(model, JointModel)
        model.save_backbone(folder)
        weights = self.export_embedding(model, folder)
        return replace(
            self,
            backbone=self.backbone.saved_in(folder),
            vision=self.vision.export(model.vision, folder),
            visual_embedding=replace(self.visual_embedding, weights=weights),
            train_norms=False,
            train_visual_embedding=False,
        )

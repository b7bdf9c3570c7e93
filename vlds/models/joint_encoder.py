"""The kind of CLIP-ViL (Shen et al. 2021, https://arxiv.org/abs/2107.06383) in VL-Adapter: one
encoder, Hugging Face's BERT, reads text and visual tokens together. It answers with classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_MAPPING

from vlds.models.embedding_kind import EmbeddingKind
from vlds.models.grid_embedding import GridEmbedding
from vlds.models.joint_encoder_model import JointEncoderModel
from vlds.models.kind import ModelKind, named
from vlds.models.loading.load_backbone import load_backbone
from vlds.models.model import Model
from vlds.models.text_encoder_kind import TextEncoderKind
from vlds.tasks.base import Task
from vlds.vision.base import load_weights


@dataclass(frozen=True, kw_only=True)
class JointEncoder(TextEncoderKind, EmbeddingKind):
    """A text encoder whose layers read the cells of a picture behind the words."""

    visual_weights: str | None = None
    """A .safetensors file with a trained visual embedding (visual_embedding.safetensors of `vlds
    convert hf`)."""

    @property
    def sources(self) -> dict[str, str]:
        return named(
            {
                "backbone": self.path,
                "vision encoder": self.vision.source,
                "visual embedding": self.visual_weights,
            }
        )

    def check_tasks(self, tasks: Mapping[str, Task], num_micro_batches: int) -> None:
        ModelKind.check_tasks(self, tasks, num_micro_batches)
        super().check_tasks(tasks, num_micro_batches)

    def build(self, dtype: torch.dtype, processor: Any) -> JointEncoderModel:
        """Errors: ValueError if the parts do not fit each other."""
        config = self.read_config()
        backbone, names = load_backbone(MODEL_MAPPING[type(config)], config, self.path, dtype)
        self.check_vocabulary(processor, config.vocab_size, "text encoder")
        geometry = self.vision.geometry
        embedding = GridEmbedding(
            geometry.grid_size,
            geometry.feature_dim,
            config.hidden_size,
            dropout=config.hidden_dropout_prob,
            std=config.initializer_range,
        )
        load_weights(embedding, self.visual_weights)
        model = JointEncoderModel(
            self.build_vision(dtype),
            embedding.to(dtype),
            backbone,
            encoder=self.vision,
            tokenizer=processor,
        )
        parts = {"vision": self.vision.source, "visual_embedding": self.visual_weights}
        model.note_sources(names, parts)
        return model

    def export(self, model: Model, folder: Path) -> JointEncoder:
        """The encoder and the tokenizer under Hugging Face's names, and a file for each other
        part."""
        assert isinstance(model, JointEncoderModel)
        model.save_backbone(folder)
        return replace(
            self,
            path=str(folder),
            config=None,
            tokenizer=None,
            vision=self.vision.export(model.vision, folder),
            visual_weights=self.export_embedding(model, folder),
            train_norms=False,
            train_visual_embedding=False,
        )

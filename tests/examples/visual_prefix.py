"""An example kind of model: a T5 of Hugging Face whose encoder reads a picture before the text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration

from vlds.models.collate import JointCollator
from vlds.models.generation.answer_list import Writer
from vlds.models.kinds.base import GridKind, WritingModel
from vlds.models.loading.gate import read_any_config
from vlds.models.loading.load_backbone import load_backbone
from vlds.models.methods.host import run_beside
from vlds.models.model import Part
from vlds.models.roles import find_roles
from vlds.models.visual_embedding import tokens_of_rows
from vlds.runtime.checks import SourcePath
from vlds.schema import Batch


@dataclass(frozen=True, kw_only=True)
class VisualPrefix(GridKind):
    """What a recipe says of the model."""

    path: SourcePath
    """The language model and its tokenizer: a Hugging Face hub name or a local folder."""
    trained_text = ("connector",)

    @property
    def sources(self) -> dict[str, str]:
        sources = {"backbone": self.path, "vision encoder": self.vision.source}
        return {part: source for part, source in sources.items() if source is not None}

    def collator(self, processor: Any, dtype: torch.dtype = torch.float32) -> JointCollator:
        return JointCollator(processor, features=self.image is None)

    def build(self, dtype: torch.dtype, processor: Any) -> PrefixModel:
        config = read_any_config(self.path, "model.path")
        backbone, names = load_backbone(T5ForConditionalGeneration, config, self.path, dtype)
        model = PrefixModel(self, backbone, dtype, processor)
        model.note_sources(names, {"vision": self.vision.source})
        return model


class PrefixModel(WritingModel):
    """[visual tokens][text] -> the T5's encoder -> its decoder."""

    def __init__(self, kind: VisualPrefix, backbone: Any, dtype: torch.dtype, processor: Any):
        super().__init__(processor)
        self.vision, self.backbone = kind.build_vision(dtype), backbone
        width = backbone.config.d_model
        self.connector = nn.Linear(kind.vision.geometry.feature_dim, width, dtype=dtype)
        self.parts = {"backbone": Part("backbone", find_roles(backbone), takes_prompts=False)}

    def prompts(self, batch: Batch) -> dict[str, Tensor]:
        """What Hugging Face's model reads: (b, v + l, d) and its mask."""
        self.context.routing.set(batch.task_index, batch.input_ids.device)
        run_beside(self.backbone)  # what methods compute once a batch
        visual = self.connector(self.vision(batch.pictures))
        visual, mask = tokens_of_rows(visual, batch.image_index)
        text = self.backbone.get_input_embeddings()(batch.input_ids)
        mask = self.context.token_mask = torch.cat([mask, batch.attention_mask.bool()], 1)
        return {"inputs_embeds": torch.cat([visual, text], 1), "attention_mask": mask.long()}

    def logits(self, batch: Batch) -> Tensor:
        before = self.backbone.prepare_decoder_input_ids_from_labels(batch.labels)
        return self.backbone(**self.prompts(batch), decoder_input_ids=before).logits

    def first_logits(self, batch: Batch) -> Tensor:
        return self.logits(replace(batch, labels=batch.input_ids[:, :1]))[:, 0]

    @property
    def writer(self) -> Writer:
        end, pad = self.backbone.config.eos_token_id, self.backbone.config.pad_token_id
        return Writer(self.backbone, (end,), pad, decoder_start=pad)

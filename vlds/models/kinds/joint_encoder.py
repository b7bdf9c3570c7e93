"""JointEncoder: CLIP-ViL (Shen et al. 2021, https://arxiv.org/abs/2107.06383) as in VL-Adapter. The
layers of one BERT of Hugging Face read text and visual tokens, one after the other; heads read its
first token, so that it answers with classes.

Shapes: b examples, u distinct images, l tokens of text, v of an image, p prompts of methods, d
width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_MAPPING
from transformers.masking_utils import create_bidirectional_mask

from vlds.models.backbones.attention import CPU_ATTENTION, set_attention
from vlds.models.generation.answer_list import Answer
from vlds.models.kernels.dropout import visual_tokens_end
from vlds.models.kinds.base import EmbeddingKind, ModelKind, grid_features, named
from vlds.models.kinds.text_encoder import TextEncoderKind
from vlds.models.loading.load_backbone import load_backbone
from vlds.models.loading.model_files import save_module
from vlds.models.methods.context import Predicted, Visual
from vlds.models.methods.host import run_beside
from vlds.models.model import Model, Part, ReadAlone
from vlds.models.roles import find_roles
from vlds.models.vision.base import GridEncoder, VisionEncoder, load_weights
from vlds.models.visual_embedding import GridEmbedding
from vlds.runtime.checks import SourceFile
from vlds.runtime.devices import uses_gpu
from vlds.schema import NO_IMAGE, Batch, Decoding
from vlds.tasks.base import Task


class JointEncoderModel(Model):
    """A vision encoder, its bridge, and a text encoder of BERT's family."""

    def __init__(
        self,
        vision: GridEncoder,
        visual_embedding: GridEmbedding,
        backbone: Any,
        *,
        encoder: VisionEncoder,
        tokenizer: Any = None,
    ) -> None:
        """`encoder`: the recipe's choice that `vision` comes from."""
        super().__init__(tokenizer)
        self.vision, self.visual_embedding = vision, visual_embedding
        self.backbone = backbone
        # vlds' attention is for CPUs; on a GPU, Hugging Face's stays.
        if not uses_gpu():
            set_attention(backbone, CPU_ATTENTION)
        roles = find_roles(backbone, backbone.config.initializer_range)
        self.parts = {
            "backbone": Part("backbone", roles),
            "vision": Part("vision", encoder.target_modules),
        }

    @property
    def state_width(self) -> int:
        return int(self.backbone.config.hidden_size)

    def sizes(self, batch: Batch) -> Tensor:
        """(b, 1) tokens of the sequence, visual ones included."""
        visual = (batch.image_index != NO_IMAGE).sum(1) * self.visual_embedding.num_tokens
        return (visual + batch.attention_mask.sum(1))[:, None]

    # Training.

    def predicted(self, batch: Batch) -> Predicted:
        return self.heads.predicted_alone(self.first_states(batch), batch)

    def logits(self, batch: Batch) -> Tensor:
        """(b, 1, c) of the classes of a batch of one task."""
        logits: Tensor = self.heads[self.heads.name_of(batch)](self.first_states(batch))
        return logits[:, None]

    def first_states(self, batch: Batch) -> Tensor:
        """(b, d) of the first token, through the linear layer of BERT's pooler; CLIP-ViL has no
        tanh behind it."""
        self.context.set_rows(batch.task_index, None, batch.input_ids.device)
        return self.read_beside(batch, *self.visual_tokens(batch))

    def read_beside(self, batch: Batch, visual: Tensor, visual_mask: Tensor) -> Tensor:
        """`first_states`, with the pictures' visual tokens and their mask."""
        states: Tensor = self.backbone.pooler.dense(self.encode(batch, visual, visual_mask))
        return states

    def encode(self, batch: Batch, visual: Tensor, visual_mask: Tensor) -> Tensor:
        """(b, d) states of the text's first token, which has read text and picture."""
        self.context.visual = Visual(visual, visual_mask)
        prompts, text_mask = run_beside(self.backbone), batch.attention_mask.bool()
        text = self.backbone.embeddings(input_ids=batch.input_ids)
        tokens, masks, first = [text, visual], [text_mask, visual_mask], 0
        if prompts is not None:  # they stand before the first token
            tokens, first = [prompts.to(text.dtype), *tokens], prompts.shape[1]
            masks = [text_mask.new_ones(prompts.shape[:2]), *masks]
        joined, mask = torch.cat(tokens, 1), torch.cat(masks, 1)
        self.context.token_mask = mask
        visual_tokens_end(mask.shape[1], visual.shape[1])
        over = create_bidirectional_mask(
            config=self.backbone.config, inputs_embeds=joined, attention_mask=mask
        )
        states: Tensor = self.backbone.encoder(joined, attention_mask=over).last_hidden_state
        return states[:, first]

    def visual_tokens(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(b, v, d) tokens of each example's picture and their mask (b, v); each distinct picture
        goes through the vision encoder once.

        Errors: ValueError if the batch has no pictures.
        """
        if (pictures := batch.pictures) is None:
            raise ValueError("images: this batch has no pictures, and JointEncoder reads them")
        features = grid_features(self.vision, pictures)
        # A row without a picture borrows the first one; its mask hides the tokens.
        index = batch.image_index[:, 0]
        tokens: Tensor = self.visual_embedding(features[index.clamp(min=0)])
        return tokens, (index != NO_IMAGE)[:, None].expand(tokens.shape[:2])

    # Answers.

    def read_picture(self, picture: Batch) -> ReadAlone:
        self.context.set_rows(picture.task_index, None, picture.input_ids.device)
        return ReadAlone(picture, self.visual_tokens(picture)[0])

    def pair_states(self, texts: ReadAlone, picture: ReadAlone) -> Tensor:
        assert picture.states is not None
        rows, num = texts.batch, len(texts.batch)
        self.context.set_rows(rows.task_index, None, rows.input_ids.device)
        visual = picture.states.expand(num, -1, -1)
        shown = picture.batch.image_index[:, :1] != NO_IMAGE
        return self.read_beside(rows, visual, shown.expand(num, visual.shape[1]))

    def write(self, batch: Batch, decoding: Decoding) -> list[Answer]:
        raise AssertionError("all tasks of a JointEncoder have heads")


@dataclass(frozen=True, kw_only=True)
class JointEncoder(TextEncoderKind, EmbeddingKind):
    """A text encoder whose layers read the cells of a picture behind the words."""

    visual_weights: SourceFile | None = None
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
        # TextEncoderKind allows tasks that mask words, which this model has no head for.
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

    def read_alone(self, model: Model, batch: Batch) -> tuple[Any, Tensor]:
        assert isinstance(model, JointEncoderModel)
        return model.backbone, model.encode(batch, *model.visual_tokens(batch))[:, None]

    def refusal(self, layout: str) -> str | None:
        return None if layout == "reference" else super().refusal(layout)

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
            visual_weights=save_module(
                model.visual_embedding, folder / "visual_embedding.safetensors"
            ),
            train_norms=False,
            train_visual_embedding=False,
        )

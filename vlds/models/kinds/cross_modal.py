"""CrossModal: METER (Dou et al. 2022, https://arxiv.org/abs/2111.02387). A text encoder and an
image encoder of Hugging Face or timm, and co-attention between them; it answers with classes, or
fills masked words in. The model itself is in `cross_modal_model`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING

from vlds.models.kinds.base import CONNECTOR_RATE, named
from vlds.models.kinds.cross_modal_model import (
    CoAttention,
    CoAttentionConfig,
    CrossModalModel,
    TextAndFusion,
    WordHead,
)
from vlds.models.kinds.text_encoder import TextEncoderKind
from vlds.models.loading.load_backbone import load_backbone
from vlds.models.loading.model_files import save_module
from vlds.models.model import Model
from vlds.models.vision.base import load_weights
from vlds.runtime.checks import Limits, SourceFile
from vlds.schema import Batch
from vlds.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class CrossModal(TextEncoderKind):
    """Text and picture, each with an encoder, in two streams that attend to each other."""

    rate_fields: ClassVar[Mapping[str, str]] = {"fusion": CONNECTOR_RATE}
    reads_class_token: ClassVar[bool] = True

    fusion: CoAttentionConfig = field(default_factory=CoAttentionConfig)
    """Sizes of the two streams."""
    fusion_weights: SourceFile | None = None
    """A .safetensors file with trained streams (fusion.safetensors of `vlds convert hf`)."""
    train_fusion: bool = True
    """Train the streams, and the head of masked words."""
    masked_words: bool = False
    """Have a head that tells masked words, for the task MaskedWords."""
    num_images: Annotated[int, Limits(1, 2)] = 1
    """Most pictures of an example, 1 or 2. The streams run once for each; heads read all pairs."""

    # Where it comes from.

    @property
    def sources(self) -> dict[str, str]:
        return named(
            {
                "text encoder": self.path,
                "vision encoder": self.vision.source,
                "fusion": self.fusion_weights,
            }
        )

    # Pictures and text.

    @property
    def most_images(self) -> tuple[int, str]:
        return self.num_images, "model.num_images"

    def check_tasks(self, tasks: Mapping[str, Task], num_micro_batches: int) -> None:
        for name, task in tasks.items():
            if task.masks_words and not self.masked_words:
                raise ValueError(
                    f"tasks.{name}: it predicts masked words, and the model has no head for them; "
                    "set model.masked_words: true"
                )
        super().check_tasks(tasks, num_micro_batches)

    # The model.

    def build(self, dtype: torch.dtype, processor: Any) -> CrossModalModel:
        """Errors: ValueError if the parts do not fit each other."""
        config = self.read_config()
        encoder = without_pooler(MODEL_MAPPING[type(config)])
        text, names = load_backbone(encoder, config, self.path, dtype)
        self.check_vocabulary(processor, config.vocab_size, "text encoder")
        geometry = self.vision.geometry
        fusion = CoAttention(
            self.fusion,
            config.hidden_size,
            geometry.feature_dim,
            geometry.class_token,
            self.num_images,
        )
        load_weights(fusion, self.fusion_weights)
        words = WordHead(self.fusion.width, config.vocab_size) if self.masked_words else None
        model = CrossModalModel(
            self.build_vision(dtype),
            TextAndFusion(text, fusion.to(dtype), words and words.to(dtype)),
            encoder=self.vision,
            num_images=self.num_images,
            tokenizer=processor,
        )
        # The backbone here is text encoder, streams and head; `names` are the encoder's alone.
        of_text = {f"text.{name}" for name in names}
        parts = {"vision": self.vision.source, "backbone.fusion": self.fusion_weights}
        model.note_sources(of_text, parts)
        return model

    def read_alone(self, model: Model, batch: Batch) -> tuple[Any, Tensor]:
        assert isinstance(model, CrossModalModel)
        return model.backbone.text, model.read(batch, None)

    @property
    def trained_text(self) -> list[str]:
        return ["fusion"] if self.train_fusion else []

    def trained_parts(self, model: Model) -> Iterator[tuple[str, Iterable[nn.Parameter]]]:
        assert isinstance(model, CrossModalModel)
        if self.train_fusion:
            backbone = model.backbone
            yield "fusion", (p for n, p in backbone.named_parameters() if not n.startswith("text."))

    def enable_checkpointing(self, model: Model) -> None:
        raise ValueError(
            "training.activation_checkpointing: CrossModal's streams are not recomputed; switch it "
            "off"
        )

    def refusal(self, layout: str) -> str | None:
        return None if layout == "reference" else super().refusal(layout)

    def export(self, model: Model, folder: Path) -> CrossModal:
        """The text encoder and the tokenizer under Hugging Face's names, and a file for each other
        part.

        Errors: ValueError if the model has a head of masked words, which has no file.
        """
        assert isinstance(model, CrossModalModel)
        if self.masked_words:
            raise ValueError("model.masked_words: its head cannot be exported; train without")
        model.backbone.text.save_pretrained(folder)
        model.processor.save_pretrained(folder)
        return replace(
            self,
            path=str(folder),
            config=None,
            tokenizer=None,
            vision=self.vision.export(model.vision, folder),
            fusion_weights=save_module(model.backbone.fusion, folder / "fusion.safetensors"),
            train_fusion=False,
        )


def without_pooler(model_class: Any) -> Any:
    """A text encoder's class without its pooler: co-attention has its own, and many checkpoints,
    such as RoBERTa's, have no weights for it."""

    class TextEncoder(model_class):
        def __init__(self, config: Any) -> None:
            super().__init__(config, add_pooling_layer=False)

    TextEncoder.__name__ = model_class.__name__  # what Hugging Face writes into the config
    return TextEncoder

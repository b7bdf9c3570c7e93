"""The kind of any causal language model of Hugging Face behind a vision encoder of vlds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from vlds.models.causal_collate import CausalCollator
from vlds.models.causal_model import CausalModel
from vlds.models.chat_format import ChatFormat
from vlds.models.kind import GridKind, named
from vlds.models.loading.learned_positions import Longest, check_fits, num_positions
from vlds.models.loading.load_backbone import load_backbone
from vlds.models.loading.quantised import (
    Bits,
    check_has_source,
    check_libraries,
    check_writable_whole,
)
from vlds.models.model import Model
from vlds.models.path_kind import PathKind
from vlds.models.projector import Projector
from vlds.pretrained.weights import check_config, read_any_config
from vlds.runtime.checks import Count
from vlds.vision.base import load_weights as load_file

SIZES = ("vocab_size", "hidden_size", "num_hidden_layers")


@dataclass(frozen=True, kw_only=True)
class Causal(PathKind, GridKind):
    """A causal language model that reads visual tokens before the text, as LLaVA does."""

    path: str | None = None
    """The language model: a Hugging Face hub name or a local folder."""
    tokenizer: str | None = None
    """Folder or hub name of the tokenizer, whose chat template is used if it has one; default:
    `path`."""
    grid: Count | None = None
    """Cells along a side after max pooling; default: the encoder's own grid."""
    num_images: Count = 1
    """Most images an example may have."""
    projector_weights: str | None = None
    """A .safetensors file with a trained projector (projector.safetensors of `vlds convert hf`)."""
    train_projector: bool = True
    """Train the projector, which turns grid features into visual tokens."""
    bits: Bits | None = None
    """Pack the language model's frozen linear layers in 4 bits (nf4) or 8 (LLM.int8); not under
    ZeRO stage 3."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_has_source(self.bits, self.config)

    # Where it comes from.

    @property
    def sources(self) -> dict[str, str]:
        return named(
            {
                "language model": self.path,
                "vision encoder": self.vision.source,
                "projector": self.projector_weights,
            }
        )

    def check_sources(self) -> None:
        super().check_sources()
        check_libraries(self.bits)

    @property
    def packed_bits(self) -> Bits | None:
        return self.bits

    def unpacked(self) -> Causal:
        return replace(self, bits=None)

    # Pictures and text.

    @property
    def most_images(self) -> tuple[int, str]:
        return self.num_images, "model.num_images"

    def check_length(self, task: str, longest: Longest) -> None:
        config = self.read_config()
        most = num_positions(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config)
        if most is None:
            return
        chat = self.chat_format(self.load_processor())
        tokens = {
            "pictures": longest.pictures * (self.grid or self.vision.geometry.grid_size) ** 2,
            "around the prompt": len(chat.prompt_ids("a", 9)) - len(chat.ids("a")),
            "prompt": longest.prompt,
            "answer": longest.answer,
        }
        check_fits(task, tokens, most, "model.grid", "model.num_images")

    def collator(self, processor: Any) -> CausalCollator:
        return CausalCollator(self.chat_format(processor), features=self.image is None)

    def chat_format(self, tokenizer: Any) -> ChatFormat:
        """How the tokenizer writes prompts and answers.

        Errors: ValueError that names the field with the tokenizer.
        """
        try:
            return ChatFormat.of(tokenizer)
        except ValueError as error:
            raise ValueError(f"{self.processor_place[1]}: {error}") from error

    # The model.

    def build(self, dtype: torch.dtype, processor: Any) -> CausalModel:
        """Errors: ValueError if the parts do not fit each other."""
        geometry = self.vision.geometry
        if self.grid is not None and self.grid > geometry.grid_size:
            raise ValueError(
                f"model.grid: {self.grid} is more than the encoder's {geometry.grid_size} x "
                f"{geometry.grid_size} cells; give at most {geometry.grid_size}"
            )
        config = self.read_config()
        model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        backbone, names = load_backbone(model_class, config, self.path, dtype, self.bits)
        table = backbone.get_input_embeddings()
        self.check_vocabulary(processor, table.num_embeddings, "language model")
        vision = self.build_vision(dtype)
        grid = self.grid or geometry.grid_size
        connector = Projector(geometry.feature_dim, table.embedding_dim, grid)
        load_file(connector, self.projector_weights)
        model = CausalModel(
            vision, connector.to(dtype), backbone, encoder=self.vision, tokenizer=processor
        )
        parts = {"vision": self.vision.source, "connector": self.projector_weights}
        model.note_sources(names, parts)
        return model

    def read_config(self) -> Any:
        """The language model's config.

        Errors: ValueError if it is not one of a causal language model.
        """
        source, field = self.config_place
        config = read_any_config(source, field)
        kind = config.model_type
        is_text = config.get_text_config() is config and not config.is_encoder_decoder
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or not is_text:
            raise ValueError(
                f"{field}: {source} is a {kind} model, not a causal language model; name one of "
                "those that AutoModelForCausalLM opens and that reads text only"
            )
        check_config(config, f"{field}: {source}", SIZES)
        return config

    def trained_parts(self, model: Model) -> Iterator[tuple[str, Iterable[nn.Parameter]]]:
        assert isinstance(model, CausalModel)
        if self.train_projector:
            yield "connector", model.connector.parameters()

    @property
    def trained_text(self) -> list[str]:
        return ["projector"] if self.train_projector else []

    def export(self, model: Model, folder: Path) -> Causal:
        """The language model and the tokenizer under Hugging Face's names, and a file for each
        other part."""
        assert isinstance(model, CausalModel)
        check_writable_whole(self.bits)
        model.save_backbone(folder)
        projector_file = folder / "projector.safetensors"
        projector = model.connector.state_dict()
        save_file({name: t.contiguous() for name, t in projector.items()}, projector_file)
        return replace(
            self,
            path=str(folder),
            config=None,
            tokenizer=None,
            vision=self.vision.export(model.vision, folder),
            projector_weights=str(projector_file),
            train_projector=False,
        )

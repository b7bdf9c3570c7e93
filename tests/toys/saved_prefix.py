"""A kind of model that says of itself all that training, counting and converting ask."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import nn

from tests.examples.visual_prefix import PrefixModel, VisualPrefix
from vlds.models.kinds.base import named
from vlds.models.model import Model
from vlds.models.vision.base import load_weights
from vlds.runtime.checks import SourceFile


@dataclass(frozen=True, kw_only=True)
class SavedPrefix(VisualPrefix):
    """`VisualPrefix` with a form on disk, and a trained part whose name vlds does not know."""

    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    backbone_word: ClassVar[str] = "T5"
    rate_fields: ClassVar[Mapping[str, str]] = {"bridge": "norms_learning_rate"}

    bridge: SourceFile | None = None
    """A .safetensors file with a trained bridge."""
    train_bridge: bool = True

    @property
    def trained_text(self) -> list[str]:
        return ["bridge"] if self.train_bridge else []

    def trained_parts(self, model: Model) -> Iterator[tuple[str, Iterable[nn.Parameter]]]:
        if self.train_bridge:
            yield "bridge", model.get_submodule("connector").parameters()

    @property
    def sources(self) -> dict[str, str]:
        return super().sources | named({"bridge": self.bridge})

    def build(self, dtype: torch.dtype, processor: Any) -> PrefixModel:
        model = super().build(dtype, processor)
        load_weights(model.connector, self.bridge)
        names = [name.removeprefix("backbone.") for name in model.sources.names]
        of_backbone = [name for name in names if not name.startswith("vision.")]
        model.note_sources(of_backbone, {"vision": self.vision.source, "connector": self.bridge})
        return model

    def export(self, model: Model, folder: Path) -> SavedPrefix:
        model.save_backbone(folder)
        bridge = folder / "bridge.safetensors"
        save_file(model.get_submodule("connector").state_dict(), bridge)
        vision = self.vision.export(model.get_submodule("vision"), folder)
        return replace(
            self, path=str(folder), vision=vision, bridge=str(bridge), train_bridge=False
        )

"""Tiny models of both kinds, wide enough for their language models to be packed; rows for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from torch import Tensor

from tests.toys.causal import WIDE, kind_in, save_model
from tests.toys.image_text.rows import TASKS, Tiny, rows_with
from tests.toys.image_text.rows import wide as wide_image_text
from vlds.models import Causal
from vlds.models.build import ModelSetup, build_model
from vlds.models.kinds.causal import CausalModel
from vlds.models.loading.quantised import Bits
from vlds.models.methods import Method
from vlds.schema import Batch, Row


@dataclass(frozen=True)
class TinyCausal:
    """What `Tiny` is, for a causal model behind a vision encoder."""

    model_type: str
    kind: Causal
    processor: Any

    def build(
        self, methods: dict[str, Method] | None = None, seed: int = 0, **fields: Any
    ) -> CausalModel:
        setup = ModelSetup(kind=self.kind, methods=methods or {}, seed=seed, **fields)
        model = build_model(setup, TASKS, torch.float32, self.processor)
        assert isinstance(model, CausalModel)
        return model

    def rows(self) -> list[Row]:
        """Three rows of two tasks, with one, two and no pictures."""
        return rows_with((1, 2, 0))

    def batch(self, rows: Sequence[Row], *, evaluation: bool = False) -> Batch:
        generator = torch.Generator().manual_seed(0)
        pictures = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8, generator=generator)
        return self.kind.collator(self.processor)(rows, pictures, evaluation=evaluation)

    def run_by(self, backbone: Any, model: CausalModel) -> Tensor:
        """Logits of Hugging Face's class, for what a model makes of the rows."""
        batch = self.batch(self.rows())
        read = model.sequences(batch, model.visual_tokens(batch))
        logits: Tensor = backbone(inputs_embeds=read.embeds, attention_mask=read.mask.long()).logits
        return logits


CAUSAL = ("llama", "opt")
"""Types behind a vision encoder of vlds. All others are image-text types."""


@cache
def wide(model_type: str) -> Any:
    """A `Tiny` or `TinyCausal` with layers of 64 and 128 inputs, saved once in each process."""
    if model_type not in CAUSAL:
        return wide_image_text(model_type)
    folder = Path(mkdtemp(prefix=f"vlds-{model_type}-"))
    save_model(folder, model_type, spread=0.1, **WIDE)
    kind = kind_in(folder)
    return TinyCausal(model_type, kind, kind.load_processor())


def packed(model_type: str, bits: Bits, *, trains_connector: bool = True) -> Any:
    """The same, packed."""
    model = wide(model_type)
    field = "train_projector" if model_type in CAUSAL else "train_connector"
    return replace(model, kind=replace(model.kind, bits=bits, **{field: trains_connector}))


def opened(model_type: str, kind: Any, processor: Any) -> Any:
    """The rows of a type, for a kind that another process has saved."""
    return (TinyCausal if model_type in CAUSAL else Tiny)(model_type, kind, processor)

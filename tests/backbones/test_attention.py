"""Choosing the attention function of a whole model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.toys.models import backbone
from vlds.models.backbones import T5, Backbone, Bart
from vlds.models.backbones.attention import CPU_ATTENTION, EXTENDED_ATTENTION, set_attention


class OldT5(T5.model_class):
    """T5 as in transformers below 5.20, where its stacks keep the function they were made with."""

    def set_attn_implementation(self, attn_implementation: str) -> None:
        self.config._attn_implementation_internal = attn_implementation


@pytest.mark.parametrize("family", [T5, Bart])
def test_every_layer_changes(family: type[Backbone], tmp_path: Path) -> None:
    model = backbone(family, tmp_path).load(60, torch.float32).model
    for name in (EXTENDED_ATTENTION, "sdpa", CPU_ATTENTION):
        set_attention(model, name)
        layers = [module for module in model.modules() if hasattr(module, "layer_idx")]
        assert len(layers) >= 4
        assert {layer.config._attn_implementation for layer in layers} == {name}


def test_a_library_that_leaves_layers_as_they_were_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = backbone(T5, tmp_path)
    monkeypatch.setattr(T5, "model_class", OldT5)
    with pytest.raises(ValueError, match="all layers of OldT5 use another attention function; ins"):
        source.load(60, torch.float32)

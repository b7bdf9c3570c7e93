"""What APoLLo keeps: it begins as the frozen model where that is possible, rows of a batch do not
see each other, its losses vanish where the views agree, and its weights are counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.toys.dual import TASK, build, classed, colour_head, save_clip
from tests.toys.models import shake
from vlds.models.kinds.dual_encoder_model import DualEncoderModel
from vlds.models.methods import APoLLo, LoRA
from vlds.models.methods.apollo import APoLLoModule, divergence, info_nce

SMALL: dict[str, Any] = {"depth": 2, "heads": 3, "views": 2}
TEMPLATE = ["a photo of {} ."]


def apollo(folder: Path, **fields: Any) -> DualEncoderModel:
    head = colour_head(templates=TEMPLATE)
    return build(folder, {"apollo": APoLLo(**SMALL, **fields)}, head=head)


@torch.no_grad()
def test_it_begins_as_the_frozen_text_tower(tmp_path: Path) -> None:
    """With the template's own states as prompts, texts are the frozen tower's; with output layers
    of zeros, the adapters change nothing; switched off, pictures are the frozen tower's too.
    Prompts behind a picture's tokens always act: no finite key has no weight."""
    folder = save_clip(tmp_path / "clip")
    frozen = build(folder, head=colour_head(templates=TEMPLATE)).eval()
    model, alone = apollo(folder).eval(), apollo(folder, adapters=False).eval()
    batch = classed(model, [0, 1, 2])
    for each in (frozen, model, alone):
        each.first_states(batch)
    texts = [each.heads[TASK].texts.value.template for each in (frozen, model)]
    assert torch.allclose(*texts, atol=1e-6)
    alone.load_state_dict({n: t for n, t in model.state_dict().items() if "_adapter" not in n})
    assert torch.allclose(model.logits(batch), alone.logits(batch), atol=1e-5)
    module = model.heads[TASK].extensions["apollo"]
    assert isinstance(module, APoLLoModule)
    with module.switched_off():
        assert torch.allclose(model.image_embeddings(batch), frozen.image_embeddings(batch))
    assert not torch.allclose(model.image_embeddings(batch), frozen.image_embeddings(batch))


def test_divergence_is_zero_at_equal_views() -> None:
    torch.manual_seed(0)
    frozen = F.normalize(torch.randn(5, 8, dtype=torch.float64), dim=-1)
    assert divergence(frozen[None], frozen, 0).abs().max() < 1e-12
    tuned = F.normalize(frozen + 0.3 * torch.randn_like(frozen), dim=-1)
    assert (divergence(tuned[None], frozen, 0) > 0).all()
    # The positive pair is among those that InfoNCE compares, so that it is never negative.
    assert (info_nce(tuned[None], frozen, 0) > 0).all()


@torch.no_grad()
def test_rows_do_not_see_each_other(tmp_path: Path) -> None:
    model = apollo(save_clip(tmp_path / "clip")).eval()
    shake(model)
    three, one = classed(model, [0, 1, 2]), classed(model, [0])
    assert torch.allclose(model.logits(three)[:1], model.logits(one), atol=1e-5)


def test_what_does_not_go(tmp_path: Path) -> None:
    folder = save_clip(tmp_path / "clip")
    with pytest.raises(ValueError, match=r"methods\.apollo: depth: 3, but the shorter tower has 2"):
        build(folder, {"apollo": APoLLo(depth=3)}, head=colour_head())
    with pytest.raises(ValueError, match="the tasks with a TextHead are: none"):
        build(folder, {"apollo": APoLLo(**SMALL)})
    head = colour_head(templates=TEMPLATE)
    with pytest.raises(ValueError, match=r"length: 5, but the template 'a photo of .*' has fewer"):
        build(folder, {"apollo": APoLLo(**SMALL, length=5)}, head=head)
    both = {"apollo": APoLLo(**SMALL), "lora": LoRA(rank=2, roles=["attn_q"], train_biases=False)}
    with pytest.raises(ValueError, match="it compares with the frozen model, which lora would"):
        build(folder, both, head=head)
    with pytest.raises(ValueError, match=r"heads: 5 do not divide the 12 numbers"):
        build(folder, {"apollo": APoLLo(depth=2, heads=5)}, head=head)
    two = colour_head(templates=["a photo of {}", "it is {}"])
    with pytest.raises(ValueError, match="the head has 2 templates; give one"):
        build(folder, {"apollo": APoLLo(**SMALL)}, head=two)

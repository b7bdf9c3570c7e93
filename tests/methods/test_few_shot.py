"""Few-shot classifiers on a dual encoder: what they say before training, what trains, and that the
negative side does no harm."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.toys.dual import CLASSES, TASK, build, classed, colour_head, save_clip
from tests.toys.models import DIM, GRID, Words, backbone
from vlds.models import JointSeq2Seq
from vlds.models.backbones import T5
from vlds.models.build import ModelSetup, build_model
from vlds.models.heads import TextHead
from vlds.models.heads.texts import ClassTexts, unit
from vlds.models.methods import Adapter, SimNL, TipAdapter
from vlds.models.methods.simnl import SimNLModule
from vlds.models.methods.tip_adapter import TipAdapterModule, shot_weights
from vlds.models.vision import StoredFeatures
from vlds.recipe.build import build as built
from vlds.recipe.config import OptimizerConfig
from vlds.tasks.class_output import ClassOutput
from vlds.training.optimizer import schedule_factor

C, K, D = 5, 4, 32
SCALE = torch.tensor(100.0, dtype=torch.float64)


def cached(seed: int = 0, spread: float = 1.0) -> tuple[Tensor, Tensor, ClassTexts]:
    """Class centres, keys around them, and texts near them."""
    torch.manual_seed(seed)
    centres = torch.randn(C, D, dtype=torch.float64)
    keys = unit(centres[:, None] + spread * torch.randn(C, K, D, dtype=torch.float64))
    text = unit(centres + torch.randn_like(centres))
    described = unit(centres + torch.randn_like(centres))
    return centres, keys, ClassTexts(text, described, unit(torch.randn_like(centres)), SCALE)


def simnl(keys: Tensor, **fields: float | None) -> SimNLModule:
    module = SimNLModule(SimNL(**fields), *keys.shape, dtype=torch.float64)  # type: ignore[arg-type]
    module.set_keys(keys)
    return module


@torch.no_grad()
def test_tip_adapter_is_a_special_case() -> None:
    """share 1, shots that count alike and one text give the formula of Tip-Adapter."""
    _, keys, texts = cached()
    texts = texts._replace(described=texts.template)
    images = unit(torch.randn(7, D, dtype=torch.float64))
    tip = TipAdapterModule(TipAdapter(alpha=2.0, beta=5.5), C, K, D, dtype=torch.float64)
    tip.set_keys(keys)
    module = simnl(keys, alpha=2.0, beta=5.5, share=1.0, temperature=None)
    labels = torch.eye(C, dtype=torch.float64).repeat_interleave(K, 0)
    affinity = (-5.5 * (1 - images @ keys.flatten(0, 1).T)).exp()
    formula = 100 * images @ texts.template.T + 2 * affinity @ labels
    assert (tip(images, texts) - formula).abs().max() < 1e-9
    assert (module(images, texts) - formula).abs().max() < 1e-9


def test_weights_of_shots() -> None:
    """The shot that is unlike the others counts least; a single one counts 1."""
    _, keys, _ = cached(spread=0.2)
    keys[2, 1] = unit(-keys[2, 0] + 0.1 * torch.randn(D, dtype=torch.float64))
    assert shot_weights(keys, 1.0)[2].argmin() == 1
    assert torch.equal(shot_weights(keys[:, :1], 1.0), torch.ones(C, 1, dtype=torch.float64))
    assert torch.equal(shot_weights(keys, None), torch.ones(C, K, dtype=torch.float64))
    module = simnl(keys[:, :1])
    assert module(unit(keys[:, 0]), cached()[2]).isfinite().all()


def test_texts_of_classes(tmp_path: Path) -> None:
    """Descriptions and negative sentences reach the methods that read them, and each class needs
    some; other kinds of models have no texts to compare with."""
    folder = save_clip(tmp_path / "clip")
    said = {name: [f"a picture of {name}", f"it is {name}"] for name in CLASSES}
    model = build(folder, {"simnl": SimNL()}, head=colour_head(descriptions=said)).eval()
    with torch.no_grad():
        model.first_states(classed(model, [0]))
        texts = model.heads[TASK].texts.value
        each = model.embed_texts([text for name in CLASSES for text in said[name]], 0)
    means = unit(each.unflatten(0, (4, 2)).mean(1))
    assert torch.allclose(texts.described, means, atol=1e-5)
    assert not torch.allclose(texts.described, texts.template, atol=1e-2)
    assert not torch.allclose(texts.negative, texts.template, atol=1e-2)
    del said["blue"]
    with pytest.raises(ValueError, match="descriptions: they say nothing of 'blue'"):
        colour_head(descriptions=said).sentences()
    with pytest.raises(ValueError, match=r"tasks\.gqa\.head: TextHead compares pictures with"):
        build_joint(folder, TextHead(classes=CLASSES))


def build_joint(folder: Path, head: TextHead) -> None:
    """A VL-T5 whose task has a head."""
    kind = JointSeq2Seq(backbone=backbone(T5, folder), vision=StoredFeatures(dim=DIM, grid=GRID))
    setup = ModelSetup(kind=kind, outputs={"gqa": ClassOutput(head, "cross_entropy")})
    build_model(setup, ["gqa"], torch.float32, Words())


def test_what_does_not_go(tmp_path: Path) -> None:
    folder = save_clip(tmp_path / "clip")
    with pytest.raises(ValueError, match=r"methods\.simnl: .*set tasks\.colour\.shots"):
        build(folder, {"simnl": SimNL()}, head=colour_head(), shots=None)
    both = {"simnl": SimNL(), "tip": TipAdapter()}
    with pytest.raises(ValueError, match=r"methods\.tip: simnl makes the logits"):
        build(folder, both, head=colour_head())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no such part; choose from: backbone, vision, text"):
        build(folder, {"adapter": Adapter(part="connector")}, head=colour_head())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="share: got 2"):
        built(SimNL, {"share": 2.0})
    with pytest.raises(ValueError, match="temperature: got 0"):
        built(SimNL, {"temperature": 0.0})
    with pytest.raises(ValueError, match="neighbours: got 0; give 1 or more"):
        built(SimNL, {"neighbours": 0})


def test_a_cosine_falls_as_the_original_schedule() -> None:
    config = OptimizerConfig(decay="cosine", warmup_ratio=0.0)
    for step in range(10):
        expected = (1 + math.cos(math.pi * step / 10)) / 2
        assert schedule_factor(step, 10, config) == pytest.approx(expected, abs=1e-12)

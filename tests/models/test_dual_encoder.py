"""CLIP under vlds computes what Hugging Face's class computes; its loss compares all pairs of the
global batch, however ranks share them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from tests.toys.dual import CLASSES, build, classed, colour_head, pairs, save_clip
from tests.toys.rank_pool import RankPool
from vlds.models.collate import View
from vlds.models.kinds.dual_encoder_model import DualEncoderModel, contrastive_nll
from vlds.models.methods import Adapter, Full, LoRA
from vlds.models.vision.clip import MEAN, STD
from vlds.schema import Batch, Decoding

TEXTS = ["it is red", "a picture that is blue and nothing but blue", "it is green .", "it is blue"]


def theirs(model: DualEncoderModel, batch: Batch, texts: list[str], **options: Any) -> Any:
    """What Hugging Face's class says of the batch's pictures and some texts."""
    assert batch.images is not None
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (MEAN, STD))
    pixels = (batch.images.float() / 255 - mean) / std
    words = model.processor(texts, padding=True, return_tensors="pt")
    inputs = {"input_ids": words["input_ids"], "attention_mask": words["attention_mask"]}
    return model.backbone(**inputs, pixel_values=pixels, **options)


@torch.no_grad()
def test_logits_and_loss_are_hugging_faces(tmp_path: Path) -> None:
    model = build(save_clip(tmp_path / "clip")).eval()
    batch = pairs(model, TEXTS)
    expected = theirs(model, batch, TEXTS, return_loss=True)
    assert torch.allclose(model.logits(batch)[:, 0], expected.logits_per_image, atol=1e-5)
    output = model(batch, torch.full((4,), 0.25))
    assert output.loss.item() == pytest.approx(expected.loss.item(), abs=1e-5)
    # A row that does not count is nobody's wrong text.
    valid = torch.tensor([True, True, False, True])
    rows = torch.tensor([0, 1, 3])
    images, texts = expected.image_embeds[rows], expected.text_embeds[rows]
    expected_nll = contrastive_nll(images, texts, model.scale)
    found = model(replace(batch, valid=valid), torch.ones(4)).token_nll_sum
    assert torch.allclose(found[rows], expected_nll, atol=1e-5)
    assert found[2] == 0


@torch.no_grad()
@pytest.mark.parametrize(("end", "found"), [(2, 21), (0, 0)])
def test_a_text_is_read_at_its_end_or_refused(end: int, found: int, tmp_path: Path) -> None:
    """Hugging Face takes a text's largest token if the config says 2, and else its first token if
    the end does not occur: both without a word."""
    folder = save_clip(tmp_path / "clip", eos_token_id=end)
    with pytest.raises(
        ValueError,
        match=rf"model\.tokenizer: texts end with token 1, but .* a text at token {found};",
    ):
        build(folder)


def test_zero_shot_classes(tmp_path: Path) -> None:
    """The mean of the templates' directions is a class's text; the nearest names the class."""
    templates = ["a photo of {} .", "it is {}"]
    model = build(save_clip(tmp_path / "clip"), head=colour_head(templates=templates)).eval()
    batch = classed(model, [0, 2, 1])
    texts = [t.replace("{}", name) for name in CLASSES for t in templates]
    expected = theirs(model, batch, texts)
    means = F.normalize(expected.text_embeds.unflatten(0, (4, 2)).mean(1), dim=-1)
    logits = model.scale * expected.image_embeds @ means.T
    assert torch.allclose(model.logits(batch)[:, 0], logits, atol=1e-5)
    answers = model.answer(batch, Decoding())
    assert [answer.text for answer in answers] == [CLASSES[n] for n in logits.argmax(1)]
    entropy = F.cross_entropy(logits, torch.tensor([0, 2, 1]), reduction="none")
    assert torch.allclose(model(batch, torch.ones(3)).token_nll_sum, entropy, atol=1e-5)


@torch.no_grad()
def test_the_most_fitting_text_of_a_list(tmp_path: Path) -> None:
    model = build(save_clip(tmp_path / "clip")).eval()
    batch = pairs(model, TEXTS)
    chosen = theirs(model, batch, TEXTS).logits_per_image.argmax(1)
    answers = model.answer(batch, Decoding(answers=tuple(TEXTS)))
    assert [answer.text for answer in answers] == [TEXTS[n] for n in chosen]
    with pytest.raises(ValueError, match="finds the most fitting one of a list"):
        model.answer(batch, Decoding())


def shared(
    images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, cuts: list[int]
) -> dict[str, torch.Tensor]:
    """This rank's losses, and its share of the gradients of their sum."""
    rank = dist.get_rank()
    begin, end = cuts[rank], cuts[rank + 1]
    leaves = [t.clone().requires_grad_() for t in (images, texts, scale)]
    nll = contrastive_nll(leaves[0][begin:end], leaves[1][begin:end], leaves[2])
    weights = torch.arange(1.0, 1 + len(images), dtype=images.dtype)[begin:end]
    (nll * weights).sum().backward()
    grads = [leaf.grad for leaf in leaves]
    return {"nll": nll.detach(), **{str(n): g for n, g in enumerate(grads) if g is not None}}


@pytest.mark.parametrize("cuts", [[0, 3, 5], [0, 5, 5]])
def test_ranks_share_the_pairs_as_they_like(cuts: list[int], ranks2: RankPool) -> None:
    """Losses and gradients are those of one rank with all pairs, also where a rank has none."""
    torch.manual_seed(1)
    images, texts = (F.normalize(torch.randn(5, 4, dtype=torch.float64), dim=-1) for _ in range(2))
    scale = torch.tensor(7.0, dtype=torch.float64)
    leaves = [t.clone().requires_grad_() for t in (images, texts, scale)]
    nll = contrastive_nll(*leaves)
    (nll * torch.arange(1.0, 6, dtype=torch.float64)).sum().backward()
    found = ranks2.run(shared, images, texts, scale, cuts)
    assert torch.allclose(torch.cat([each["nll"] for each in found]), nll.detach(), atol=1e-12)
    for number, leaf in enumerate(leaves):
        total = sum(each[str(number)] for each in found)
        assert torch.allclose(total, leaf.grad, atol=1e-12), number


def test_parts_and_methods(tmp_path: Path) -> None:
    """Adapter and LoRA go into either tower or both; all of CLIP may train, its scale too."""
    folder = save_clip(tmp_path / "clip")
    for part, starts in (
        ("vision", ("backbone.vision_model.",)),
        ("text", ("backbone.text_model.",)),
        ("backbone", ("backbone.vision_model.", "backbone.text_model.")),
    ):
        lora = LoRA(rank=2, roles=["attn_q", "attn_v", "ffn_out"], train_biases=False, part=part)
        methods = {"adapter": Adapter(reduction=4, part=part), "lora": lora}
        model = build(folder, methods, head=colour_head())
        assert model.trained_by
        for start in starts:
            assert any(name.startswith(start) for name in model.trained_by), start
        assert all(name.startswith(starts) for name in model.trained_by)
    model = build(folder, {"full": Full()})
    model(pairs(model, TEXTS), torch.ones(4)).loss.backward()
    assert model.get_parameter("backbone.logit_scale").grad is not None
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_pictures_of_a_frozen_tower_are_seen_once(tmp_path: Path) -> None:
    model = build(save_clip(tmp_path / "clip"), head=colour_head()).eval()
    batch = classed(model, [0, 1, 2])
    before = model.image_embeddings(batch)
    with torch.no_grad():
        model.get_parameter("backbone.visual_projection.weight").mul_(-1)
    assert torch.equal(model.image_embeddings(batch), before)
    model.to(torch.float64)  # moved weights are other weights
    assert torch.allclose(model.image_embeddings(batch), -before.double(), atol=1e-5)


def test_views_are_functions_of_the_picture_and_their_number(tmp_path: Path) -> None:
    model = build(save_clip(tmp_path / "clip"))
    batch = pairs(model, TEXTS[:1])
    assert batch.images is not None
    (whole,) = batch.images
    views = [View(whole, number).pixels() for number in range(5)]
    assert torch.equal(views[0], whole)
    assert all(view.shape == whole.shape and view.dtype == whole.dtype for view in views)
    assert len({view.numpy().tobytes() for view in views}) == 5
    assert torch.equal(View(whole, 3).pixels(), views[3])

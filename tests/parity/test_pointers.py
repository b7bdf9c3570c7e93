"""Pointers at boxes equal those of VL-T5's RefCOCOg code, where some pictures have fewer boxes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.toys.recorded.partial import recorded_case, recorded_paths
from vlds.schema import IGNORED_LABEL
from vlds.tasks.grounding import POINTERS

TASK = "refcoco"


NONE = pytest.param(None, marks=pytest.mark.skip(f"no recorded case of {TASK} in VLDS_GOLDENS"))


@torch.no_grad()
@pytest.mark.parametrize(
    "path", recorded_paths(TASK) or [NONE], ids=lambda path: path and path.stem
)
def test_logits_loss_and_pointers_are_those_of_the_original(path: Path, tmp_path: Path) -> None:
    """Its loss is a mean over all tokens; its pointer, the likeliest token behind <s>."""
    case = recorded_case(path, TASK, tmp_path)
    model, batch = case.build(tmp_path), case.batch(TASK)
    visual, _ = model.visual_tokens(batch)
    assert (visual - case.tensor(f"{TASK}/visual_embeds")).abs().max() < 1e-9
    real = case.tensor(f"{TASK}/vis_attention_mask").bool()
    mask = torch.cat([batch.attention_mask, real], 1)
    states = model.family.encode(model.backbone, batch.input_ids, visual, mask, None)
    labels = batch.labels
    assert labels is not None
    logits = model.vocabulary_logits(model.decode(states, mask, model.decoder_inputs(labels)))
    is_label = labels != IGNORED_LABEL
    assert (logits - case.tensor(f"{TASK}/logits")).abs().max() < 1e-9
    nll = -logits[is_label].log_softmax(-1).gather(1, labels[is_label][:, None])
    assert abs(nll.mean().item() - case.record["tasks"][TASK]["loss"]) < 1e-9
    likeliest = model.vocabulary_logits(model.after_prefix(states, mask)).argmax(-1)
    last = case.record["config"]["vocab"] - 1
    assert (last - likeliest).tolist() == case.record["tasks"][TASK]["extra"]["pred"]
    assert len(POINTERS) == case.record["config"]["n_boxes"]

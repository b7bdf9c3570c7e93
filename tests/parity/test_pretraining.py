"""Losses and gradients on a batch that mixes pre-training tasks equal those of VL-T5's code.

Its boxes are real and stand in another order than the visual embedding's columns, as there: the
fifth column is then no area. Our own data have the order that makes it one.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from tests.toys.recorded.case import RecordedCase
from tests.toys.recorded.partial import recorded_case, recorded_paths
from vlds.models.kinds.joint import JointModel

TASK = "pretrain"
PATHS = recorded_paths(TASK)
Run = tuple[RecordedCase, JointModel]


@pytest.fixture(scope="module", params=PATHS or [None], ids=lambda path: path and path.stem)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A recorded case and our model of it."""
    path: Path | None = request.param
    if path is None:
        pytest.skip(f"no recorded case of {TASK} in VLDS_GOLDENS")
    folder = tmp_path_factory.mktemp("case")
    case = recorded_case(path, TASK, folder)
    return case, case.build(folder)


@torch.no_grad()
def test_visual_embeddings_logits_and_loss(run: Run) -> None:
    case, model = run
    batch = case.batch(TASK)
    visual, _ = model.visual_tokens(batch)
    assert (visual - case.tensor(f"{TASK}/visual_embeds")).abs().max() < 1e-9
    assert (model.logits(batch) - case.tensor(f"{TASK}/logits")).abs().max() < 1e-9
    assert abs(case.loss(model, TASK).item() - case.record["tasks"][TASK]["loss"]) < 1e-9


def test_gradients(run: Run) -> None:
    case, model = run
    model.zero_grad()
    case.loss(model, TASK).backward()
    recorded = case.record["tasks"][TASK]
    trained = case.trainable(model)
    assert sorted(named.key for named in trained) == sorted(case.record["trainable_names"])
    for named in trained:
        gradient = named.of(named.parameter.grad).flatten()
        cosine = torch.arange(len(gradient), dtype=gradient.dtype).cos()
        assert abs(gradient.norm().item() - recorded["grad_norm"][named.key]) < 1e-7, named.key
        dot = (gradient * cosine).sum().item()
        assert abs(dot - recorded["grad_dot_cos"][named.key]) < 1e-7, named.key


@torch.no_grad()
@pytest.mark.skipif(not PATHS, reason=f"no recorded case of {TASK} in VLDS_GOLDENS")
def test_weights_of_one_norm_over_the_sum_are_read(tmp_path: Path) -> None:
    """The layout of `individual_vis_layer_norm False`, made of a recorded case: parts have no norm,
    their sum has one. Visual embeddings follow its formula."""
    source = next(path for path in PATHS if "bart" in path.stem)
    tensors = load_file(source.with_suffix(".safetensors"))
    place = "weights/model.encoder.visual_embedding."
    layout = tmp_path / "layout"
    layout.mkdir()
    shutil.copy(source, layout)
    parts = {"feat_embedding": "vis_feats", "absolute_vis_pos_embedding": "boxes"}
    for leaf in ("weight", "bias"):
        tensors[f"{place}layer_norm.{leaf}"] = tensors.pop(f"{place}feat_embedding.1.{leaf}")
        tensors.pop(f"{place}absolute_vis_pos_embedding.1.{leaf}")
    save_file(tensors, layout / source.with_suffix(".safetensors").name)
    case = recorded_case(layout / source.name, TASK, tmp_path)
    visual, _ = case.build(tmp_path).visual_tokens(case.batch(TASK))
    boxes = case.tensor(f"{TASK}/boxes")
    area = (boxes[..., 3] - boxes[..., 2]) * (boxes[..., 1] - boxes[..., 0])
    inputs = {
        "vis_feats": case.tensor(f"{TASK}/vis_feats"),
        "boxes": torch.cat([boxes, area[..., None]], 2),
    }
    weights = {name.removeprefix(place): t.double() for name, t in tensors.items()}
    table, num_tokens = weights["obj_order_embedding.weight"], boxes.shape[1]
    total = table.flip(0)[:num_tokens] + weights["img_order_embedding.weight"][0]
    for name, key in parts.items():
        total = total + F.linear(
            inputs[key], weights[f"{name}.0.weight"], weights[f"{name}.0.bias"]
        )
    norm = weights["layer_norm.weight"], weights["layer_norm.bias"]
    assert (visual - F.layer_norm(total, total.shape[-1:], *norm)).abs().max() < 1e-9

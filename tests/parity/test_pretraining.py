"""Losses and gradients on a batch that mixes pre-training tasks equal those of VL-T5's code.

Its boxes are real and stand in another order than the visual embedding's columns, as there: the
fifth column is then no area. Our own data have the order that makes it one.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.toys.recorded.case import RecordedCase
from tests.toys.recorded.partial import recorded_case, recorded_paths
from vlds.models.joint_model import JointModel

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

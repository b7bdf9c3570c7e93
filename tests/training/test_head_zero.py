"""Heads under ZeRO: what ranks compute together is what one computes, also where a rank has no
example of a task, and what belongs to an absent task stands still."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.toys.engines import (
    BETA_1,
    TASKS,
    Case,
    case_recipe,
    global_batch,
    make_case,
    own_micro_batches,
    recipe_model,
    start_engine,
    with_classes,
)
from tests.toys.rank_pool import RankPool
from vlds.models.heads import LinearHead, MLPHead
from vlds.models.kinds.joint import JointModel
from vlds.models.methods import Adapter
from vlds.schema import Batch
from vlds.training.optimizer import parameter_groups

STEPS = 4
HEADS = {
    "vqa": MLPHead(classes=("red", "green", "blue", "dark")),
    "gqa": LinearHead(classes=("yes", "no", "left")),
}
SHARED: dict[str, Any] = {"heads": HEADS, "method": Adapter(reduction=4)}
MIXED = [0, 1, 2, 2, 0, 1, 0, 2, 1, 1, 2, 0, 0, 2, 1, 0]
BY_RANK = [0] * 8 + [2] * 8
"""Of two ranks, the first has examples of vqa only, the second of gqa only."""


def batch_of(case: Case, step: int, tasks: Sequence[int]) -> Batch:
    """The global batch of a step."""
    return with_classes(global_batch(step, tasks), case, seed=step)


def train(case: Case, tasks: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Steps of the engine: losses, gradients of the first step, and the weights at the end."""
    made, cut = start_engine(case)
    losses, gradients = [], {}
    for step, numbers in enumerate(tasks):
        report = made.step(own_micro_batches(batch_of(case, step, numbers), made, cut))
        losses.append(made.ranks.sum(report.task_losses))
        if step == 0 and (first := made.export()) is not None:
            gradients = {name: t["exp_avg"] / (1 - BETA_1) for name, t in first.items()}
    state = made.export()
    made.close()
    weights = None if state is None else {name: t["fp32"] for name, t in state.items()}
    return {"losses": losses, "gradients": gradients, "weights": weights}


def train_plainly(case: Case, tasks: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The same in plain torch, on whole batches, with the loss as its definition reads."""
    run = case_recipe(case)
    model = recipe_model(run).eval()
    groups = parameter_groups(model, run)
    for group in groups:
        group["lr"] = group["peak_lr"]
    optimizer = torch.optim.AdamW(groups, betas=(BETA_1, 0.999), eps=run.optimizer.eps)
    losses, gradients = [], {}
    for step, numbers in enumerate(tasks):
        batch = batch_of(case, step, numbers)
        optimizer.zero_grad()
        by_example = plain_losses(model, batch)
        by_example.sum().div(len(batch)).backward()
        counts = torch.bincount(batch.task_index, minlength=len(TASKS))
        sums = torch.zeros(len(TASKS)).index_add(0, batch.task_index, by_example.detach())
        losses.append(sums / counts.clamp(min=1))
        found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        gradients = gradients or found
        optimizer.step()
    weights = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    return {"losses": losses, "gradients": gradients, "weights": weights}


def plain_losses(model: JointModel, batch: Batch) -> Tensor:
    """(b,) of each example: by its head's formula, or the mean over its tokens times its weight.
    Captions are means over all their tokens."""
    assert batch.class_targets is not None
    assert batch.labels is not None
    states, nll = model.first_states(batch), model.token_nll(batch)
    captions = batch.task_index == 1
    tokens = (batch.labels != -100).sum(1)
    losses = []
    for row, task in enumerate(batch.task_index.tolist()):
        target = batch.class_targets[row]
        if task == 0:
            logits = model.heads["vqa"](states[row])
            loss = F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
        elif task == 2:
            loss = -(target[:3] * model.heads["gqa"](states[row]).log_softmax(-1)).sum()
        else:
            loss = nll[row].sum() * captions.sum() / tokens[captions].sum()
        losses.append(loss * (1 if task == 1 else batch.weights[row]))
    return torch.stack(losses)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, rtol=tolerance, atol=tolerance), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "stage", "tasks"),
    [
        ("T5", 3, BY_RANK),
        ("Bart", 2, BY_RANK),
        pytest.param("Bart", 3, BY_RANK, marks=pytest.mark.slow),
        pytest.param("T5", 3, MIXED, marks=pytest.mark.slow),
        pytest.param("T5", 2, MIXED, marks=pytest.mark.slow),
    ],
)
def test_two_ranks_compute_what_one_computes(
    family: str, stage: int, tasks: Sequence[int], ranks2: RankPool, tmp_path: Path
) -> None:
    case = make_case(tmp_path, family=family, stage=stage, micro_batch_size=4, **SHARED)
    steps = [tasks] * STEPS
    expected = train_plainly(case, steps)
    assert any(name.startswith("heads.vqa") for name in expected["gradients"])
    first, *others = ranks2.run(train, case, steps, timeout=120)
    for result in (first, *others):
        for loss, plain in zip(result["losses"], expected["losses"], strict=True):
            assert torch.allclose(loss, plain.double(), rtol=1e-5)
    assert_close(first["gradients"], expected["gradients"], 1e-5)
    assert_close(first["weights"], expected["weights"], 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [3, pytest.param(2, marks=pytest.mark.slow)])
def test_the_head_of_an_absent_task_stands_still(
    stage: int, ranks2: RankPool, tmp_path: Path
) -> None:
    """Neither momentum nor decay moves it, whether it has learned before or not."""
    case = make_case(tmp_path, stage=stage, heads=HEADS, weight_decay=0.1)
    both, vqa, texts = [0, 2] * 8, [0] * 16, [1] * 16
    results = [
        ranks2.run(train, case, steps, timeout=120)[0]["weights"]
        for steps in ([vqa], [vqa, vqa], [both], [both, texts])
    ]
    once, twice, before, after = results
    drawn = dict(recipe_model(case_recipe(case)).named_parameters())
    of_gqa = [name for name in once if name.startswith("heads.gqa")]
    of_heads = [name for name in once if name.startswith("heads.")]
    assert len(of_gqa) == 2
    for name in of_gqa:
        assert torch.equal(twice[name], drawn[name])
    for name in of_heads:
        assert torch.equal(before[name], after[name])
        assert not torch.equal(before[name], drawn[name])
    assert any(not torch.equal(before[n], after[n]) for n in before if n not in of_heads)


@pytest.mark.slow
def test_a_rank_that_has_no_row_of_its_own_runs_the_heads_too(
    ranks2: RankPool, tmp_path: Path
) -> None:
    """Its one row does not count."""
    case = make_case(tmp_path, heads=HEADS, sizes=(3,), micro_batch_size=1)
    first, second = ranks2.run(train_three_rows, case, timeout=120)
    for loss, other in zip(first, second, strict=True):
        assert torch.equal(loss, other)
        assert loss.sum() > 0


def train_three_rows(case: Case) -> list[Tensor]:
    """Losses of steps with three examples of vqa or of captions, one in each micro-batch."""
    made, cut = start_engine(case)
    losses = []
    for step in range(STEPS):
        batch = with_classes(global_batch(step, [step % 2] * 3, size=3), case, seed=step)
        losses.append(made.ranks.sum(made.step(own_micro_batches(batch, made, cut)).task_losses))
    made.close()
    return losses

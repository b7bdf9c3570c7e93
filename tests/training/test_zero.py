"""ZeRO changes where tensors lie, and nothing that is computed, by tasks with heads too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

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
from tests.toys.method_cases import CASES
from tests.toys.rank_pool import RankPool
from vlds.models import partitioned
from vlds.models.heads import LinearHead, MLPHead
from vlds.models.kernels.dropout import StepDropout, dropout_by, examples_follow
from vlds.models.kinds.joint import JointModel
from vlds.models.methods import (
    IA3,
    Adapter,
    BitFit,
    Compacter,
    DecoderPromptTuning,
    Hyperformer,
    LoRA,
    LowRankAdapter,
    Peft,
    PrefixTuning,
    PromptTuning,
)
from vlds.models.partitioned import layers_of
from vlds.plan import planned
from vlds.plan.needs import evaluation_bytes
from vlds.schema import IGNORED_LABEL, Batch, Decoding
from vlds.training.optimizer import parameter_groups

STEPS = 5
ANY_TASKS = (None,) * STEPS
DROPOUT = 0.1
HEADS = {
    "vqa": MLPHead(classes=("red", "green", "blue", "dark")),
    "gqa": LinearHead(classes=("yes", "no", "left")),
}


def batch_of(case: Case, step: int, tasks: Sequence[int] | None) -> Batch:
    batch = global_batch(step, tasks, size=case.sizes[step % len(case.sizes)])
    return with_classes(batch, case, seed=step) if case.heads else batch


def dropping_case(folder: Path, **fields: Any) -> Case:
    """A case with dropout, whose draws no cut of a batch changes."""
    return make_case(folder, dropout=DROPOUT, **fields)


def train(case: Case, tasks: Sequence[Sequence[int] | None] = ANY_TASKS) -> dict[str, Any]:
    """Steps of the engine: losses, the gradients of the first step, and what the rank holds."""
    made, cut = start_engine(case)
    losses, gradients, norms = [], None, []
    for step, numbers in enumerate(tasks):
        report = made.step(own_micro_batches(batch_of(case, step, numbers), made, cut))
        losses.append(made.ranks.sum(report.task_losses))
        norms.append(report.gradient_norm)
        if step == 0 and (first := made.export()) is not None:
            gradients = {name: t["exp_avg"] / (1 - BETA_1) for name, t in first.items()}
    state = made.export()
    held = made.bytes_per_rank()
    made.close()
    return {
        "losses": losses,
        "norms": norms,
        "gradients": gradients,
        "bytes": held,
        "weights": None if state is None else {name: t["fp32"] for name, t in state.items()},
    }


def train_plainly(case: Case, tasks: Sequence[Sequence[int] | None] = ANY_TASKS) -> dict[str, Any]:
    """The same in plain torch, on the whole batch, with the loss as its definition reads."""
    run = case_recipe(case)
    model = recipe_model(run)
    groups = parameter_groups(model, run)
    optimizer = torch.optim.AdamW(groups, betas=(BETA_1, 0.999), eps=run.optimizer.eps)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"]
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    losses, gradients, norms = [], None, []
    for step, numbers in enumerate(tasks):
        batch = batch_of(case, step, numbers)
        optimizer.zero_grad()
        with dropout_by(StepDropout(0, step)):
            examples_follow(batch.ids)
            by_task = plain_task_losses(model, batch)
            counts = torch.bincount(batch.task_index, minlength=len(TASKS))
            (by_task * counts).sum().div(len(batch)).backward()
        found = {name: p.grad.clone() for name, p in trained.items() if p.grad is not None}
        assert found.keys() == trained.keys()
        gradients = gradients or found
        norms.append(torch.cat([g.flatten() for g in found.values()]).norm().item())
        optimizer.step()
        losses.append(by_task.detach())
    weights = {name: p.detach() for name, p in trained.items()}
    return {"losses": losses, "norms": norms, "gradients": gradients, "weights": weights}


def plain_task_losses(model: JointModel, batch: Batch) -> Tensor:
    """(k,) each task's own loss, one example after the other: by its head's formula, or over its
    tokens."""
    assert batch.labels is not None
    states = model.first_states(batch) if model.heads else None
    nll = model.token_nll(batch)
    losses = []
    for number, (name, task) in enumerate(TASKS.items()):
        rows = [n for n in range(len(batch)) if batch.task_index[n] == number]
        tokens = [int((batch.labels[n] != IGNORED_LABEL).sum()) for n in rows]
        if task.reduction == "token_mean":
            losses.append(sum(nll[n].sum() for n in rows) / max(sum(tokens), 1) + 0 * nll.sum())
            continue
        if states is not None and batch.class_targets is not None:
            means = [
                class_loss(name, model.heads[name](states[n]), batch.class_targets[n]) for n in rows
            ]
        else:
            means = [nll[n].sum() / t for n, t in zip(rows, tokens, strict=True)]
        weighed = [mean * batch.weights[n] for n, mean in zip(rows, means, strict=True)]
        losses.append(sum(weighed) / max(len(rows), 1) + 0 * nll.sum())
    return torch.stack(losses)


def class_loss(name: str, logits: Tensor, target: Tensor) -> Tensor:
    """The loss of an example of one of HEADS."""
    if name == "vqa":
        return F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
    return -(target[: len(logits)] * logits.log_softmax(-1)).sum()


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, rtol=tolerance, atol=tolerance), name


def assert_same_as_plain_torch(
    pool: RankPool, case: Case, tasks: Sequence[Sequence[int] | None] = ANY_TASKS
) -> None:
    expected = train_plainly(case, tasks)
    results = pool.run(train, case, tasks, timeout=120)
    for result in results:
        for loss, plain in zip(result["losses"], expected["losses"], strict=True):
            assert torch.allclose(loss, plain.double(), rtol=1e-5)
        assert result["norms"] == pytest.approx(expected["norms"], rel=1e-4)
    first = results[0]
    assert_close(first["gradients"], expected["gradients"], 1e-5)
    assert_close(first["weights"], expected["weights"], 1e-4)
    assert all(result["gradients"] is None for result in results[1:])
    check_bytes(case, [result["bytes"] for result in results])


def check_bytes(case: Case, held: list[dict[str, int]]) -> None:
    parameters = list(recipe_model(case_recipe(case)).parameters())
    frozen = sum(p.numel() for p in parameters if not p.requires_grad)
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    parts = len(held)
    padding = parts * len(parameters)  # each tensor's part is rounded up
    for own in held:
        copies = parts if case.stage == 3 else 1
        assert 0 <= own["frozen"] - 4 * frozen / copies < 4 * padding
        assert 0 <= own["trainable"] - 4 * trainable / copies < 4 * padding
        assert 0 <= own["optimizer"] - 12 * trainable / parts < 12 * padding
        assert own == planned_bytes(case, parts)


def planned_bytes(case: Case, world_size: int) -> dict[str, int]:
    """What `vlds plan` says of a case."""
    run = case_recipe(case)
    model = recipe_model(run)
    zero = json.loads(Path(run.training.deepspeed).read_text("utf-8"))["zero_optimization"]
    plan = planned(model, parameter_groups(model, run), zero, world_size)
    return {name: getattr(plan, name) for name in ("frozen", "trainable", "optimizer")}


UNEVEN = (13, 4, 16, 5, 7)
"""Sizes of global batches that neither two nor four ranks share evenly, so that the number of
micro-batches changes from step to step."""
METHODS = {
    "compacter": Compacter(reduction=4, sharing="half_shared_up"),
    "one rule": Compacter(reduction=4, sharing="multiple", rule="everywhere", block_rank=1),
    "low rank": LowRankAdapter(reduction=4, sharing="multiple"),
    "hyperformer": Hyperformer(reduction=4, task_dim=6, hidden_dim=5, projected_dim=4),
    "lora": LoRA(rank=2, dropout=0.1, sharing="multiple"),
    "ia3": IA3(sharing="multiple"),
    "bitfit": BitFit(add_biases=True),
    "bitfit everywhere": BitFit(add_biases=True, add_norm_and_head_biases=True),
    "prompts": PromptTuning(length=3, hidden_dim=5, sharing="multiple"),
    "prefixes": PrefixTuning(length=3, hidden_dim=5, sharing="multiple"),
    "bare prefixes": PrefixTuning(length=3, hidden_dim=None),
}
# tests/methods/test_rank_budget.py compares ranks under the rules of step that AdaLoRA has.
METHODS |= {f"peft {w}".strip(): c.method for w, c in CASES[Peft].items() if c.method.partitionable}
BART_METHODS = {
    **{name: method for name, method in METHODS.items() if not name.startswith("peft")},
    "decoder prompts": DecoderPromptTuning(length=3, hidden_dim=5),
}


def param(ranks: int, **fields: Any) -> Any:
    """A case on so many ranks."""
    return pytest.param(ranks, fields, id="-".join(map(str, (ranks, *fields.values()))))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "fields"),
    [
        *(
            param(ranks, family=family, stage=stage, micro_batch_size=rows)
            for ranks, stage, family in product((2, 4), (2, 3), ("T5", "Bart"))
            for rows in (16 // ranks, 8 // ranks)
        ),
        # Shares that differ by a row.
        *(
            param(4, stage=stage, micro_batch_size=rows, sizes=UNEVEN)
            for stage, rows in product((2, 3), (None, 3, 1))
        ),
        *(param(2, stage=stage, micro_batch_size=2, sizes=UNEVEN) for stage in (2, 3)),
        *(param(2, stage=stage, micro_batch_size=4, parts=3) for stage in (2, 3)),
    ],
)
def test_ranks_compute_what_one_computes(
    ranks: int, fields: dict[str, Any], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    pool: RankPool = request.getfixturevalue(f"ranks{ranks}")
    assert_same_as_plain_torch(pool, dropping_case(tmp_path, **fields))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize(
    ("family", "name"), [*product(["T5"], METHODS), *product(["Bart"], BART_METHODS)]
)
def test_every_method_is_the_same_on_two_ranks(
    family: str, name: str, stage: int, ranks2: RankPool, tmp_path: Path
) -> None:
    """With tasks mixed over the ranks."""
    method = (METHODS | BART_METHODS)[name]
    case = dropping_case(tmp_path, family=family, stage=stage, method=method)
    assert_same_as_plain_torch(ranks2, case)


MIXED = [0, 1, 2, 2, 0, 1, 0, 2, 1, 1, 2, 0, 0, 2, 1, 0]
BY_RANK = [0] * 8 + [2] * 8
"""Of two ranks, the first has examples of vqa only, the second of gqa only."""
THREE = [0, 2, 1]
"""Of two ranks, the second's last micro-batch has a row that does not count."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "stage", "tasks"),
    [
        ("T5", 3, BY_RANK),
        ("T5", 3, THREE),
        ("Bart", 2, BY_RANK),
        ("Bart", 3, BY_RANK),
        ("T5", 3, MIXED),
        ("T5", 2, MIXED),
    ],
)
def test_heads_are_the_same_on_two_ranks(
    family: str, stage: int, tasks: Sequence[int], ranks2: RankPool, tmp_path: Path
) -> None:
    """Also where a rank has no example of a task."""
    fields: dict[str, Any] = {"heads": HEADS, "method": Adapter(reduction=4)}
    fields |= {"sizes": (len(tasks),), "micro_batch_size": max(1, len(tasks) // 4)}
    case = make_case(tmp_path, family=family, stage=stage, **fields)
    assert_same_as_plain_torch(ranks2, case, [tasks] * 4)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [3, 2])
def test_the_head_of_an_absent_task_stands_still(
    stage: int, ranks2: RankPool, tmp_path: Path
) -> None:
    """Neither momentum nor decay moves it, whether it has learned before or not."""
    case = make_case(tmp_path, stage=stage, heads=HEADS, weight_decay=0.1)
    both, vqa, texts = [0, 2] * 8, [0] * 16, [1] * 16
    once, twice, before, after = (
        ranks2.run(train, case, steps, timeout=120)[0]["weights"]
        for steps in ([vqa], [vqa, vqa], [both], [both, texts])
    )
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


class Evaluated(NamedTuple):
    """What a rank saw: of each step, and of each evaluation's batches."""

    losses: list[Tensor]
    answers: list[Any]
    gathered: list[int]
    """Bytes of what was gathered together, in the order in which it was; the first stays until the
    end of the evaluation."""
    held: set[int]
    """Numbers of elements that were whole between two batches, of weights that layers need."""


def train_and_evaluate(case: Case, evaluate: bool) -> Evaluated:
    """Four steps; between them the ranks generate unlike numbers of answers of unlike lengths."""
    made, cut = start_engine(case)
    seen = Evaluated([], [], [], set())

    gather = partitioned.gathered

    def gathered(weights: Sequence[Any], **how: Any) -> AbstractContextManager[object]:
        seen.gathered.append(sum(w.ds_numel * w.element_size() for w in weights))
        return gather(weights, **how)

    for step in range(4):
        report = made.step(own_micro_batches(global_batch(step), made, cut))
        seen.losses.append(report.task_losses)
        if not evaluate:
            continue
        seen.gathered.clear()
        rank = made.ranks.global_rank
        with (
            mock.patch("vlds.training.engine.gathered", gathered),
            mock.patch.object(partitioned, "gathered", gathered),
            made.evaluation() as model,
            model.at_own_pace() as begin_batch,
        ):
            assert not model.training
            for seed in range(1 + 2 * rank):
                begin_batch()
                decoding = Decoding(max_new_tokens=2 + 3 * rank, num_beams=1 + seed)
                seen.answers.append(model.generate(global_batch(seed), decoding))
                _, layers = layers_of(model, case.persistence)
                seen.held.add(sum(p.numel() for _, weights in layers for p in weights))
        assert made.model.training
    made.close()
    return seen


@pytest.mark.parametrize("family", [pytest.param("T5", marks=pytest.mark.slow), "Bart"])
def test_ranks_evaluate_layer_by_layer_at_their_own_pace(
    family: str, ranks2: RankPool, tmp_path: Path
) -> None:
    """The same answers as with whole weights, in the planned memory, and training goes on as
    without an evaluation."""
    case = dropping_case(tmp_path, family=family)
    without = ranks2.run(train_and_evaluate, case, False, timeout=120)
    whole, layers = (
        ranks2.run(train_and_evaluate, replace(case, evaluates_whole=choice), True, timeout=120)
        for choice in (True, False)
    )
    for each in (whole, layers):
        for own, others in zip(without, each, strict=True):
            assert all(map(torch.equal, own.losses, others.losses))
    zero = {"stage": 3, "stage3_param_persistence_threshold": case.persistence}
    of_plan = evaluation_bytes(recipe_model(case_recipe(case)), zero, 2, case.persistence)
    for own, others in zip(whole, layers, strict=True):
        assert len(own.answers) == len(others.answers) in (4, 12)
        assert own.answers == others.answers
        assert 0 not in own.held
        assert others.held == {0}
        assert own.gathered == [of_plan[0]]
        assert others.gathered[0] + max(others.gathered[1:]) == of_plan[1]
    assert layers[0].gathered == layers[1].gathered, "all ranks gather together"


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_clipping_bounds_the_whole_gradient(stage: int, ranks2: RankPool, tmp_path: Path) -> None:
    plain = train_plainly(dropping_case(tmp_path))
    clip_norm = plain["norms"][0] / 2
    clipped = ranks2.run(train, dropping_case(tmp_path, stage=stage, clip_norm=clip_norm))[0]
    assert clipped["norms"][0] == pytest.approx(plain["norms"][0])
    halved = {name: gradient / 2 for name, gradient in plain["gradients"].items()}
    assert_close(clipped["gradients"], halved, 1e-5)

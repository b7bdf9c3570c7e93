"""Meta-learning on ranks: how the run's examples are cut changes nothing, whatever the method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.toys.engines import (
    Case,
    case_recipe,
    global_batch,
    make_case,
    micro_batches,
    with_classes,
)
from tests.toys.engines import recipe_model as built
from tests.toys.method_cases import METHOD_CASES
from tests.toys.rank_pool import RankPool
from vlds.data.order.mixed_order import BatchCut
from vlds.models.heads import LinearHead, MLPHead
from vlds.models.methods import Adapter, Peft
from vlds.recipe.config import MetaConfig
from vlds.runtime.deepspeed_start import start_ranks
from vlds.schema import Batch
from vlds.training.meta import Half, MetaLearner, MetaSteps, check_meta, outer_rate

CONFIG = MetaConfig(learning_rate=0.02)
"""Without decay, which makes whole steps of what is rounding alone, such as the gradients of keys'
biases."""
DECAYING = replace(CONFIG, weight_decay=0.1)
EPS = 1e-3
"""Adam's. A task's first step goes by g / (|g| + eps), so a smaller eps makes much of the rounding
of small gradients: with 1e-4, HyperPELT's second loss differs by 2e-5 on some CPUs."""


def batch_of(case: Case, seed: int, size: int) -> Batch:
    """A global batch; tasks with heads have classes."""
    batch = global_batch(seed, size=size)
    return with_classes(batch, case, seed) if case.heads else batch


def learn(case: Case, sizes: list[int], config: MetaConfig) -> dict[str, Any]:
    """Outer steps on global batches of these sizes: losses, and the weights before and after."""
    ranks = start_ranks(60)
    recipe = case_recipe(case)
    recipe = replace(recipe, meta=config, optimizer=replace(recipe.optimizer, eps=EPS))
    model = built(recipe)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    learner = MetaLearner(model, recipe, config, ranks)
    cut = BatchCut(ranks.world_size, case.micro_batch_size)
    losses = [
        learner.step([micro_batches(batch_of(case, seed, size), ranks.global_rank, cut)], 1.0)
        for seed, size in enumerate(sizes)
    ]
    after = {name: weight.detach() for name, weight in model.named_parameters()}
    return {"losses": losses, "before": before, "after": after, "trained": set(model.trained_by)}


REFUSED = "Peft adalora"
CASES = [(name, case.families[0]) for name, case in METHOD_CASES.items() if name != REFUSED]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "family"), CASES)
def test_every_method_learns_the_same_on_any_ranks(
    name: str, family: str, ranks1: RankPool, ranks2: RankPool, tmp_path: Path
) -> None:
    method = METHOD_CASES[name].method
    case = make_case(tmp_path, family=family, method=method, dropout=0.1)
    check_any_cut(case, ranks1, ranks2)


HEADS = {
    "vqa": MLPHead(classes=("red", "green", "blue", "dark")),
    "gqa": LinearHead(classes=("yes", "no", "left")),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["T5", pytest.param("Bart", marks=pytest.mark.slow)])
def test_heads_learn_the_same_on_any_ranks(
    family: str, ranks1: RankPool, ranks2: RankPool, tmp_path: Path
) -> None:
    case = make_case(tmp_path, family=family, method=Adapter(reduction=4), heads=HEADS)
    moved = check_any_cut(case, ranks1, ranks2)
    assert {name.split(".")[1] for name in moved if name.startswith("heads.")} == HEADS.keys()


def check_any_cut(case: Case, ranks1: RankPool, ranks2: RankPool) -> set[str]:
    """Compare outer steps on one rank with those on two in micro-batches, also of a batch in which
    one rank has less to do; which weights have moved."""
    sizes = [16, 7, 16]
    (expected,) = ranks1.run(learn, case, sizes, CONFIG)
    moved = moved_names(expected)
    assert moved
    assert moved <= expected["trained"], "frozen weights stay"
    for found in ranks2.run(learn, replace(case, micro_batch_size=3), sizes, CONFIG):
        assert moved_names(found) == moved
        for losses, whole in zip(found["losses"], expected["losses"], strict=True):
            assert losses.keys() == whole.keys()
            for task, pair in whole.items():
                assert losses[task] == pytest.approx(pair, rel=1e-5), task
        for key, tensor in expected["after"].items():
            assert torch.allclose(found["after"][key], tensor, rtol=1e-4, atol=1e-4), key
    return moved


def moved_names(learnt: dict[str, Any]) -> set[str]:
    """Of the weights that differ from before."""
    before, after = learnt["before"], learnt["after"]
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_a_task_moves_its_own_weights_alone(ranks1: RankPool, tmp_path: Path) -> None:
    """Even where weights decay. The losses' definition is that of the run."""
    method = Adapter(sharing="multiple", reduction=4)
    case = make_case(tmp_path, method=method, heads=HEADS)
    (found,) = ranks1.run(learn_one_task, case)
    heads = {name: p for name, p in found["before"].items() if name.startswith("heads.")}
    assert len(heads) > 4
    assert all(torch.equal(found["after"][name], p) for name, p in heads.items())
    stacks = {name: p for name, p in found["before"].items() if "method" in name}
    assert stacks
    for name, before in stacks.items():
        after = found["after"][name]
        assert torch.equal(after[[0, 2]], before[[0, 2]]), name
    assert any(not torch.equal(found["after"][n][1], p[1]) for n, p in stacks.items())
    assert found["loss"] == pytest.approx(found["expected"], rel=1e-6)


CAPTION = 1


def learn_one_task(case: Case) -> dict[str, Any]:
    """An outer step on captions; its first loss, and what the definition says."""
    ranks = start_ranks(60)
    recipe = replace(case_recipe(case), meta=DECAYING)
    model = built(recipe)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    batch = with_classes(global_batch(0, tasks=[CAPTION] * 16), case)
    half = batch.select(torch.arange(0, 16, 2))
    assert half.labels is not None
    nll: Tensor = model.train().token_nll(half)
    expected = nll.sum() / (half.labels >= 0).sum()
    losses = MetaLearner(model, recipe, DECAYING, ranks).step([[batch]], 1.0)
    after = {name: weight.detach() for name, weight in model.named_parameters()}
    return {
        "before": before,
        "after": after,
        "loss": losses["caption"][0],
        "expected": expected.item(),
    }


def test_a_method_that_follows_the_steps_is_refused(tmp_path: Path) -> None:
    method = METHOD_CASES[REFUSED].method
    assert isinstance(method, Peft)
    with pytest.raises(
        ValueError, match=r"meta: methods\.method follows the run's optimizer steps"
    ):
        check_meta(built(case_recipe(make_case(tmp_path, method=method))))


# Outer steps over tasks; tests/parity/test_related.py has the original code's results.

INPUTS, OUTPUTS, ROWS = 6, 3, 16
Examples = Callable[[], tuple[Tensor, Tensor]]
"""Draws inputs and targets of a task."""


def family(seed: int, num_tasks: int) -> list[Examples]:
    """Linear regressions whose matrices lie near each other, and far from 0."""
    draw = torch.Generator().manual_seed(seed)
    centre = torch.randn(OUTPUTS, INPUTS, generator=draw)

    def task(matrix: Tensor) -> Examples:
        def examples() -> tuple[Tensor, Tensor]:
            inputs = torch.randn(ROWS, INPUTS, generator=draw)
            return inputs, inputs @ matrix.T

        return examples

    return [
        task(centre + 0.1 * torch.randn(centre.shape, generator=draw)) for _ in range(num_tasks)
    ]


def half_of(weight: Tensor, examples: tuple[Tensor, Tensor]) -> Half:
    """The mean squared error of a matrix, as half of a task."""

    def backward() -> float:
        inputs, targets = examples
        loss = (inputs @ weight.T - targets).square().mean()
        loss.backward()
        return loss.item()

    return backward


def random_start(seed: int) -> nn.Parameter:
    draw = torch.Generator().manual_seed(100 + seed)
    return nn.Parameter(0.3 * torch.randn(OUTPUTS, INPUTS, generator=draw))


def meta_steps(weight: nn.Parameter) -> MetaSteps:
    return MetaSteps([weight], torch.optim.Adam([weight], lr=0.05, betas=(0.0, 0.999)), 5.0)


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    weight = random_start(0)
    (task,) = family(0, num_tasks=1)
    inputs, targets = task()
    bad = half_of(weight, (inputs / 0, targets))
    made, before = meta_steps(weight), weight.detach().clone()
    made.step([(half_of(weight, task()), bad)], 1.0)
    assert torch.equal(weight, before), "the change of the second step counts, and there was none"
    assert made.num_skipped == 1
    made.step([(bad, half_of(weight, task()))], 1.0)
    assert made.num_skipped == 2
    assert weight.isfinite().all()
    assert not torch.equal(weight, before)


def test_the_rate_falls_to_nothing() -> None:
    assert [outer_rate(0.8, step, 4) for step in range(5)] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0])

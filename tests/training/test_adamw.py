"""Weights of absent tasks stand still, as in AdamW over one parameter per task; both updates."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from tests.toys.engines import (
    EPS,
    NUM_EXAMPLES,
    TASKS,
    Case,
    case_recipe,
    global_batch,
    make_case,
    own_micro_batches,
    recipe_model,
    start_engine,
)
from tests.toys.kinds import kind_recipe
from tests.toys.rank_jobs import check_complaint
from tests.toys.rank_pool import RankPool
from tests.toys.recipes import with_model
from tests.toys.whole_adamw import WholeAdamW
from vlds.models.kinds.joint import JointModel, JointSeq2Seq
from vlds.models.methods import (
    IA3,
    Adapter,
    Compacter,
    DecoderPromptTuning,
    Hyperformer,
    LoRA,
    LowRankAdapter,
    Method,
    PrefixTuning,
    PromptTuning,
    Shrinking,
)
from vlds.models.roles import TaskSlices, task_slices
from vlds.recipe.config import AdamWUpdate, OptimizerConfig, Recipe
from vlds.schema import Batch
from vlds.training.loss import LossTotals, coefficients, count
from vlds.training.optimizer import (
    parameter_groups,
    peak_learning_rate,
    run_factor,
    schedule_factor,
    set_learning_rate,
)

STEPS = 50
SCHEDULE = OptimizerConfig(warmup_ratio=0.2)
UPDATES = [40, 30, 6]
"""Steps with examples of each task."""


def batch_of(step: int) -> Batch:
    """The first task is in each step but every fifth, the second in every other one, the third in
    every eighth. Of the latter two there is one example, so that one rank alone has it."""
    tasks = [0 if step % 5 else 1] * NUM_EXAMPLES
    if step % 2:
        tasks[-1] = 1
    if step % 8 == 3:
        tasks[0] = 2
    return global_batch(step, tasks)


def learning_rate(step: int) -> float:
    """Factor of the peak rate: it rises, then falls."""
    return schedule_factor(step, STEPS, SCHEDULE)


def backward(model: JointModel, step: int) -> Tensor:
    """Gradients of a step's loss; returns the number of examples of each task."""
    batch = batch_of(step)
    totals = LossTotals(*count([batch], len(TASKS)))
    model.zero_grad()
    model(batch, coefficients(batch, totals, list(TASKS.values()))).loss.backward()
    return totals.examples


def reference(case: Case) -> dict[str, Tensor]:
    """Weights after STEPS steps in plain torch: its AdamW over a parameter for each task."""
    run = case_recipe(case)
    model = recipe_model(run)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    slices = {
        p: [nn.Parameter(part.detach().clone()) for part in p]
        for n, p in trained.items()
        if ".extensions." in n and len(p) == len(TASKS)
    }
    groups = parameter_groups(model, run)
    for group in groups:
        group["params"] = [s for p in group["params"] for s in slices.get(p, [p])]
    optimizer = torch.optim.AdamW(groups, eps=EPS)
    for step in range(STEPS):
        optimizer.zero_grad()
        examples = backward(model, step)
        for stacked, parts in slices.items():
            assert stacked.grad is not None
            for task, part in enumerate(parts):
                part.grad = stacked.grad[task] if examples[task] else None
        set_learning_rate(optimizer.param_groups, learning_rate(step))
        optimizer.step()
        with torch.no_grad():
            for stacked, parts in slices.items():
                stacked.copy_(torch.stack(list(parts)))
    return {name: p.detach() for name, p in trained.items()}


def whole_steps(case: Case) -> dict[str, Tensor]:
    """Weights after STEPS steps of our optimizer in one process, without an engine."""
    run = case_recipe(case)
    model = recipe_model(run)
    num_tasks = len(TASKS)
    optimizer = WholeAdamW(
        parameter_groups(model, run),
        update=case.update,
        slices=task_slices(model, num_tasks),
        num_tasks=num_tasks,
        eps=EPS,
    )
    for step in range(STEPS):
        examples = backward(model, step)
        set_learning_rate(optimizer.parameter_groups, learning_rate(step))
        optimizer.step(examples > 0)
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def case_of(folder: Path, stage: int = 2, **fields: Any) -> Case:
    """Two learning rates, with and without decay; some adapters' halves are shared."""
    method = Adapter(sharing="half_shared_up", reduction=4)
    fields = {"method": method, "weight_decay": 0.1, "visual_rate": 3e-3, **fields}
    return make_case(folder, stage=stage, **fields)


def train(case: Case, steps: range, before: Any = None) -> Any:
    """Steps of an engine, which may resume from a state: the state after them and each
    task's updates."""
    made, plan = start_engine(case)
    if before is not None:
        state, updates = before
        made.restore(state, steps.start, 0, updates)
    for step in steps:
        set_learning_rate(made.parameter_groups, learning_rate(step))
        made.step(own_micro_batches(batch_of(step), made, plan))
    after = made.export(), made.task_updates
    made.close()
    return after


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[AdamWUpdate, dict[str, Tensor]]:
    """The references' weights. That of transformers' update is our own optimizer, which follows
    formulas and recorded steps (below and tests/parity/test_training.py)."""
    case = case_of(tmp_path_factory.mktemp("reference"))
    of_transformers = whole_steps(replace(case, update="transformers"))
    return {"torch": reference(case), "transformers": of_transformers}


@pytest.mark.parametrize("update", get_args(AdamWUpdate))
def test_small_and_constant_gradients(update: AdamWUpdate) -> None:
    """2,000 updates of 0.5 in closed form: with a constant gradient g the corrected moments are g
    and g^2. Gradients as small as eps move weights less in transformers' update. The second task is
    in every third batch alone, so that it counts other updates; what no loss has read stays."""
    gradients, rate, decay, eps, steps = [-1e-6, 1e-3, 0.0], 1e-3, 0.01, 1e-6, 2000
    weights = [nn.Parameter(torch.full((2, 3), 0.5, dtype=torch.float64)) for _ in range(2)]
    for weight in weights:
        weight.grad = torch.tensor([gradients] * 2, dtype=torch.float64)
    unread = nn.Parameter(torch.full((5,), 0.5, dtype=torch.float64))
    optimizer = WholeAdamW(
        [{"params": [weights[0], unread, weights[1]], "lr": rate, "weight_decay": decay}],
        update=update,
        slices={weights[0]: TaskSlices(0, 3)},
        num_tasks=2,
        eps=eps,
    )
    for step in range(steps):
        optimizer.step(torch.tensor([True, step % 3 == 0]))

    def closed_form(gradient: float, updates: int) -> float:
        weight = 0.5
        for number in range(1, updates + 1):
            root = math.sqrt(1 - 0.999**number)
            if update == "torch":
                weight -= rate * decay * weight
                weight -= rate * gradient / (abs(gradient) + eps)
            else:
                weight -= rate * root * gradient / (abs(gradient) * root + eps)
                weight -= rate * decay * weight
        return weight

    always, seldom = ([closed_form(g, n) for g in gradients] for n in (steps, -(-steps // 3)))
    for found, wanted in ((weights[0], [always, seldom]), (weights[1], [always, always])):
        assert (found - torch.tensor(wanted, dtype=torch.float64)).abs().max() < 1e-9
    assert (unread == 0.5).all()
    moved = (always[0] - always[2]) / (rate * steps / 2)
    assert moved == pytest.approx({"torch": 1.0, "transformers": 0.82}[update], abs=0.02)


def assert_equals(found: Any, expected: dict[str, Tensor]) -> None:
    state, updates = found
    assert updates == UPDATES
    assert state.keys() == expected.keys()
    for name, weight in expected.items():
        assert (state[name]["fp32"] - weight).abs().max() < 1e-6, name


FAST = [(2, 3, "torch"), (2, 2, "transformers")]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("ranks", "stage", "update"),
    FAST
    + [
        pytest.param(*case, marks=pytest.mark.slow)
        for case in product((1, 2, 4), (1, 2, 3), get_args(AdamWUpdate))
        if case not in FAST
    ],
)
def test_fifty_steps_are_those_of_one_parameter_per_task(
    ranks: int,
    stage: int,
    update: AdamWUpdate,
    expected: dict[AdamWUpdate, dict[str, Tensor]],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    pool: RankPool = request.getfixturevalue(f"ranks{ranks}")
    case = case_of(tmp_path, stage, update=update)
    found, *_ = pool.run(train, case, range(STEPS), timeout=200)
    assert_equals(found, expected[update])


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "update"), [(2, "transformers"), (3, "torch")])
def test_masters_in_the_memory_of_the_cpu(
    stage: int,
    update: AdamWUpdate,
    expected: dict[AdamWUpdate, dict[str, Tensor]],
    ranks2: RankPool,
    tmp_path: Path,
) -> None:
    case = case_of(tmp_path, stage, offload=True, update=update)
    assert_equals(ranks2.run(train, case, range(STEPS), timeout=200)[0], expected[update])


METHODS: dict[str, Method] = {
    "adapters": Adapter(reduction=4, sharing="multiple"),
    "half_adapters": Adapter(reduction=4, sharing="half_shared_up", layer_norm_before=True),
    "compacters": Compacter(reduction=4, sharing="half_shared_down"),
    "thin_compacters": Compacter(reduction=4, sharing="multiple", rule="everywhere", block_rank=1),
    "low_rank": LowRankAdapter(reduction=4, sharing="multiple"),
    # As many kinds of sub-layer as tasks, but their embeddings belong to all tasks.
    "hyperformer": Hyperformer(
        reduction=4, task_dim=6, hidden_dim=5, projected_dim=4, kind_embeddings=True
    ),
    "loras": LoRA(rank=2, dropout=0.0, sharing="half_shared_up"),
    "ia3s": IA3(sharing="multiple"),
    "prompts": PromptTuning(length=3, hidden_dim=5, sharing="multiple"),
    "prefixes": PrefixTuning(length=3, hidden_dim=None, sharing="multiple"),
    "decoder_prompts": DecoderPromptTuning(length=3, hidden_dim=None, sharing="multiple"),
}
LOW_RANK = {"down_left", "down_right", "down_bias", "up_left", "up_right", "up_bias"}
PER_TASK = {
    "adapters": {"down_weight", "down_bias", "up_weight", "up_bias"},
    "half_adapters": {"down_weight", "down_bias"},
    "compacters": {"up_rule", "up_blocks", "up_bias"},
    "thin_compacters": LOW_RANK,
    "low_rank": LOW_RANK,
    "hyperformer": {"task_embeddings.weight"},
    "loras": {"a"},
    "ia3s": {"factors"},
    "prompts": {
        "network.table",
        *(f"network.{layer}_{of}" for layer in ("hidden", "output") for of in ("weight", "bias")),
    },
    "prefixes": {"network.table"},
    "decoder_prompts": {"decoder_network.table"},
}
"""Method -> its tensors that are stacked over tasks."""


def with_and_without_tasks(case: Case) -> list[Any]:
    """States after two steps with all tasks, and after two more with the first task alone."""
    made, plan = start_engine(case)
    states = []
    for tasks in (None, [0] * NUM_EXAMPLES):
        for seed in range(2):
            made.step(own_micro_batches(global_batch(seed, tasks), made, plan))
        states.append((made.export(), made.task_updates))
    made.close()
    return states


@pytest.mark.slow
@pytest.mark.parametrize("stage", [3, 2])
def test_weights_of_absent_tasks_stand_still(stage: int, ranks2: RankPool, tmp_path: Path) -> None:
    """Of all methods, which act together here; weights and both moments, bit for bit."""
    case = case_of(tmp_path, stage, family="Bart", others=METHODS)
    (before, updates), (after, later) = ranks2.run(with_and_without_tasks, case)[0]
    assert (updates, later) == ([2, 2, 2], [4, 2, 2])
    stacked: dict[str, set[str]] = {name: set() for name in METHODS}
    for weight, old in before.items():
        new = after[weight]
        method, _, leaf = weight.rpartition("extensions.")[2].partition(".")
        if leaf in PER_TASK.get(method, ()):
            stacked[method].add(leaf)
            for key in old:
                assert torch.equal(new[key][1:], old[key][1:]), (weight, key)
            old, new = ({key: t[:1] for key, t in tensors.items()} for tensors in (old, new))
        assert not torch.equal(new["exp_avg"], old["exp_avg"]), weight
    assert stacked == PER_TASK


# The schedule, and what decays.


def test_the_rate_rises_stays_and_falls() -> None:
    config = OptimizerConfig(warmup_ratio=0.1)
    factors = [schedule_factor(step, 40, config) for step in range(40)]
    assert factors[:5] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert factors[-1] == pytest.approx(1 / 36)
    assert factors[22] == pytest.approx(0.5)
    late = replace(config, decay_start=0.5)
    factors = [schedule_factor(step, 100, late) for step in range(100)]
    assert factors[10] == factors[49] == 1.0
    assert factors[75] == pytest.approx(0.5)


def test_methods_may_begin_the_schedule_again(tmp_path: Path) -> None:
    shrinking = Shrinking(of=Adapter(reduction=4), cycles=3)
    run = recipe_of(tmp_path, {"lora": LoRA(rank=2), "shrink": shrinking})
    training = replace(run.training, steps=40)
    run = replace(run, optimizer=OptimizerConfig(warmup_ratio=0.1), training=training)
    cycle = [schedule_factor(step, 10, run.optimizer) for step in range(10)]
    assert [run_factor(step, run) for step in range(40)] == cycle * 4
    whole = replace(run, methods={"shrink": replace(shrinking, restart=False)})
    expected = [schedule_factor(step, 40, run.optimizer) for step in range(40)]
    assert [run_factor(step, whole) for step in range(40)] == expected


def recipe_of(folder: Path, methods: dict[str, Method], family: str = "T5") -> Recipe:
    run = case_recipe(make_case(folder, family=family))
    return with_model(replace(run, methods=methods), train_norms=True)


def rate_of_part(kind: str, field: str, world: Path, folder: Path, **changes: bool) -> Recipe:
    run = with_model(kind_recipe(kind, world, folder / "run"), **changes)
    return replace(run, optimizer=OptimizerConfig(**{field: 1e-5}))


@pytest.mark.parametrize(
    ("kind", "switch", "field", "message"),
    [
        ("joint", "norms", "norms", "norms; what trains: .*, visual embedding; leave it out"),
        ("joint", "visual_embedding", "connector", "visual embedding; what trains: "),
        ("joint", None, "heads", "heads; what trains: "),
        ("causal", "projector", "connector", "connector or projector; what trains: lora; leave it"),
        ("image_text", None, "norms", "norms; what trains: lora, connector; leave it out"),
        ("image_text", "connector", "connector", "connector; what trains: lora; leave it out"),
    ],
)
def test_the_rate_of_a_part_that_does_not_train(
    kind: str, switch: str | None, field: str, message: str, world: Path, tmp_path: Path
) -> None:
    """An error before any file is opened."""
    field, changes = f"{field}_learning_rate", {f"train_{switch}": False} if switch else {}
    run = rate_of_part(kind, field, world, tmp_path, **changes)
    start = rf"optimizer\.{field}: got 1e-05, but the model trains no "
    assert re.match(start + message, check_complaint(run))


@pytest.mark.parametrize(
    ("part", "field"), [*JointSeq2Seq.rate_fields.items(), ("heads", "heads_learning_rate")]
)
def test_each_part_has_the_rate_of_its_field(part: str, field: str, tmp_path: Path) -> None:
    run = recipe_of(tmp_path, {"lora": LoRA(rank=2), "ia3": IA3(learning_rate=0.25)})
    assert peak_learning_rate(part, run) == run.optimizer.learning_rate
    optimizer = replace(run.optimizer, **{field: 0.125})
    assert peak_learning_rate(part, replace(run, optimizer=optimizer)) == 0.125
    assert peak_learning_rate("lora", run) == run.optimizer.learning_rate
    assert peak_learning_rate("ia3", run) == 0.25

"""The schedule, and what decays."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.toys.engines import case_recipe, make_case
from tests.toys.kinds import kind_recipe
from tests.toys.rank_jobs import check_complaint
from tests.toys.recipes import with_model
from vlds.models.kinds.causal import Causal
from vlds.models.kinds.joint import JointSeq2Seq
from vlds.models.methods import IA3, Adapter, LoRA, Method, Shrinking
from vlds.recipe.config import OptimizerConfig, Recipe
from vlds.training.optimizer import (
    check_rates,
    peak_learning_rate,
    run_factor,
    schedule_factor,
)


class Bridged(Causal):
    """Trains a part that the optimizer does not know."""

    @property
    def trained_text(self) -> list[str]:
        return ["bridge"]


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


def test_a_part_without_a_rate(world: Path, tmp_path: Path) -> None:
    """Before any file is opened, and for a part that a built model has."""
    run = kind_recipe("causal", world, tmp_path / "run")
    message = "the model trains a part 'bridge', which has no learning rate in the optimizer; "
    with pytest.raises(ValueError, match=message):
        check_rates(replace(run, model=Bridged(**vars(run.model))))
    with pytest.raises(ValueError, match=message):
        peak_learning_rate("bridge", run)


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

"""Experts of a mixture in real steps: which ones ranks draw, and what AdamW does to the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tests.toys.engines import RATE, Case, global_batch, make_case, own_micro_batches, start_engine
from tests.toys.files import read_lines
from tests.toys.rank_jobs import run_and_print
from tests.toys.rank_pool import RankPool
from tests.toys.recipes import short_recipe
from vlds.models.methods import Mixture
from vlds.models.methods.context import BatchContext
from vlds.models.methods.mixture import of_ffn

STEPS, EXPERTS, DECAY = 3, 4, 0.1
FFN = replace(of_ffn(), reduction=4)
Draw = tuple[int, int, str]
"""Step, pass, and key of a draw."""


class Recorded(BatchContext):
    """Remembers what was drawn."""

    drawn: dict[Draw, set[int]]

    def draw(self, key: str, count: int) -> int:
        number = super().draw(key, count)
        self.drawn.setdefault((self.step, self._pass, key), set()).add(number)
        return number


class Trained(NamedTuple):
    """What a rank has of some steps."""

    drawn: dict[Draw, set[int]]
    states: list[dict[str, dict[str, Tensor]]]
    """Down halves' weights and moments, before the first step and after each; on the first rank."""


def train(case: Case) -> Trained:
    made, cut = start_engine(case)
    context = made.model.context
    context.__class__ = Recorded
    assert isinstance(context, Recorded)
    context.drawn, states = {}, []

    def keep() -> None:
        state = made.export() or {}
        kept = {name: tensors for name, tensors in state.items() if name.endswith("down_weight")}
        states.append(kept)

    keep()
    for step in range(STEPS):
        made.step(own_micro_batches(global_batch(step), made, cut))
        keep()
    made.close()
    return Trained(context.drawn, states)


@pytest.mark.slow
def test_ranks_draw_the_same_experts(ranks2: RankPool, tmp_path: Path) -> None:
    """In each pass of each step, whatever their rows and however many micro-batches."""
    mixture = Mixture(of=FFN, experts=EXPERTS)
    case = make_case(tmp_path, stage=3, micro_batch_size=2, method=mixture)
    first, second = (trained.drawn for trained in ranks2.run(train, case, timeout=120))
    assert first == second
    layers = 4
    assert len(first) == STEPS * 2 * layers  # the up halves are one, and draw nothing
    assert all(len(numbers) == 1 for numbers in first.values())
    assert len(set().union(*first.values())) == EXPERTS


def test_experts_that_are_not_drawn_have_a_gradient_of_zero(
    ranks2: RankPool, tmp_path: Path
) -> None:
    """As in the original code, so that momentum moves them, and weight decay shrinks them."""
    mixture = Mixture(of=FFN, experts=EXPERTS, consistency=0)
    case = make_case(tmp_path, stage=2, method=mixture, weight_decay=DECAY)
    trained = ranks2.run(train, case, timeout=120)[0]
    names = sorted({key for _, _, key in trained.drawn})
    coasting = still = 0
    for number, name in enumerate(trained.states[0]):
        experts = [trained.drawn[step, 0, names[number]] for step in range(STEPS)]
        for step in range(1, STEPS + 1):
            before, after = (trained.states[n][name] for n in (step - 1, step))
            for expert in set(range(EXPERTS)) - experts[step - 1]:
                momentum = 0.9 * before["exp_avg"][expert]
                assert torch.allclose(after["exp_avg"][expert], momentum, atol=1e-9)
                decayed = (1 - RATE * DECAY) * before["fp32"][expert]
                moved = (after["fp32"][expert] - decayed).abs().max()
                if expert in set().union(*experts[:step]):
                    assert moved > 1e-5
                    coasting += 1
                else:
                    assert moved < 1e-6
                    still += 1
    assert coasting
    assert still


def test_a_run_says_that_it_takes_two_passes(world: Path, ranks2: RankPool, tmp_path: Path) -> None:
    recipe = short_recipe(world, tmp_path / "run", stage=2)
    training = replace(recipe.training, steps=1)
    recipe = replace(recipe, training=training, methods={"mix": Mixture(of=FFN)})
    code, said = ranks2.run(run_and_print, recipe, timeout=120)[0]
    assert code == 0
    assert "2 passes over each batch (methods.mix); `vlds plan` says what they cost" in said
    assert read_lines(tmp_path / "run/metrics.jsonl")[0]["passes"] == 2  # for `vlds compare`

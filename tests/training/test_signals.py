"""Signals that ask a rank to save and end: one that comes during an evaluation loses no step, and
does not wait for its end."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest

from tests.toys.files import read_lines
from tests.toys.rank_jobs import run_recipe
from tests.toys.rank_pool import RankPool
from tests.toys.world import world_recipe
from vlds.recipe.config import Recipe
from vlds.runtime.process import signals_collected
from vlds.tasks import VQA
from vlds.training.states import newest, read_progress

ANSWERS_BEFORE_STOP = 2


@dataclass(frozen=True, kw_only=True)
class StoppedVQA(VQA):
    """Sends SIGTERM to its own rank with every answer after the first two."""

    count_file: str

    def answer_from(self, text: str) -> str:
        if os.environ["RANK"] == "1":
            with open(self.count_file, "a+", encoding="utf-8") as file:
                file.write("x")
                if file.tell() == ANSWERS_BEFORE_STOP:
                    os.kill(os.getpid(), signal.SIGTERM)
        return super().answer_from(text)


def evaluated_often(world: Path, output: Path) -> Recipe:
    """Evaluations after every third of nine steps; states only at the end."""
    recipe = world_recipe(world, output)
    return replace(
        recipe,
        data=replace(recipe.data, eval_batch_size=1),
        training=replace(recipe.training, steps=9, evaluate_every=3, save_every=100),
    )


def lines(run: Path, key: str) -> dict[int, object]:
    """Step -> what the metrics say of it under a name."""
    told = read_lines(run / "metrics.jsonl")
    return {line["step"]: line[key] for line in told if key in line}


def stopped_by_its_task(recipe: Recipe, count: Path) -> Recipe:
    """The recipe with a task that asks for a stop while it is evaluated."""
    vqa = recipe.tasks["vqa"]
    own = {field.name: getattr(vqa, field.name) for field in fields(vqa)}
    return replace(recipe, tasks=recipe.tasks | {"vqa": StoppedVQA(**own, count_file=str(count))})


@pytest.mark.slow
@pytest.mark.parametrize("at", [3, 9])
def test_the_state_is_there_before_the_evaluation(
    at: int, world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    run, count = tmp_path / "run", tmp_path / "count"
    recipe = evaluated_often(world, run)
    if at == 9:
        recipe = replace(recipe, training=replace(recipe.training, evaluate_every=0))
    stopped = stopped_by_its_task(recipe, count)
    assert ranks2.run(run_recipe, stopped, False, timeout=120) == [143, 143]
    found, complaints = newest(run / "state")
    assert complaints == []
    assert found is not None
    assert read_progress(found).step == at
    assert lines(run, "scores") == {}
    assert len(count.read_text()) == ANSWERS_BEFORE_STOP, "the rank went on after the signal"

    assert ranks2.run(run_recipe, stopped, True, timeout=120) == [0, 0]
    whole = replace(recipe, output=str(tmp_path / "whole"))
    assert ranks2.run(run_recipe, whole, False, timeout=120) == [0, 0]
    for key in ("loss", "scores"):
        assert lines(run, key) == lines(tmp_path / "whole", key)


def test_an_ignored_hangup_stays_ignored() -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_collected() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop == []
    finally:
        signal.signal(signal.SIGHUP, before)

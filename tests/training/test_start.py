"""A run folder tells how it was started, and what was changed when it was resumed; of two programs
that would write one, the second is refused."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest

from tests.toys.files import read_lines
from tests.toys.processes import holder
from tests.toys.rank_jobs import run_and_print, run_recipe
from tests.toys.rank_pool import RankPool
from tests.toys.world import world_recipe
from vlds.recipe.config import Recipe, load_recipe
from vlds.runtime.folders import PACKAGES, read_starts
from vlds.runtime.process import signals_collected
from vlds.tasks import VQA
from vlds.training.loop import train
from vlds.training.states import newest, read_progress


def start(recipe: Recipe, resume: bool) -> str:
    """What `vlds train` does or says on a rank."""
    try:
        return str(train(recipe, resume=resume))
    except ValueError as error:
        return str(error)


@pytest.mark.slow
def test_what_resuming_changes_is_said_and_written_down(
    world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    recipe = world_recipe(world, tmp_path / "run")
    folder = tmp_path / "run"
    (code, said), _ = ranks2.run(run_and_print, recipe, False, timeout=120)
    assert code == 0
    (first,) = read_starts(folder)
    assert (first.step, first.changes) == (0, [])
    assert first.hardware.startswith("2 ranks, ")
    assert list(first.versions) == [*PACKAGES, "python"]
    assert "# " not in (folder / "recipe.yaml").read_text("utf-8")

    for later in ("state/step-00000010", "artifact", "predictions"):
        shutil.rmtree(folder / later)
    optimizer = replace(recipe.optimizer, learning_rate=0.00025, update="transformers")
    slower = replace(recipe, optimizer=optimizer)
    changed = replace(slower, training=replace(slower.training, steps=6))
    (code, said), (_, other) = ranks2.run(run_and_print, changed, True, timeout=120)
    assert code == 0
    before = f"optimizer.learning_rate: {recipe.optimizer.learning_rate}"
    lines = [line for line in said.splitlines() if "a change" in line]
    assert lines == [
        f"resuming with a change: {before} -> 0.00025",
        "resuming with a change: optimizer.update: torch -> transformers",
        "resuming with a change: training.steps: 10 -> 6",
    ]
    assert "a change" not in other
    assert [(s.step, s.changes) for s in read_starts(folder)] == [
        (0, []),
        (5, [line.removeprefix("resuming with a change: ") for line in lines]),
    ]
    text = (folder / "recipe.yaml").read_text("utf-8")
    assert text.startswith(f"# changed at step 5: {before} -> 0.00025\n# changed at step 5: opt")
    assert load_recipe(folder / "recipe.yaml") == changed
    # A third start keeps what the second one changed.
    (code, said), _ = ranks2.run(run_and_print, changed, True, timeout=120)
    assert code == 0
    assert "a change" not in said
    assert "all steps are done" in said
    assert (folder / "recipe.yaml").read_text("utf-8") == text
    fewer = replace(changed, training=replace(changed.training, steps=5))
    said = ranks2.run(start, fewer, True, timeout=120)[0]
    assert said.startswith(f"training.steps: 5, but the run in {folder} has taken 6; give at least")
    # What no step was done with is not written down; where and what to evaluate may change.
    faster = replace(changed, optimizer=replace(optimizer, learning_rate=0.01))
    said = ranks2.run(start, faster, True, timeout=120)[0]
    assert said.startswith("--resume: optimizer.learning_rate: 0.00025 -> 0.01, but all 6 steps of")
    other = replace(changed, data=replace(changed.data, eval_batch_size=3))
    assert ranks2.run(run_and_print, other, True, timeout=120)[0][0] == 0
    text = (folder / "recipe.yaml").read_text("utf-8")
    methods = {"adapter": replace(changed.methods["adapter"], reduction=2)}
    said = ranks2.run(start, replace(changed, methods=methods), True, timeout=120)[0]
    assert "another model than the recipe's (methods.adapter.init_args.reduction: 4 -> 2)" in said
    assert (folder / "recipe.yaml").read_text("utf-8") == text


@pytest.mark.slow
def test_a_run_beside_a_live_one(world: Path, ranks2: RankPool, tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = world_recipe(world, run)
    short = replace(recipe, training=replace(recipe.training, steps=5))
    assert ranks2.run(start, short, False, timeout=120) == ["0", "0"]
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    with holder(run) as first:
        said = ranks2.run(start, recipe, True, timeout=60)
        assert said[0].startswith(f"{run} is being written by process {first.pid} on ")
        assert said[1] == said[0]
    after = {path: path.stat().st_mtime_ns for path in before}
    assert after == before, "the second program has touched the first one's files"
    assert ranks2.run(start, recipe, True, timeout=120) == ["0", "0"]


# Signals that ask a rank to save and end: one that comes during an evaluation loses no step, and
# does not wait for its end.

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

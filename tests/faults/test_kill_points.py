"""Wherever a run is killed, it goes on as if nothing had been: same weights bit for bit, every
example once.

VLDS_FAULT_SEED draws other points (its value is in each test's name), VLDS_FAULT_POINTS more. Other
kinds of models than VL-T5's have a fifth of them each.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.toys.faults.forked_ranks import ForkedRanks, Plan, log_of
from tests.toys.kinds import ALL_KINDS, kind_recipe
from tests.toys.recipes import short_recipe, train_words
from vlds.recipe.config import Recipe
from vlds.training.states import newest, state_folders

SEED = int(os.environ.get("VLDS_FAULT_SEED", "20261"))
POINTS = int(os.environ.get("VLDS_FAULT_POINTS", "50"))
CASES = [
    pytest.param(kind, number, id=f"{kind}-seed{SEED}-{number}")
    for kind in ALL_KINDS
    for number in range(POINTS if kind == "joint" else POINTS // 5)
]
STEPS, SAVE_EVERY = 10, 2
SCORE = "vqa/exact_match"
FILES = (
    "state/step-00000010/state.safetensors", "artifact/weights.safetensors",
    "best/weights.safetensors", "best/best.json",
)  # fmt: skip


def steps_of(run: Path, global_rank: int) -> list[tuple[int, list[str]]]:
    """Step and ids of every step that a rank has finished, over all starts of a run."""
    file = run.with_name(f"{run.name}-ids-{global_rank}.jsonl")
    lines = file.read_text().splitlines() if file.exists() else []
    return [(line["step"], line["ids"]) for line in map(json.loads, lines)]


@pytest.fixture(scope="module")
def whole(
    forked: ForkedRanks, world: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, int], Recipe]:
    """A kind's run at a ZeRO stage that nobody disturbed, which is evaluated and keeps its best
    step."""
    done: dict[tuple[str, int], Recipe] = {}

    def run(kind: str, stage: int) -> Recipe:
        if (kind, stage) not in done:
            output = tmp_path_factory.mktemp("whole") / "run"
            tasks = kind_recipe(kind, world, output).tasks
            recipe = replace(short_recipe(world, output, stage, kind), tasks=tasks)
            training = replace(recipe.training, evaluate_every=5, best=SCORE)
            recipe = replace(recipe, training=training)
            forked.start(output, train_words(recipe))
            assert forked.wait() == [0, 0], log_of(output, 0)
            done[kind, stage] = recipe
        return done[kind, stage]

    return run


def disturb(forked: ForkedRanks, recipe: Recipe, draw: random.Random, events: list[str]) -> str:
    """Start a run and kill it at a drawn point; the point in words."""
    run, words = Path(recipe.output), train_words(recipe, "--resume", "auto")
    kind = draw.choice(["file", "file", "step", "step", "all"])
    if kind == "file":
        kept = draw.choice(["/state/", "/state/", "/.best.", "/"])
        at = draw.choice([n for n, event in enumerate(events, 1) if kept in event])
        forked.start(run, words, {0: Plan(file_event=at)})
        victims = [0]
        point = f"the first rank at file event {at} of {len(events)}"
    elif kind == "step":
        plan = Plan(step=draw.randint(1, STEPS), delay=draw.uniform(0, 0.3))
        global_rank = draw.randrange(forked.world_size)
        forked.start(run, words, {global_rank: plan})
        victims = [global_rank]
        point = f"rank {global_rank}, {plan.delay:.3f} s into step {plan.step}"
    else:
        step, delay = draw.randint(0, STEPS - 2), draw.uniform(0, 0.5)
        forked.start(run, words)
        deadline = time.monotonic() + 60
        while len(steps_of(run, 0)) < step and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(delay)
        for pid in forked.pids:
            os.kill(pid, signal.SIGKILL)
        victims = list(range(forked.world_size))
        point = f"all ranks, {delay:.3f} s after step {step}"
    # The others end by themselves once, and as the launcher ends them, at once, the other times.
    codes = forked.wait(60) if draw.random() < 0.1 else forked.wait_for_first(60)
    killed = [codes[victim] for victim in victims]
    assert killed == [-signal.SIGKILL] * len(killed), (point, codes, log_of(run, 0))
    assert 0 not in codes, (point, codes)
    return point


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "number"), CASES)
def test_a_killed_run_loses_nothing(
    kind: str,
    number: int,
    forked: ForkedRanks,
    whole: Callable[[str, int], Recipe],
    tmp_path: Path,
) -> None:
    draw = random.Random(f"{SEED}-{number}")
    undisturbed = whole(kind, draw.choice([2, 3]))
    expected = Path(undisturbed.output)
    events = expected.with_name("run-events-0").read_text().replace(f" {expected}/", " /")
    recipe = replace(undisturbed, output=str(tmp_path / "run"))
    run = Path(recipe.output)

    point = disturb(forked, recipe, draw, events.splitlines())
    print(f"VLDS_FAULT_SEED={SEED}, point {number}: {point}")
    done = steps_of(run, 0)
    saved, complaints = newest(run / "state")
    assert complaints == [], "a state that is there is whole"
    start = int(saved.name.removeprefix("step-")) if saved else 0
    assert start >= len(done) // SAVE_EVERY * SAVE_EVERY - SAVE_EVERY

    forked.start(run, train_words(recipe, "--resume", "auto"))
    assert forked.wait(120) == [0, 0], log_of(run, 0)
    assert (f"resuming from {saved}" in log_of(run, 0)) == (saved is not None)
    for file in FILES:
        assert (run / file).read_bytes() == (expected / file).read_bytes(), file
    assert not [*(run / "state").glob(".*"), *run.glob(".*")]
    best = f"step-{json.loads((run / 'best/best.json').read_text())['step']:08d}"
    names = {path.name for path in state_folders(run / "state")}
    kept = {best, "step-00000008", "step-00000010"}
    assert names >= kept
    assert names == kept or start == STEPS, "a finished run saves no more, and so clears nothing"
    for global_rank in range(forked.world_size):
        every, reference = steps_of(run, global_rank), steps_of(expected, global_rank)
        resumed = every[len(every) - (STEPS - start) :]
        assert resumed == reference[start:], "the resumed part begins after the state"
        assert every[:start] == reference[:start]
        assert all(step in reference for step in every), "what was thrown away is repeated alike"


@pytest.mark.slow
def test_every_example_is_learnt_from_once(undisturbed: Callable[[int], Recipe]) -> None:
    """What the test above compares with: each epoch of a task has each of its ids once."""
    run = Path(undisturbed(2).output)
    ids = [id for rank in (0, 1) for _, batch in steps_of(run, rank) for id in batch]
    captions = [id for id in ids if re.search(r"c\d+-\d", id)]
    assert len(ids) == STEPS * undisturbed(2).data.global_batch_size
    assert len(captions) > 20, "more than an epoch"
    counts = {id: captions.count(id) for id in captions}
    assert max(counts.values()) - min(counts.values()) <= 1

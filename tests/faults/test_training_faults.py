"""What befalls a run from within: numbers, memory, disk, data, a rank that hangs or must end.

All ranks end, with a code that is not 0 and a line that says why; what was saved is whole, and the
run goes on from it as if nothing had been.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.toys.engines import Case, global_batch, make_case, own_micro_batches, start_engine
from tests.toys.faults.forked_ranks import ForkedRanks, Plan, log_of
from tests.toys.launched_run import Launch, last_step, words_of
from tests.toys.processes import gone
from tests.toys.rank_pool import RankPool
from tests.toys.recipes import train_words
from tests.toys.small_disk import remount, small_disk
from vlds.recipe.config import Recipe
from vlds.schema import Batch
from vlds.training.states import newest, read_progress

STATE = "state/step-00000010/state.safetensors"


def go_on(forked: ForkedRanks, recipe: Recipe, whole: Recipe) -> None:
    """Resume a run that a fault has ended: its weights are those of the run without."""
    run = Path(recipe.output)
    forked.start(run, train_words(recipe, "--resume", "auto"))
    assert forked.wait() == [0, 0], log_of(run, 0)
    assert (run / STATE).read_bytes() == (Path(whole.output) / STATE).read_bytes()


def wait_for_step(run: Path, step: int) -> None:
    """Until a run has told of this step."""
    deadline = time.monotonic() + 60
    file = run / "metrics.jsonl"
    while not file.exists() or f'{{"step": {step}, "loss"' not in file.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def exported(made: Any) -> dict[str, dict[str, torch.Tensor]]:
    """On the first rank, all that an engine would save."""
    return made.export() or {}


def without_numbers(batch: Batch) -> Batch:
    """A batch whose pictures are NaN."""
    assert batch.features is not None
    return replace(batch, features=torch.full_like(batch.features, math.nan))


def skip_one(case: Case) -> dict[str, Any]:
    """Good step, bad step (on the last rank alone), good step; and the same without the bad one."""
    made, plan = start_engine(case)
    first, bad, last = (own_micro_batches(global_batch(n), made, plan) for n in (1, 2, 3))
    if made.ranks.global_rank == made.ranks.world_size - 1:
        bad = [without_numbers(batch) for batch in bad]
    made.step(first)
    before = exported(made)
    report = made.step(bad)
    after, skipped = exported(made), (made.steps_done, made.steps_skipped)
    updates = made.task_updates
    good = made.step(last)
    found = exported(made)
    made.close()
    other, _ = start_engine(case)
    other.step(first)
    other.step(last)
    expected = exported(other)
    other.close()
    resumed, _ = start_engine(case)
    after = resumed.ranks.broadcast(after)
    resumed.restore(after, *skipped, updates)
    resumed.step(last)
    again = exported(resumed)
    resumed.close()
    return {
        "skipped": (report.skipped, good.skipped, skipped), "ids": report.not_finite,
        "bad ids": [id for batch in bad for id in batch.ids],
        "unchanged": same(before, after) if before else True,
        "as without": same(found, expected), "as resumed": same(found, again),
    }  # fmt: skip


def same(one: dict[str, dict[str, torch.Tensor]], other: dict[str, Any]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(
        torch.equal(tensor, other[name][key])
        for name, entry in one.items()
        for key, tensor in entry.items()
    )


@pytest.mark.slow
@pytest.mark.parametrize("stage", [3, pytest.param(2, marks=pytest.mark.slow)])
def test_a_step_that_is_not_finite_changes_nothing(
    stage: int, ranks2: RankPool, tmp_path: Path
) -> None:
    case = make_case(tmp_path, stage=stage, clip_norm=1.0)
    results = ranks2.run(skip_one, case, timeout=120)
    for result in results:
        assert result["skipped"] == (True, False, (2, 1))
        assert result["unchanged"]
        assert result["as without"]
        assert result["as resumed"]
    assert results[0]["ids"] == []
    assert results[1]["ids"] == results[1]["bad ids"] != []


@pytest.fixture
def short(undisturbed: Callable[[int], Recipe], tmp_path: Path) -> tuple[Recipe, Recipe, Path]:
    """The undisturbed run, the same run in another folder, and that folder."""
    whole = undisturbed(2)
    return whole, replace(whole, output=str(tmp_path / "run")), tmp_path / "run"


def test_a_run_that_diverges_stops_at_its_last_good_state(
    forked: ForkedRanks, short: tuple[Recipe, Recipe, Path]
) -> None:
    whole, recipe, run = short
    shutil.copytree(Path(whole.output) / "state" / "step-00000008", run / "state" / "step-00000008")
    optimizer = replace(recipe.optimizer, learning_rate=1e15, warmup_ratio=0.0)
    training = replace(recipe.training, max_nonfinite_steps=3, steps=30, save_every=1)
    wild = replace(recipe, optimizer=optimizer, training=training)
    forked.start(run, train_words(wild, "--resume"))
    assert forked.wait() == [2, 2]
    said = log_of(run, 0)
    assert "optimizer.learning_rate: got 1e+15, and 4 steps in a row, the last of them" in said
    assert "every step moves each weight by about 1e+15; give a rate far below 1" in said
    assert said.count("is skipped, its loss or gradient is NaN or infinite") == 3
    assert said.count(". optimizer.learning_rate is 1e+15: give a rate far below 1") == 3
    assert "the loss of q" in said
    found, complaints = newest(run / "state")
    assert found is not None
    assert complaints == []
    assert all(t.isfinite().all() for t in load_file(found / "state.safetensors").values())
    assert read_progress(found).skipped == 0


@pytest.mark.slow
def test_out_of_memory_names_the_keys_to_lower(
    forked: ForkedRanks, short: tuple[Recipe, Recipe, Path]
) -> None:
    whole, recipe, run = short
    forked.start(run, train_words(recipe), {1: Plan(memory=1 << 16)})
    codes = forked.wait()
    assert codes[1] == 2, log_of(run, 1)
    assert codes[0] == 1
    said = log_of(run, 1)
    assert "out of memory" in said
    assert "lower data.micro_batch_size (now 2; results stay the same)" in said
    assert "activation_checkpointing" in said
    assert ("--resume" in said) == any((run / "state").glob("step-*"))
    assert "rank 0 ends because another rank has ended" in log_of(run, 0)
    go_on(forked, recipe, whole)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "800k") as place:
        yield place


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_disk_that_takes_no_more(
    fault: str, disk: Path, forked: ForkedRanks, short: tuple[Recipe, Recipe, Path]
) -> None:
    whole, recipe, run = short
    recipe = replace(recipe, output=str(disk / "run"))
    words = train_words(replace(recipe, output=str(run)), "--output", str(disk / "run"))
    forked.start(run, words)
    wait_for_step(disk / "run", 4)
    if fault == "full":
        with pytest.raises(OSError, match="No space"):
            (disk / "filler").write_bytes(bytes(1 << 20))
        codes = forked.wait()
        assert codes[0] == 2
        assert 0 not in codes
        assert "output: cannot write" in log_of(run, 0)
        assert "No space left" in log_of(run, 0)
    else:
        # Its lock is open for writing, so that a running one keeps the disk writable.
        os.kill(forked.pids[0], signal.SIGTERM)
        assert forked.wait() == [143, 143]
    found, complaints = newest(disk / "run" / "state")
    assert complaints == []
    assert found is not None
    if fault == "full":
        (disk / "filler").unlink()
    else:
        remount(disk, "ro")
        forked.start(run, [*words, "--resume"])
        assert forked.wait() == [2, 2]
        assert f"output: cannot write {disk / 'run'}: Read-only" in log_of(run, 0)
        remount(disk, "rw")
    forked.start(run, [*words, "--resume"])
    assert forked.wait() == [0, 0], log_of(run, 0)
    assert (disk / "run" / STATE).read_bytes() == (Path(whole.output) / STATE).read_bytes()


@pytest.mark.slow
def test_a_rank_that_hangs_is_noticed(
    forked: ForkedRanks, short: tuple[Recipe, Recipe, Path]
) -> None:
    whole, recipe, run = short
    hasty = replace(recipe, training=replace(recipe.training, collective_timeout=5))
    pids = forked.start(run, train_words(hasty))
    wait_for_step(run, 3)
    os.kill(pids[1], signal.SIGSTOP)
    started = time.monotonic()
    assert forked.wait_for_first() == [1, -signal.SIGUSR2]
    assert time.monotonic() - started < 20
    assert "vlds: rank 0 has waited training.collective_timeout seconds" in log_of(run, 0)
    go_on(forked, recipe, whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_loader_worker_that_is_lost(
    number: signal.Signals, forked: ForkedRanks, short: tuple[Recipe, Recipe, Path]
) -> None:
    _, recipe, run = short
    data = replace(recipe.data, num_workers=2)
    training = replace(recipe.training, collective_timeout=10, steps=2000, save_every=100)
    pids = forked.start(run, train_words(replace(recipe, data=data, training=training)))
    wait_for_step(run, 3)
    worker = psutil.Process(pids[1]).children()[0]
    os.kill(worker.pid, number)
    codes = forked.wait()
    assert codes == [1, 1], log_of(run, 1)
    how = "has given nothing for" if number == signal.SIGSTOP else "was killed (SIGKILL"
    said = [line for line in log_of(run, 1).splitlines() if line.startswith("vlds: ")]
    assert len(said) == 1
    assert said[0].startswith("vlds: rank 1 ends because its loader worker")
    assert f"(process {worker.pid}) {how}" in said[0]
    assert "Traceback" not in log_of(run, 1)
    assert "vlds: rank 0 ends because another rank has ended" in log_of(run, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "to"),
    [(signal.SIGTERM, 1), pytest.param(signal.SIGINT, 0, marks=pytest.mark.slow)],
)
def test_a_signal_to_one_rank_ends_all(
    number: signal.Signals, to: int, forked: ForkedRanks, short: tuple[Recipe, Recipe, Path]
) -> None:
    whole, recipe, run = short
    pids = forked.start(run, train_words(recipe))
    wait_for_step(run, 3)
    os.kill(pids[to], number)
    codes = forked.wait()
    assert codes[to] == 128 + number
    assert codes[1 - to] == 143
    found, complaints = newest(run / "state")
    assert found is not None
    assert complaints == []
    step = read_progress(found).step
    why = " because another rank was told to" if to else ""
    assert f"after step {step}{why}; --resume continues from step {step}" in log_of(run, 0)
    go_on(forked, recipe, whole)


# Faults of a run that `vlds train` has started: whoever dies or is told to end, all end, nothing
# is lost, and the last line says how to go on.


def processes(launch: Launch) -> dict[str, list[psutil.Process]]:
    """Everybody below `vlds train`, by what they are."""
    below = psutil.Process(launch.process.pid).children(recursive=True)
    found = {"all": below, "ranks": launch.ranks()}
    found["launcher"] = [p for p in below if "vlds.cli.local" in words_of(p)]
    return found


def patient(whole: Recipe, run: Path) -> Recipe:
    """The undisturbed run elsewhere, saving so seldom that only a polite end can have saved."""
    return replace(whole, output=str(run), training=replace(whole.training, save_every=100))


def assert_same_weights(found: Path, whole: Recipe) -> None:
    assert (found / STATE).read_bytes() == (Path(whole.output) / STATE).read_bytes()


@pytest.mark.parametrize(
    ("target", "number", "code"),
    [
        ("launcher", signal.SIGTERM, 143),
        ("launcher", signal.SIGKILL, 137),
        ("launcher", signal.SIGINT, 130),
        ("group", signal.SIGTERM, 143),
        ("supervisor", signal.SIGKILL, -9),
    ],
)
@pytest.mark.launcher
@pytest.mark.slow
def test_whoever_is_told_to_end(
    target: str, number: signal.Signals, code: int, forked: ForkedRanks,
    undisturbed: Callable[[int], Recipe], tmp_path: Path,
) -> None:  # fmt: skip
    whole = undisturbed(2)
    recipe = patient(whole, tmp_path / "run")
    launch = Launch(recipe, tmp_path / "recipe.yaml")
    launch.wait_for_step(2)
    everybody = processes(launch)
    if target == "group":
        os.killpg(os.getpgid(everybody["launcher"][0].pid), number)
    elif target == "supervisor":
        launch.process.send_signal(number)
    else:
        everybody[target][0].send_signal(number)
    found, output = launch.end()
    assert found == code, output
    deadline = time.monotonic() + 40
    while not all(map(gone, everybody["all"])):
        assert time.monotonic() < deadline, [p for p in everybody["all"] if not gone(p)]
        time.sleep(0.1)
    saved, complaints = newest(launch.run / "state")
    assert complaints == []
    assert saved is not None, output
    assert int(saved.name.removeprefix("step-")) == last_step(launch.run)
    if target != "supervisor":
        # The supervisor says it of a launcher that was killed, a rank in all other cases.
        place = saved if number == signal.SIGKILL else f"step {last_step(launch.run)}"
        assert output.splitlines()[-1].endswith(f"; --resume continues from {place}")
    forked.start(launch.run, train_words(recipe, "--resume"))
    assert forked.wait() == [0, 0], log_of(launch.run, 0)
    assert_same_weights(launch.run, whole)


@pytest.mark.launcher
@pytest.mark.slow
def test_a_failed_run_is_started_again(
    undisturbed: Callable[[int], Recipe], tmp_path: Path
) -> None:
    whole = undisturbed(2)
    recipe = replace(whole, output=str(tmp_path / "run"))
    launch = Launch(recipe, tmp_path / "recipe.yaml", "--restarts", "2")
    for _ in range(2):
        launch.wait_for_step(max(3, last_step(launch.run) - 1))
        victims = launch.ranks()
        victims[1].kill()
        while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in victims):
            time.sleep(0.05)
        while launch.process.poll() is None and len(launch.ranks()) < 2:
            time.sleep(0.05)
    code, output = launch.end()
    assert code == 0, output
    assert "one of its processes was killed (SIGKILL" in output
    for number in (1, 2):
        assert f"restart {number} of 2 on 2 ranks, from {launch.run}/state/step-" in output
    assert f"resuming from {launch.run}/state/step-" in output, "the second kill may come before"
    assert_same_weights(launch.run, whole)

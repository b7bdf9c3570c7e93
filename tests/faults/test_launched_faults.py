"""Faults of a run that `vlds train` has started: whoever dies or is told to end, all end, nothing
is lost, and the last line says how to go on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.toys.faults.forked_ranks import ForkedRanks, log_of
from tests.toys.launched_run import Launch, last_step, words_of
from tests.toys.processes import gone
from tests.toys.recipes import train_words
from vlds.recipe.config import Recipe
from vlds.training.states import newest

pytestmark = [pytest.mark.launcher, pytest.mark.slow]
STATE = "state/step-00000010/state.safetensors"


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

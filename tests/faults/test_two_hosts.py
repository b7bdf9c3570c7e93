"""Two hosts, each a network namespace of its own, with a slow cable between them: they train under
ZeRO-2 and ZeRO-3 and send what `vlds plan` says; a cable that is cut ends both, and one host
continues the run. Started by DeepSpeed's launcher and by torchrun."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.toys.faults.forked_ranks import ForkedRanks
from tests.toys.files import read_lines, write
from tests.toys.hosts import end, ip, sent, start, start_torchrun, two_hosts
from tests.toys.launched_run import last_step
from tests.toys.recipes import short_recipe, train_words
from tests.toys.world import SIZES, write_world
from vlds.models.methods import Adapter
from vlds.plan import plan_recipe
from vlds.recipe.config import Recipe
from vlds.training.states import newest

pytestmark = [pytest.mark.launcher, pytest.mark.slow]
STATE = "state/step-00000010/state.safetensors"
ENDING = 20
"""Seconds in which a busy machine ends processes that have given up."""
LAYER = 300_000
"""Elements of about a layer."""
LENGTHS = (2, 5)
"""Steps of two runs: what the longer one sends more, it sends in steps."""


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Names of two network namespaces, see `two_hosts`."""
    with two_hosts() as names:
        yield names


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world whose model is so large that a step sends megabytes."""
    folder = tmp_path_factory.mktemp("wide")
    write_world(folder)
    write(folder / "t5.json", SIZES | {"d_model": 128, "d_kv": 32, "d_ff": 512})
    config = json.loads((folder / "zero3.json").read_text())
    config["zero_optimization"] |= {
        "stage3_param_persistence_threshold": 0,
        "stage3_prefetch_bucket_size": 0,
        "stage3_max_live_parameters": LAYER,
        "stage3_max_reuse_distance": LAYER,
    }
    write(folder / "layers.json", config)
    return folder


def of_steps(recipe: Recipe, steps: int, folder: Path) -> Recipe:
    """The recipe with another length, and a state at its end alone."""
    training = replace(recipe.training, steps=steps, save_every=steps, collective_timeout=60)
    return replace(recipe, output=str(folder / f"run{steps}"), training=training)


@pytest.mark.parametrize(
    ("file", "share"),
    [
        # Few messages. Besides: losses and norms of a step, and gloo's words before each message.
        ("zero2.json", 0.005),
        ("zero3.json", 0.005),
        # A message for each weight; and what is kept from the forward to the backward pass is a
        # layer's half by plan, and less where a layer is not wholly passed.
        ("layers.json", 0.02),
    ],
)
def test_a_step_sends_what_the_plan_says(
    file: str, share: float, hosts: list[str], wide: Path, forked: ForkedRanks, tmp_path: Path
) -> None:
    """And computes what ranks of one machine do. Frames have headers and answers besides."""
    recipe = short_recipe(wide, tmp_path / "run", stage=2)
    training = replace(recipe.training, deepspeed=str(wide / file))
    adapter = Adapter(sharing="half_shared_up", reduction=1)
    recipe = replace(recipe, methods={"adapter": adapter}, training=training)
    (plan,) = plan_recipe(recipe, [2])
    planned = plan.files[recipe.training.deepspeed].sent
    counts = [sent(hosts)]
    for steps in LENGTHS:
        made = of_steps(recipe, steps, tmp_path)
        program = ["-m", "vlds", *train_words(made)]
        started = start_torchrun(hosts, program, tmp_path, ranks=1)
        assert end(started, 240) == [0, 0], (tmp_path / "0.log").read_text()
        counts.append(sent(hosts))
    more = LENGTHS[1] - LENGTHS[0]
    for before, short, long in zip(*counts, strict=True):
        a_step = (long.program - 2 * short.program + before.program) / more
        in_frames = (long.whole - 2 * short.whole + before.whole) / more
        print(f"{file}: plan {planned}, a step {a_step:.0f}, in frames {in_frames:.0f}")
        assert planned < a_step < (1 + share) * planned
        assert 1.02 * a_step < in_frames < 1.08 * a_step

    alone = replace(made, output=str(tmp_path / "alone"))
    forked.start(Path(alone.output), train_words(alone))
    assert forked.wait() == [0, 0]
    both = [[values(Path(run.output), "loss"), state(Path(run.output))] for run in (made, alone)]
    assert len(both[0][0]) == LENGTHS[1]
    assert both[0] == both[1]
    seconds = [statistics.median(values(Path(run.output), "seconds")[2:]) for run in (made, alone)]
    print("seconds of a step: {:.2f}, and {:.2f} on one machine".format(*seconds))


def values(run: Path, key: str) -> list[float]:
    """What a run has said of each step."""
    return [line[key] for line in read_lines(run / "metrics.jsonl") if key in line]


def state(run: Path) -> bytes:
    """The run's last state."""
    found, _ = newest(run / "state")
    assert found is not None
    return (found / "state.safetensors").read_bytes()


def test_a_cut_cable(
    hosts: list[str], undisturbed: Callable[[int], Recipe], forked: ForkedRanks, tmp_path: Path
) -> None:
    """Both hosts end in the time that docs/launching.md promises; then one continues alone."""
    whole = undisturbed(2)
    timeout = 15
    training = replace(whole.training, collective_timeout=timeout)
    recipe = replace(whole, output=str(tmp_path / "run"), training=training)
    run = tmp_path / "run"
    started = start(hosts, recipe, tmp_path)
    deadline = time.monotonic() + 150
    while last_step(run) < 3:
        assert all(host.poll() is None for host in started), (tmp_path / "0.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert ip("-n", hosts[0], "link", "set", "eth0", "down")
    cut = time.monotonic()
    codes = end(started, timeout + ENDING)
    print(f"both ended {time.monotonic() - cut:.1f} s after the cut; {timeout = }")
    logs = [(tmp_path / f"{number}.log").read_text() for number in (0, 1)]
    assert 0 not in codes, logs
    found, complaints = newest(run / "state")
    assert found is not None
    assert complaints == []
    for log in logs:
        assert "has waited training.collective_timeout seconds" in log
        assert f"--resume continues from {found}" in log.splitlines()[-1]

    forked.start(run, train_words(recipe, "--resume"))
    assert forked.wait() == [0, 0]
    assert (run / STATE).read_bytes() == (Path(whole.output) / STATE).read_bytes()

"""Runs that properties start: real processes of `vlds train` on a recipe with few steps, each made
once, and what they have left."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor

from vlds.recipe.config import Recipe, TrackingConfig, save_recipe
from vlds.runtime.devices import count_gpus
from vlds.runtime.files import read_text
from vlds.runtime.json_files import read_metric_lines
from vlds.runtime.process import find
from vlds.runtime.rank_environment import without_rank
from vlds.training.checkpoint import load
from vlds.training.deepspeed_config import complete_deepspeed_config, cut_batches
from vlds.training.engine import State
from vlds.training.prepare import check_recipe, with_steps
from vlds.training.states import name_of

if TYPE_CHECKING:
    from vlds.prove.bench import Bench

STEPS, HALF, FEW = 10, 5, 3
"""Steps of a run that is resumed, of its part before, and of one whose first steps are compared."""
MOST_ROWS = 64
"""Rows of a batch. Larger ones show no more and take longer."""
POLL_S = 0.01

Launch = Callable[[Sequence[str], Path, Callable[[], bool]], int]
"""Runs a command line of `vlds` to its end, or kills all of its processes once the function is
true; its output goes to the file. Returns the exit code, not 0 for what was killed."""


def launch(words: Sequence[str], log: Path, stop: Callable[[], bool]) -> int:
    """`Launch` by processes of their own, as a user's shell starts them."""
    command = [sys.executable, "-m", "vlds", *words]
    with log.open("wb") as output:
        process = psutil.Popen(
            command, env=without_rank(os.environ), stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        while process.poll() is None and not stop():
            time.sleep(POLL_S)
    finally:
        # The ranks have a session of their own; left alone, they would save and end.
        family: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            family = [*process.children(recursive=True), process]
        for each in family:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(family)
    return int(process.wait())


@dataclass(frozen=True)
class Way:
    """On what a run trains, and how long."""

    ranks: int
    file: str
    """DeepSpeed's settings."""
    steps: int

    @property
    def text(self) -> str:
        """In words."""
        return f"{self.ranks} rank{'s' * (self.ranks > 1)} with {Path(self.file).name}"


@dataclass(frozen=True)
class Trained:
    """What a run has left."""

    recipe: Recipe
    way: Way

    @property
    def folder(self) -> Path:
        """The run's."""
        return Path(self.recipe.output)

    @property
    def lines(self) -> list[Mapping[str, Any]]:
        """All lines of metrics.jsonl."""
        return [metrics for _, metrics in read_metric_lines(self.folder / "metrics.jsonl").lines]

    def losses(self, first: int = 1, last: int = STEPS) -> dict[str, Tensor]:
        """The losses of these steps, of the whole batch and of each task in it."""
        return {
            f"step {line['step']}, {name}": torch.tensor(value, dtype=torch.float64)
            for line in self.lines
            for name, value in line.items()
            if name.partition("/")[0] == "loss" and first <= line["step"] <= last
        }

    def state_folder(self, step: int) -> Path:
        """Where the state of a step is."""
        return self.folder / "state" / name_of(step)

    def tensors(self, step: int, key: str) -> dict[str, Tensor]:
        """fp32, exp_avg or exp_avg_sq of each trained weight after a step."""
        return {n: t[key] for n, t in self.state(step).items() if key in t}

    def state(self, step: int) -> State:
        """Masters and moments after a step."""
        return load(self.state_folder(step))[0]


def most_ranks(bench: Bench) -> int:
    """How many ranks are tried at most: those that have a GPU each, or 4 on a CPU; each gets a
    row."""
    machine = 4 if bench.ranks.device.type == "cpu" else count_gpus()
    recipe = recipe_of(bench, Way(1, bench.recipe.training.deepspeed, STEPS))
    return min(machine, 4, *recipe.batch_sizes.values())


def recipe_of(bench: Bench, way: Way, name: str = "") -> Recipe:
    """The recipe for a run: as it is but for its length, what it logs and saves, evaluations, and
    batches of more than `MOST_ROWS`."""
    given = bench.recipe
    lanes = given.data.lanes
    most = max(lanes, MOST_ROWS // lanes * lanes)  # lanes divide a batch
    few = way.steps == FEW
    training = replace(
        given.training, steps=way.steps, epochs=None, deepspeed=way.file, log_every=1,
        save_every=1 if few else HALF, keep_states=FEW, evaluate_first=False, evaluate_every=0,
        best=None,
    )  # fmt: skip
    tasks = {
        name: replace(
            task, evaluate=[], test=[], batch_size=task.batch_size and min(task.batch_size, most)
        )
        for name, task in given.tasks.items()
    }
    size, workers = given.data.global_batch_size, given.data.num_workers
    # Loader processes take part if the recipe has any, but one is enough.
    data = replace(given.data, global_batch_size=min(size, most), num_workers=min(workers, 1))
    # The first of few steps has the rate 0: its state holds the initial weights and one gradient.
    warmup = 0.5 if few else given.optimizer.warmup_ratio
    return replace(
        given, output=str(bench.scratch / "runs" / (name or way.text.replace(" ", "-"))),
        training=training, tasks=tasks, data=data, meta=None, tracking=TrackingConfig(),
        optimizer=replace(given.optimizer, warmup_ratio=warmup),
    )  # fmt: skip


def changes_of(bench: Bench) -> list[str]:
    """What a user should know of these runs: where they are not the recipe's."""
    given, way = bench.recipe, Way(1, bench.recipe.training.deepspeed, STEPS)
    sizes = recipe_of(bench, way).batch_sizes
    notes = [
        f"{field}: {size}, and {sizes[field]} in these runs"
        for field, size in given.batch_sizes.items()
        if sizes[field] < size
    ]
    return notes + ["meta: left out of these runs"] * (given.meta is not None)


def refused(bench: Bench, way: Way) -> str | None:
    """Why the recipe cannot be trained in this way; None if it can."""
    recipe, prepared = recipe_of(bench, way), bench.prepared
    try:
        cut = cut_batches(recipe, way.ranks)
        check_recipe(recipe, cut)
        complete_deepspeed_config(find(way.file), recipe, cut)
        with_steps(recipe, prepared.train_sources or prepared.streamed_sources)
    except ValueError as error:
        return f"{way.text}: {error}"
    return None


@lru_cache(maxsize=16)
def trained(bench: Bench, way: Way) -> Trained:
    """Train the recipe in a way, from the beginning.

    Errors: RuntimeError with the run's last words if it fails.
    """
    run = Trained(recipe_of(bench, way, f"{way.text}-{way.steps}".replace(" ", "-")), way)
    start(bench, run)
    return run


@lru_cache(maxsize=1)
def killed(bench: Bench, way: Way) -> Trained:
    """A run that is killed in a step after its first half, whose state is its newest."""
    run = Trained(recipe_of(bench, way, "killed"), way)

    def is_beyond() -> bool:
        logged = max((line["step"] for line in run.lines if "loss" in line), default=0)
        return logged > HALF and run.state_folder(HALF).is_dir()

    start(bench, run, is_beyond)
    # A quick run has come further before it was killed, and a state must be whole to be found.
    for step in range(HALF + 1, STEPS + 1):
        shutil.rmtree(run.state_folder(step), ignore_errors=True)
    shutil.rmtree(run.folder / "artifact", ignore_errors=True)
    return run


def resumed(bench: Bench, broken: Trained, way: Way, name: str) -> Trained:
    """Resume a copy of a run that was killed.

    Errors: as in `trained`.
    """
    run = Trained(recipe_of(bench, way, name), way)
    shutil.copytree(broken.folder, run.folder)
    start(bench, run, words=["--resume"])
    return run


def start(
    bench: Bench, run: Trained, stop: Callable[[], bool] | None = None, words: Sequence[str] = ()
) -> None:
    """Run `vlds train`, which must succeed, or be stopped if it is to be."""
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    file, log = (run.folder.with_name(f"{run.folder.name}.{end}") for end in ("yaml", "log"))
    save_recipe(run.recipe, file)
    command = ["train", "--config", str(file), "--ranks", str(run.way.ranks), *words]
    code = bench.launch(command, log, stop or (lambda: False))
    if code and (stop is None or not stop()):
        last = " | ".join(read_text(log, errors="replace").strip().split("\n")[-MOST_LINES:])
        raise RuntimeError(f"`vlds train` on {run.way.text} ended with exit code {code}: {last}")


MOST_LINES = 3
"""Last lines of a failed run that are shown."""

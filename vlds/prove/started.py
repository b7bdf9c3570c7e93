"""Runs that properties start: real processes of `vlds train` on a recipe with few steps, each made
once, and what they have left."""

from __future__ import annotations

import os
import shutil
import subprocess
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
from vlds.runtime.process import find, python
from vlds.runtime.rank_environment import without_rank
from vlds.training.checkpoint import load
from vlds.training.deepspeed_config import complete_deepspeed_config, cut_batches
from vlds.training.prepare import check_recipe, with_steps
from vlds.training.states import name_of

if TYPE_CHECKING:
    from vlds.prove.bench import Bench

STEPS, HALF, FEW = 10, 5, 3
"""Steps of a run that is resumed, of its part before, and of one whose first steps are compared."""
MOST_RANKS, MOST_ROWS, MOST_LOADERS = 4, 8, 2
"""Ranks, rows of a batch, and loader processes of all ranks: more show no more, and take longer."""
POLL_S, ENDS_S, LAST_LINES = 0.01, 10.0, 3
SILENT_S = 1800.0
"""Seconds without a word after which a run is ended. It logs each step."""

Launch = Callable[[Sequence[str], Path, Callable[[], bool]], int]
"""Runs a command line of `vlds` to its end, or kills all of its processes once the function is
true; its output goes to the file. Returns the exit code, not 0 for what was killed."""


def launch(words: Sequence[str], log: Path, stop: Callable[[], bool]) -> int:
    """`Launch` by processes of this machine, as a user's shell starts them."""
    variables = without_rank(os.environ) | {"VLDS_LAUNCHER_ARGS": ""}
    with log.open("wb") as output:
        process = psutil.Popen(
            python("-m", "vlds", *words), env=variables,
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        size, since = 0, time.monotonic()
        while process.poll() is None and not stop():
            time.sleep(POLL_S)
            if (now := log.stat().st_size) != size:
                size, since = now, time.monotonic()
            elif time.monotonic() - since > SILENT_S:
                with log.open("ab") as output:
                    output.write(f"\nended: it has said nothing for {SILENT_S:.0f} s\n".encode())
                break
    finally:
        # The ranks have a session of their own; left alone, they would save and end.
        with suppress(psutil.NoSuchProcess):
            family = [*process.children(recursive=True), process]
            for each in family:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
            psutil.wait_procs(family, timeout=ENDS_S)
    return int(process.wait())


@dataclass(frozen=True)
class Way:
    """On what a run trains, and how long."""

    ranks: int
    file: str
    """DeepSpeed's settings."""
    steps: int = STEPS

    def __str__(self) -> str:
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

    def losses(self, last: int = STEPS, what: str = "loss") -> dict[str, Tensor]:
        """Those of each step, of the whole batch and of each task in it; or other numbers."""
        return {
            f"step {line['step']}, {name}": torch.tensor(value, dtype=torch.float64)
            for line in self.lines
            for name, value in line.items()
            if name.partition("/")[0] == what and line["step"] <= last
        }

    def state_folder(self, step: int) -> Path:
        """Where the state of a step is."""
        return self.folder / "state" / name_of(step)

    def tensors(self, step: int) -> dict[str, Tensor]:
        """What the state of a step holds: fp32, exp_avg and exp_avg_sq of each trained weight, and
        moving buffers."""
        state, _ = load(self.state_folder(step))
        return {f"{n} {key}": value for n, entry in state.items() for key, value in entry.items()}


def most_ranks(bench: Bench) -> int:
    """How many ranks are tried at most: each gets a row, and a GPU if there are any."""
    machine = MOST_RANKS if bench.ranks.device.type == "cpu" else count_gpus()
    sizes = recipe_of(bench, Way(1, bench.recipe.training.deepspeed)).batch_sizes.values()
    return min(machine, MOST_RANKS, *sizes)


def recipe_of(bench: Bench, way: Way, name: str = "") -> Recipe:
    """The recipe for a run: as it is but for its length, what it logs and saves, evaluations, and
    batches of more than `MOST_ROWS`."""
    given, few = bench.recipe, way.steps == FEW
    most = max(given.data.lanes, MOST_ROWS // given.data.lanes * given.data.lanes)
    training = replace(
        given.training, steps=way.steps, epochs=None, deepspeed=way.file, log_every=1,
        save_every=1 if few else HALF, keep_states=FEW, evaluate_first=False, evaluate_every=0,
        best=None,
    )  # fmt: skip
    tasks = {
        key: replace(
            task, evaluate=[], test=[], batch_size=task.batch_size and min(task.batch_size, most)
        )
        for key, task in given.tasks.items()
    }
    size, workers = given.data.global_batch_size, given.data.num_workers
    # Loader processes take part if the recipe has any: two, one or none on a rank, so that an order
    # that depends on their number shows.
    workers = min(workers, MOST_LOADERS // way.ranks)
    data = replace(given.data, global_batch_size=min(size, most), num_workers=workers)
    # The first of few steps has the rate 0: its state holds the initial weights and one gradient.
    warmup = 0.5 if few else given.optimizer.warmup_ratio
    return replace(
        given, output=str(bench.scratch / "runs" / name), training=training, tasks=tasks,
        data=data, meta=None, tracking=TrackingConfig(),
        optimizer=replace(given.optimizer, warmup_ratio=warmup),
    )  # fmt: skip


def changes_of(bench: Bench) -> list[str]:
    """What a user should know of these runs: where they are not the recipe's."""
    given = bench.recipe
    sizes = recipe_of(bench, Way(1, given.training.deepspeed)).batch_sizes
    larger = [(name, size) for name, size in given.batch_sizes.items() if sizes[name] < size]
    notes = [
        f"{name}: {size}, and {sizes[name]} in the runs of this proof" for name, size in larger
    ]
    return notes + ["meta: left out of the runs of this proof"] * (given.meta is not None)


def refusal(bench: Bench, way: Way, beside: Way | None = None) -> str | None:
    """Why the recipe cannot be trained in a way, or compared with another one; None if it can."""
    recipe, prepared = recipe_of(bench, way), bench.prepared
    if beside is not None and prepared.streamed_sources:
        return "data.reader: sequential, whose order of examples depends on ranks and starts"
    try:
        cut = cut_batches(recipe, way.ranks)
        check_recipe(recipe, cut)
        complete_deepspeed_config(find(way.file), recipe, cut)
        with_steps(recipe, prepared.train_sources or prepared.streamed_sources)
    except ValueError as error:
        return f"{way}: {error}"
    others = beside is not None and beside.ranks != way.ranks
    if others and bench.ranks.device.type != "cpu" and bench.drops:
        return f"{way}: on a GPU each rank draws its own dropout"
    return None


@lru_cache(maxsize=16)
def trained(bench: Bench, way: Way) -> Trained:
    """Train the recipe in a way. Errors: as in `start`."""
    run = Trained(recipe_of(bench, way, f"{way} {way.steps}".replace(" ", "-")), way)
    start(bench, run)
    return run


def killed(bench: Bench, way: Way) -> Trained:
    """A run that is killed in a step after its first half, whose state is its newest."""
    run = Trained(recipe_of(bench, way, "killed"), way)
    half = run.state_folder(HALF)
    start(bench, run, lambda: half.is_dir() and f"step {HALF + 1}, loss" in run.losses())
    # A quick run may have come further before it was killed.
    shutil.rmtree(run.state_folder(STEPS), ignore_errors=True)
    shutil.rmtree(run.folder / "artifact", ignore_errors=True)
    return run


def resumed(bench: Bench, broken: Trained, way: Way, name: str) -> Trained:
    """Resume a copy of a run that was killed. Errors: as in `start`."""
    run = Trained(recipe_of(bench, way, name), way)
    shutil.copytree(broken.folder, run.folder)
    start(bench, run, words=["--resume"])
    return run


def start(
    bench: Bench, run: Trained, stop: Callable[[], bool] | None = None, words: Sequence[str] = ()
) -> None:
    """Run `vlds train`.

    Errors: RuntimeError with the run's last words if it fails, unless `stop` is true.
    """
    run.folder.parent.mkdir(exist_ok=True)
    file, log = (run.folder.with_name(f"{run.folder.name}.{end}") for end in ("yaml", "log"))
    save_recipe(run.recipe, file)
    command = ["train", "--config", str(file), "--ranks", str(run.way.ranks), *words]
    code = bench.launch(command, log, stop or (lambda: False))
    if code and (stop is None or not stop()):
        last = " | ".join(read_text(log, errors="replace").strip().split("\n")[-LAST_LINES:])
        raise RuntimeError(f"`vlds train` on {run.way} ended with exit code {code}: {last}")

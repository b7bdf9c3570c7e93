"""What a run reports of its steps, and where that goes.

A progress line on a terminal or plain lines elsewhere, metrics.jsonl always, TensorBoard and
Weights & Biases on request.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from torch import Tensor

from vlds.data.streams.stream import MixedStream
from vlds.recipe.build import to_tree
from vlds.recipe.config import Recipe, TrackingConfig
from vlds.runtime.disk import append
from vlds.runtime.files import read_text, write_whole
from vlds.runtime.json_files import read_metric_lines
from vlds.runtime.ranks import Ranks
from vlds.runtime.terminal import (
    can_redraw,
    clock,
    open_console,
    tell,
    visible,
    without_credentials,
)

LISTENER = "VLDS_METRICS_LISTENER"
"""Environment variable that names a second file for the metrics of this start alone, which a
program follows while the run trains."""
PROGRESS = re.compile(r"step (\d+)/(\d+)  (.*)")
"""A plain line about steps: how many are done, of how many, and the rest."""


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step did."""

    task_losses: Tensor
    """(k,) this rank's shares; summed over ranks they are the tasks' losses."""
    examples: Tensor
    """(k,) examples of each task in the global batch."""
    gradient_norm: float
    added: Mapping[str, float]
    """Method -> this rank's share of what it adds to the loss."""
    skipped: bool = False
    """True if loss or gradient was not finite, so that no weight has changed: the same on all
    ranks."""
    not_finite: list[str] = field(default_factory=list)
    """Ids of this rank's examples whose own loss was not finite."""
    loss_scale: float | None = None
    """In fp16, what the step's loss was multiplied by."""
    scale_can_fall: bool = False
    """True if a smaller loss scale is left to try, should the step be skipped."""


class Tracker:
    """Collects step reports, and every `log_every` steps sums them over ranks and tells. All ranks
    call it."""

    def __init__(self, recipe: Recipe, ranks: Ranks, first_step: int) -> None:
        self.ranks = ranks
        self.tasks = list(recipe.tasks)
        self.log_every = recipe.training.log_every
        self.steps = recipe.training.num_steps
        self.console = open_console(quiet=not ranks.is_first)
        self.sinks: list[Sink] = open_sinks(recipe, first_step) if ranks.is_first else []
        self._start_interval()
        self._bar = (
            progress_bar(self.console, self.steps, first_step) if can_redraw(self.console) else None
        )

    def _start_interval(self) -> None:
        """Forget the steps before, which have been logged."""
        zeros = torch.zeros(3, len(self.tasks), dtype=torch.float64)
        self._losses, self._num_losses, self._examples = zeros
        self._loss, self._num_steps, self._num_skipped = 0.0, 0, 0
        self._added: dict[str, float] = defaultdict(float)
        self._waited = 0.0
        self._since = time.monotonic()

    def step(self, step: int, report: StepReport, learning_rate: float, data: MixedStream) -> None:
        """Take the report of step number `step` (counted from 1). A skipped one has no loss."""
        self._examples += report.examples
        self._num_steps += 1
        if report.skipped:
            self._num_skipped += 1
        else:
            # loss = sum_k (N_k / N) L_k, see vlds/training/loss.py
            shares = report.task_losses * report.examples
            self._losses += report.task_losses
            self._num_losses += report.examples > 0
            self._loss += float(shares.sum() / report.examples.sum())
            for name, share in report.added.items():
                self._added[name] += share
        if step % self.log_every == 0 or step == self.steps:
            self._tell(step, report, learning_rate, data)
            self._start_interval()

    def _tell(self, step: int, report: StepReport, learning_rate: float, data: MixedStream) -> None:
        # One sum over ranks for everything of which they have shares: the tasks' losses, what
        # methods add, the whole loss, bad samples.
        others = torch.tensor([*self._added.values(), self._loss, float(data.num_bad)])
        *sums, loss, num_bad = self.ranks.sum(torch.cat([self._losses, others])).tolist()
        losses, added = sums[: len(self.tasks)], sums[len(self.tasks) :]
        elapsed = time.monotonic() - self._since
        # 0 if all steps were skipped: then no loss is logged.
        num_finite = self._num_steps - self._num_skipped
        by_task = zip(self.tasks, losses, self._num_losses.tolist(), strict=True)
        metrics: dict[str, float] = {
            **({"loss": loss / num_finite} if num_finite else {}),
            **{f"loss/{task}": total / num for task, total, num in by_task if num},
            **{f"added/{n}": t / num_finite for n, t in zip(self._added, added, strict=True)},
            "learning_rate": learning_rate,
            **({} if report.skipped else {"gradient_norm": report.gradient_norm}),
            "skipped_steps": self._num_skipped,
            "samples_per_second": self._examples.sum().item() / elapsed,
            "seconds": elapsed,
            "data_wait": self._waited / elapsed,
            "seconds_left": elapsed / self._num_steps * (self.steps - step),
            "bad_samples": num_bad,
            "most_memory": self.ranks.most_memory(),
            **{f"epoch/{task}": epoch for task, epoch in data.epochs().items()},
        }
        self.write(step, metrics)
        of_parts = "  ".join(
            f"{sign}{name.partition('/')[2]} {value:.3f}"
            for prefix, sign in (("loss/", ""), ("added/", "+"))
            for name, value in metrics.items()
            if name.startswith(prefix)
        )
        whole = f"{metrics['loss']:.3f}" if "loss" in metrics else "not finite"
        speed = f"{metrics['samples_per_second']:.0f} examples/s"
        if self._bar:
            text = visible(f"loss {whole}  {speed}  {of_parts}")  # a narrow terminal cuts the end
            self._bar.update(self._bar.task_ids[0], completed=step, description=text)
        else:
            left = clock(metrics["seconds_left"])
            text = f"loss {whole}  {of_parts}  {speed}  data wait {metrics['data_wait']:.0%}"
            self.say(f"step {step}/{self.steps}  {text}  {left} left")

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Hand one line of metrics to every sink."""
        for sink in self.sinks:
            sink.write(step, metrics)

    def say(self, text: str) -> None:
        """One line for the user, from the first rank."""
        self.console.print(visible(text), soft_wrap=True, markup=False)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The time inside is a wait for data."""
        started = time.monotonic()
        yield
        self._waited += time.monotonic() - started

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time inside does not count as training."""
        started = time.monotonic()
        yield
        # As if the interval had begun later.
        self._since += time.monotonic() - started

    def close(self) -> None:
        """End the progress line and the sinks."""
        for sink in self.sinks:
            sink.close()
        if self._bar:
            self._bar.stop()


def progress_bar(console: Console, steps: int, first_step: int) -> Progress:
    """One line: bar, steps, time left, and as many of the losses as a narrow terminal can show."""
    rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    bar = Progress(
        BarColumn(10),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False, table_column=rest),
        console=console,
        expand=True,
    )
    bar.add_task("starting", total=steps, completed=first_step)
    bar.start()
    return bar


class Sink(Protocol):
    """Takes the metrics of a step; a metric is a number, or a dict of metrics."""

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Take one line of metrics."""

    def close(self) -> None:
        """Nothing follows; all metrics are safe when this returns."""


def check_tracking(tracking: TrackingConfig) -> None:
    """Errors: ValueError if a tracker that the recipe names is not installed."""
    wanted = {
        "tensorboard": tracking.tensorboard,
        "wandb": tracking.wandb_project is not None,
    }
    for package, asked in wanted.items():
        if asked and importlib.util.find_spec(package) is None:
            raise ValueError(
                f"tracking: {package} is asked for and not installed; "
                "`pip install 'vlds[tracking]'` brings it"
            )


def open_sinks(recipe: Recipe, first_step: int) -> list[Sink]:
    """The recipe's sinks; those of a resumed run continue after `first_step`."""
    folder = Path(recipe.output)
    sinks: list[Sink] = [MetricsFile(folder / "metrics.jsonl", first_step)]
    if (listener := os.environ.get(LISTENER)) is not None:
        sinks.append(MetricsFile(Path(listener), first_step))
    if recipe.tracking.tensorboard:
        sinks.append(Tensorboard(folder, first_step))
    if recipe.tracking.wandb_project is not None:
        sinks.append(WeightsAndBiases(recipe, first_step))
    return sinks


class MetricsFile:
    """Appends JSON lines. Unreadable lines, and those of steps that a resumed run repeats, are
    dropped first."""

    def __init__(self, path: Path, first_step: int) -> None:
        self.path = path
        metric_lines = read_metric_lines(path)
        if metric_lines.complaint:
            tell(metric_lines.complaint, flush=True)
        # A run that resumes from step 500 logs 501 and later again.
        kept = [line for line, metrics in metric_lines.lines if metrics["step"] <= first_step]
        write_whole(path, "".join(f"{line}\n" for line in kept))

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """One line, on disk when this returns.

        Errors: CannotWrite.
        """
        append(self.path, json.dumps({"step": step, **metrics}) + "\n")

    def close(self) -> None:
        """Every line is on disk already."""


def has_scores(path: Path, step: int) -> bool:
    """True if metrics.jsonl has the scores of a step."""
    lines = read_metric_lines(path).lines
    return any(metrics["step"] == step and "scores" in metrics for _, metrics in lines)


class Tensorboard:
    """Scalars as events in the run folder; repeated steps replace the earlier ones."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(folder, purge_step=first_step + 1 if first_step else None)

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """One scalar for each number."""
        for name, value in flatten(metrics):
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is buffered."""
        self.writer.close()


class WeightsAndBiases:
    """One W&B run for a run folder, resumed with it; the recipe is its config."""

    def __init__(self, recipe: Recipe, first_step: int) -> None:
        import wandb

        # W&B records the command line, which may name URLs with credentials.
        sys.argv = [without_credentials(word) for word in sys.argv]
        folder = Path(recipe.output)
        id_file = folder / "wandb_id"
        self.run = wandb.init(
            project=recipe.tracking.wandb_project,
            name=folder.name,
            dir=folder,
            id=read_text(id_file) if first_step and id_file.exists() else None,
            resume="allow",
            config=to_tree(recipe),
        )
        write_whole(id_file, self.run.id)

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """All numbers of a step."""
        self.run.log(dict(flatten(metrics)), step=step)

    def close(self) -> None:
        """Wait until everything is sent, or on disk where W&B is offline."""
        import wandb

        self.run.finish()
        # It returns before its service has written what an offline run holds; the service's end
        # waits for that.
        wandb.teardown()


def flatten(metrics: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Name and value of every number: {"scores": {"vqa": {"accuracy": 0.5}}} gives
    scores/vqa/accuracy."""
    for name, value in metrics.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)):
            yield f"{prefix}{name}", value

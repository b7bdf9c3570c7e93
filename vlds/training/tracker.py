"""Reports a run: metrics to its sinks, and a progress line on a terminal, or plain lines
elsewhere."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from vlds.config import Recipe
from vlds.data.streams.mixed_stream import MixedStream
from vlds.runtime.durations import clock
from vlds.runtime.ranks import Ranks
from vlds.runtime.shown import visible
from vlds.runtime.terminal import can_redraw, open_console
from vlds.training.sinks import Sink, open_sinks
from vlds.training.step_report import StepReport


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
        others = torch.tensor([*self._added.values(), self._loss, float(data.num_bad)])
        *sums, loss, num_bad = self.ranks.sum(torch.cat([self._losses, others])).tolist()
        losses, added = (
            sums[: len(self.tasks)],
            zip(self._added, sums[len(self.tasks) :], strict=True),
        )
        elapsed = time.monotonic() - self._since
        num_finite = self._num_steps - self._num_skipped
        by_task = zip(self.tasks, losses, self._num_losses.tolist(), strict=True)
        metrics: dict[str, float] = {
            **({"loss": loss / num_finite} if num_finite else {}),
            **{f"loss/{task}": total / num for task, total, num in by_task if num},
            **{f"added/{name}": total / num_finite for name, total in added},
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
        self._show(step, metrics)

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Hand one line of metrics to every sink."""
        for sink in self.sinks:
            sink.write(step, metrics)

    def _show(self, step: int, metrics: dict[str, float]) -> None:
        losses = "  ".join(
            f"{sign}{name.partition('/')[2]} {value:.3f}"
            for prefix, sign in (("loss/", ""), ("added/", "+"))
            for name, value in metrics.items()
            if name.startswith(prefix)
        )
        loss = f"{metrics['loss']:.3f}" if "loss" in metrics else "not finite"
        speed = f"{metrics['samples_per_second']:.0f} examples/s"
        if self._bar:
            text = visible(f"loss {loss}  {speed}  {losses}")  # a narrow terminal cuts the end
            self._bar.update(self._bar.task_ids[0], completed=step, description=text)
        else:
            left = clock(metrics["seconds_left"])
            text = f"loss {loss}  {losses}  {speed}  data wait {metrics['data_wait']:.0%}"
            self.say(f"step {step}/{self.steps}  {text}  {left} left")

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

"""What a run reports of its steps, and where that goes.

A progress line on a terminal or plain lines elsewhere, metrics.jsonl always; TensorBoard, Weights &
Biases, trackio and MLflow on request, with some predictions and their pictures.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from torch import Tensor

from vlds.data.streams.stream import MixedStream
from vlds.evaluation.shown import ShownExample
from vlds.recipe.build import to_tree, to_yaml
from vlds.recipe.config import Recipe, TrackingConfig
from vlds.runtime.checks import leaves
from vlds.runtime.disk import append
from vlds.runtime.files import read_text, write_whole
from vlds.runtime.json_files import read_metric_lines
from vlds.runtime.process import answered
from vlds.runtime.ranks import Ranks
from vlds.runtime.roll_call import Pace
from vlds.runtime.terminal import (
    bytes_text,
    can_redraw,
    clock,
    open_console,
    show_mlflow,
    tell,
    visible,
    without_credentials,
)

LISTENER = "VLDS_METRICS_LISTENER"
"""Environment variable that names a second file for the metrics of this start alone, which a
program follows while the run trains."""
TRACKER_S = 60.0
"""Seconds that a call of a tracker may take, whose server may answer nothing at all: all ranks wait
for it, and hear no signal meanwhile."""
LONG_WAIT = 0.05
"""Share of the time that ranks wait for data above which a run says it."""
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
    forward_seconds: float = 0.0
    """What this rank's forward passes took."""


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
        self._addresses = [sink.address for sink in self.sinks if sink.address]
        self.num_shown = recipe.tracking.examples if len(self.sinks) > 1 else 0
        """Examples of each task that `show` wants after an evaluation."""
        self._pace = Pace(ranks)
        self._start_interval()
        for address in self._addresses:
            self.say(f"follow the run: {address}")
        self._bar = (
            progress_bar(self.console, self.steps, first_step) if can_redraw(self.console) else None
        )

    def _start_interval(self) -> None:
        """Forget the steps before, which have been logged."""
        zeros = torch.zeros(3, len(self.tasks), dtype=torch.float64)
        self._losses, self._num_losses, self._examples = zeros
        self._loss, self._num_steps, self._num_skipped = 0.0, 0, 0
        self._added: dict[str, float] = defaultdict(float)
        self._waited = self._forward = 0.0
        self._since = time.monotonic()

    def step(self, step: int, report: StepReport, learning_rate: float, data: MixedStream) -> None:
        """Take the report of step number `step` (counted from 1). A skipped one has no loss."""
        self._examples += report.examples
        self._num_steps += 1
        self._forward += report.forward_seconds
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
        # methods add, the whole loss, bad samples, and where each rank's own time goes.
        others = torch.tensor([*self._added.values(), self._loss, float(data.num_bad)])
        own = torch.zeros(2, self.ranks.world_size)
        own[:, self.ranks.global_rank] = torch.tensor([self._waited, self._forward])
        summed = self.ranks.sum(torch.cat([self._losses, others, own.flatten()]))
        *sums, loss, num_bad = summed[: -own.numel()].tolist()
        losses, added = sums[: len(self.tasks)], sums[len(self.tasks) :]
        elapsed = self.seconds_since_log
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
        if line := self._pace.line(summed[-own.numel() :].view_as(own), elapsed):
            self.say(line)
        of_parts = [
            f"{sign}{name.partition('/')[2]} {value:.3f}"
            for prefix, sign in (("loss/", ""), ("added/", "+"))
            for name, value in metrics.items()
            if name.startswith(prefix)
        ]
        of_parts = of_parts if len(of_parts) > 1 else []  # the only one is the whole loss
        whole = f"{metrics['loss']:.3f}" if "loss" in metrics else "not finite"
        shown = [
            f"loss {whole}",
            f"rate {learning_rate:.2g}",
            f"{metrics['samples_per_second']:.0f} examples/s",
            bytes_text(metrics["most_memory"]),
        ]
        if self._bar:
            # A narrow terminal cuts the end.
            text = visible("  ".join([*shown, *of_parts, *self._addresses]))
            self._bar.update(self._bar.task_ids[0], completed=step, description=text)
        else:
            left = clock(metrics["seconds_left"])
            self.say(f"step {step}/{self.steps}  {'  '.join(shown)}  {left} left")
            if (wait := metrics["data_wait"]) >= LONG_WAIT:
                of_parts.append(f"data wait {wait:.0%}")
            if of_parts:
                self.say(f"    {'  '.join(of_parts)}")

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Hand one line of metrics to every sink."""
        self._hand(lambda sink: sink.write(step, metrics))

    def show(self, step: int, examples: Sequence[ShownExample]) -> None:
        """Hand some predictions of a step's evaluation to every sink."""
        self._hand(lambda sink: sink.show(step, examples))

    def _hand(self, give: Callable[[Sink], None]) -> None:
        """Give something to every sink. A tracker that fails is left out from then on: its server
        may be down, and the run has its own file."""
        for sink in list(self.sinks):
            if isinstance(sink, MetricsFile):
                give(sink)
                continue
            try:
                answered(partial(give, sink), TRACKER_S, "its server")
            except Exception as error:
                self.sinks.remove(sink)
                reason = without_credentials(str(error))
                self.say(f"{type(sink).__name__} gets nothing more: {reason:.300}")

    def say(self, text: str) -> None:
        """One line for the user, from the first rank."""
        self.console.print(visible(text), soft_wrap=True, markup=False)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The time inside is a wait for data."""
        started = time.monotonic()
        yield
        self._waited += time.monotonic() - started

    @property
    def seconds_since_log(self) -> float:
        """Seconds of training since the last line that has some; 0 without a step since then."""
        return time.monotonic() - self._since if self._num_steps else 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time inside does not count as training."""
        started = time.monotonic()
        yield
        # As if the interval had begun later.
        self._since += time.monotonic() - started

    def close(self) -> None:
        """End the progress line and the sinks."""
        self._hand(lambda sink: sink.close())
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

    address: str
    """Where to look at what it took, a URL or a command; "" for the run's own file."""

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Take one line of metrics."""

    def show(self, step: int, examples: Sequence[ShownExample]) -> None:
        """Take some predictions of the evaluation after a step."""

    def close(self) -> None:
        """Nothing follows; all metrics are safe when this returns."""


EXTRAS = {"tensorboard": "tracking", "wandb": "tracking", "trackio": "trackio", "mlflow": "mlflow"}
"""Package of a tracker -> the optional dependencies of vlds that bring it."""


def check_tracking(tracking: TrackingConfig) -> None:
    """Errors: ValueError if a tracker that the recipe names is not installed."""
    wanted = {
        "tensorboard": tracking.tensorboard,
        "wandb": tracking.wandb_project is not None,
        "trackio": tracking.trackio_project is not None,
        "mlflow": tracking.mlflow_experiment is not None,
    }
    if wanted["mlflow"]:
        show_mlflow()
    for package, asked in wanted.items():
        if asked and importlib.util.find_spec(package) is None:
            raise ValueError(
                f"tracking: {package} is asked for and not installed; "
                f"`pip install 'vlds[{EXTRAS[package]}]'` brings it"
            )


def open_sinks(recipe: Recipe, first_step: int) -> list[Sink]:
    """The recipe's sinks, the run's own file first; those of a resumed run continue after
    `first_step`, and a tracker that cannot start is told and left out.

    Errors: ValueError if one cannot start for a run that begins.
    """
    folder, tracking = Path(recipe.output), recipe.tracking
    sinks: list[Sink] = [MetricsFile(folder / "metrics.jsonl", first_step)]
    if (listener := os.environ.get(LISTENER)) is not None:
        sinks.append(MetricsFile(Path(listener), first_step))
    # Trackers record the command line, which may name URLs with credentials.
    if tracking != TrackingConfig():
        sys.argv = [without_credentials(word) for word in sys.argv]
    trackers: dict[str, Callable[[], Sink]] = {}
    if tracking.tensorboard:
        trackers["tensorboard"] = lambda: Tensorboard(folder, first_step)
    if (wandb_project := tracking.wandb_project) is not None:
        trackers["wandb_project"] = lambda: WeightsAndBiases(recipe, wandb_project, first_step)
    if (trackio_project := tracking.trackio_project) is not None:
        trackers["trackio_project"] = lambda: Trackio(recipe, trackio_project, first_step)
    if (experiment := tracking.mlflow_experiment) is not None:
        trackers["mlflow_experiment"] = lambda: MLflow(recipe, experiment, first_step)
    for key, start in trackers.items():
        try:
            sinks.append(answered(start, TRACKER_S, "its server"))
        except Exception as error:  # whatever its library raises
            reason = f"tracking.{key}: cannot start ({without_credentials(str(error)):.300})"
            # One that is resumed, perhaps at night, must not end because a server is down.
            if not first_step:
                raise ValueError(f"{reason}; mend that, or leave the key out") from None
            tell(f"{reason}; it gets nothing from this run", flush=True)
    return sinks


class MetricsFile:
    """Appends JSON lines. Unreadable lines, and those of steps that a resumed run repeats, are
    dropped first."""

    address = ""

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

    def show(self, step: int, examples: Sequence[ShownExample]) -> None:
        """Nothing: the run's folder has all predictions."""

    def close(self) -> None:
        """Every line is on disk already."""


def has_scores(path: Path, step: int) -> bool:
    """True if metrics.jsonl has the scores of a step."""
    lines = read_metric_lines(path).lines
    return any(metrics["step"] == step and "scores" in metrics for _, metrics in lines)


class Tensorboard:
    """Scalars, pictures and texts as events in the run folder; repeated steps replace the earlier
    ones."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(folder, purge_step=first_step + 1 if first_step else None)
        self.address = f"tensorboard --logdir {folder}"

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """One scalar for each number."""
        for name, value in flatten(metrics):
            self.writer.add_scalar(name, value, step)

    def show(self, step: int, examples: Sequence[ShownExample]) -> None:
        """Each example's picture, and its texts under the same name."""
        for name, example in named(examples):
            self.writer.add_image(name, np.asarray(example.picture), step, dataformats="HWC")
            self.writer.add_text(name, example.caption, step)

    def close(self) -> None:
        """Write what is buffered."""
        self.writer.close()


class WeightsAndBiases:
    """One W&B run for a run folder, resumed with it; the recipe is its config."""

    def __init__(self, recipe: Recipe, project: str, first_step: int) -> None:
        import wandb

        folder = Path(recipe.output)
        id_file = folder / "wandb_id"
        self.run = wandb.init(
            project=project,
            name=folder.name,
            dir=folder,
            id=read_text(id_file) if first_step and id_file.exists() else None,
            resume="allow",
            config=to_tree(recipe),
        )
        write_whole(id_file, self.run.id)
        # An offline run has no URL; its folder can be sent later.
        self.address = self.run.url or f"wandb sync {Path(self.run.dir).parent}"

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """All numbers of a step."""
        self.run.log(dict(flatten(metrics)), step=step)

    def show(self, step: int, examples: Sequence[ShownExample]) -> None:
        """The pictures of each task, with captions."""
        from wandb import Image

        by_task = defaultdict(list)
        for example in examples:
            by_task[f"predictions/{example.task}"].append(
                Image(example.picture, caption=example.caption)
            )
        self.run.log(dict(by_task), step=step)

    def close(self) -> None:
        """Wait until everything is sent, or on disk where W&B is offline."""
        import wandb

        self.run.finish()
        # It returns before its service has written what an offline run holds; the service's end
        # waits for that.
        wandb.teardown()


class Trackio:
    """One trackio run for a run folder, resumed with it. It is on this machine, or in the Space
    that trackio's own variables name."""

    def __init__(self, recipe: Recipe, project: str, first_step: int) -> None:
        import trackio

        # Two run folders may end in one name, such as seed-0; trackio knows runs by their names.
        name = re.sub(r"[^\w.-]+", "-", recipe.output).strip("-.")
        resume = "allow" if first_step else "never"
        self.run = trackio.init(
            project=project,
            name=name,
            config=to_tree(recipe),
            resume=resume,
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        self.address = self.run.url or f"trackio show --project {project}"

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """All numbers of a step."""
        self.run.log(dict(flatten(metrics)), step=step)

    def show(self, step: int, examples: Sequence[ShownExample]) -> None:
        """Each example's picture with a caption."""
        from trackio import Image

        shown = {n: Image(e.picture, caption=e.caption) for n, e in named(examples)}
        self.run.log(shown, step=step)

    def close(self) -> None:
        """Wait until everything is written."""
        self.run.finish()


class MLflow:
    """One MLflow run for a run folder, resumed with it; MLflow's own variables say on which server
    or in which folder."""

    def __init__(self, recipe: Recipe, experiment: str, first_step: int) -> None:
        # Its own seven tries take four minutes if a server is down.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self.metric = Metric
        self.client = MlflowClient()
        folder = Path(recipe.output)
        id_file = folder / "mlflow_id"
        if first_step and id_file.exists():
            self.run_id = read_text(id_file)
            self.client.update_run(self.run_id, status="RUNNING")
        else:
            known = self.client.get_experiment_by_name(experiment)
            place = known.experiment_id if known else self.client.create_experiment(experiment)
            self.run_id = self.client.create_run(place, run_name=folder.name).info.run_id
            write_whole(id_file, self.run_id)
            tree = to_tree(recipe)
            params = [Param(plain(k), str(v)[:MOST_LETTERS]) for k, v in leaves(tree)]
            for start in range(0, len(params), MOST_PARAMS):
                part = params[start : start + MOST_PARAMS]
                self.client.log_batch(self.run_id, params=part)
            self.client.log_text(self.run_id, to_yaml(tree), "recipe.yaml")
        run = self.client.get_run(self.run_id).info
        server = str(self.client.tracking_uri).rstrip("/")
        place = f"experiments/{run.experiment_id}/runs/{run.run_id}"
        is_server = server.startswith("http")
        self.address = f"{server}/#/{place}" if is_server else f"mlflow ui, {place}"

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """All numbers of a step, with dots in their names: a folder as server would make `loss` a
        file and `loss/vqa` a file below it."""
        now = int(1000 * time.time())
        numbers = [
            self.metric(plain(name).replace("/", "."), float(value), now, step)
            for name, value in flatten(metrics)
        ]
        self.client.log_batch(self.run_id, metrics=numbers)

    def show(self, step: int, examples: Sequence[ShownExample]) -> None:
        """The pictures as artifacts, and their texts in one."""
        folder = f"predictions/step-{step:08d}"
        texts = {}
        for name, example in named(examples):
            file = f"{folder}/{plain(name.removeprefix('predictions/'))}.png"
            self.client.log_image(self.run_id, example.picture, artifact_file=file)
            texts[file] = example.caption
        self.client.log_dict(self.run_id, texts, f"{folder}/captions.json")

    def close(self) -> None:
        """The run has ended, until it is resumed."""
        self.client.set_terminated(self.run_id)


MOST_PARAMS, MOST_LETTERS = 100, 500
"""What all of MLflow's stores take: parameters at once, and letters of a value."""


def plain(name: str) -> str:
    """A name as MLflow allows them."""
    return re.sub(r"[^\w./ -]", "_", name)


def named(examples: Sequence[ShownExample]) -> Iterator[tuple[str, ShownExample]]:
    """Examples with names such as predictions/vqa/0: the same ones after every evaluation."""
    counts: dict[str, int] = defaultdict(int)
    for example in examples:
        yield f"predictions/{example.task}/{counts[example.task]}", example
        counts[example.task] += 1


def flatten(metrics: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Name and value of every number: {"scores": {"vqa": {"accuracy": 0.5}}} gives
    scores/vqa/accuracy."""
    for name, value in metrics.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)):
            yield f"{prefix}{name}", value

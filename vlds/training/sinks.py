"""Where a run's metrics go: metrics.jsonl always, TensorBoard and Weights & Biases on request."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from vlds.config import Recipe, TrackingConfig, to_tree
from vlds.runtime.credentials import without_credentials
from vlds.runtime.disk import append
from vlds.runtime.metrics_file import read_metric_lines
from vlds.runtime.regular_file import read_text
from vlds.runtime.terminal import tell
from vlds.runtime.whole_file import write_whole


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

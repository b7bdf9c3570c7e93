"""One's own training loop: `vlds.open_recipe` gives a recipe's model with its methods, batches and
loss, for a loop in torch on one process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlds.api.words import Changes, recipe_words
from vlds.artifact import TrainedOn, own_tensors, save_artifact
from vlds.data.order.mixed_order import BatchCut
from vlds.data.streams.assemble import StreamSetup
from vlds.data.streams.source import Source
from vlds.evaluation.sources import path_of, training_sources, with_lists
from vlds.models.build import build_model
from vlds.models.model import Model, step_draws
from vlds.recipe.config import Recipe, parse_recipe
from vlds.runtime.artifact_files import model_folder
from vlds.runtime.devices import device_of
from vlds.runtime.folders import scratch_folder
from vlds.runtime.json_files import DESCRIPTION
from vlds.schema import Batch
from vlds.training.loss import LossTotals, coefficients, count
from vlds.training.optimizer import parameter_groups, run_factor
from vlds.training.prepare import check_learnable, check_recipe, stream_of, with_steps


@dataclass
class LoopBatch(Batch):
    """A global batch, with the number of its step from 0, which decides dropout."""

    step: int = 0


class Loader:
    """The batches of a recipe's steps, the same and in the same order as in `vlds train`. Each
    iteration begins with the first one."""

    def __init__(self, recipe: Recipe, sources: list[Source], setup: StreamSetup) -> None:
        self._recipe, self._sources, self._setup = recipe, sources, setup

    def __len__(self) -> int:
        return self._recipe.training.num_steps

    def __iter__(self) -> Iterator[LoopBatch]:
        stream = stream_of(self._recipe, self._sources, [], self._setup)
        for step, batches in zip(range(len(self)), stream.steps(), strict=False):
            (batch,) = batches  # one rank's, which is not cut
            yield LoopBatch(**vars(batch), step=step)


class OpenRecipe:
    """A recipe's parts for one's own loop:

    parts = vlds.open_recipe("vqa.yaml")
    optimizer = torch.optim.AdamW(parts.parameter_groups(), betas=(0.9, 0.999), eps=1e-6)
    for batch in parts.loader:
        parts.loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    parts.save("runs/mine")
    """

    def __init__(
        self, recipe: Recipe, model: Model, processor: Any, loader: Loader, sources: list[Source]
    ) -> None:
        self.recipe = recipe
        self.model = model
        """The frozen model with its methods, whose weights alone train; in training mode."""
        self.loader = loader
        """Batches, as many as the recipe has steps."""
        self._processor, self._sources = processor, sources

    def loss(self, batch: Batch) -> Tensor:
        """The loss of a batch, as in `vlds train`: a scalar for `backward`, on the model's device.
        In training mode with dropout and what methods add to it; else without."""
        tasks = list(self.recipe.tasks.values())
        totals = LossTotals(*count([batch], len(tasks)))
        device = next(self.model.parameters()).device
        scale = coefficients(batch, totals, tasks).to(device)
        step = batch.step if isinstance(batch, LoopBatch) else 0
        with step_draws(self.model, self.recipe.seed, step, 0, 0):
            loss: Tensor = self.model(batch.to(device), scale).loss
        return loss

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What trains, as an optimizer of torch takes it: "params", "lr" and "weight_decay" of each
        group, as the recipe has them. "lr" is the peak; `schedule` says how it moves."""
        return [
            {
                "params": group["params"],
                "lr": group["peak_lr"],
                "weight_decay": group["weight_decay"],
            }
            for group in parameter_groups(self.model, self.recipe)
        ]

    def schedule(self, step: int) -> float:
        """Factor of the peak rate in a step from 0, for `torch.optim.lr_scheduler.LambdaLR`."""
        # LambdaLR asks once more behind the last step.
        return run_factor(min(step, len(self.loader) - 1), self.recipe)

    def save(self, folder: str | PathLike[str]) -> Path:
        """Write the model as it is into `folder`, for `vlds.load` and the commands; the folder.

        Errors: ValueError if it holds a run already.
        """
        run = path_of("folder", folder)
        if (model_folder(run) / DESCRIPTION).exists():
            raise ValueError(f"{run} holds a run already; name another folder, or remove it")
        trained_on = {s.name: TrainedOn(s.num_annotations, s.most_pictures) for s in self._sources}
        save_artifact(
            run / "artifact",
            own_tensors(self.model),
            replace(self.recipe, output=str(run)),
            self._processor,
            trained_on=trained_on,
        )
        return run


def open_recipe(
    recipe: str | PathLike[str] | Mapping[str, object], *, changes: Changes | None = None
) -> OpenRecipe:
    """Open a recipe for one's own loop on one process, given as for `vlds.train`.

    Weights are float32, whatever the recipe's precision, on the GPU if there is one; autocast is up
    to the loop. A batch is a whole global batch: `data.micro_batch_size` and `data.parts` play no
    role, nor do DeepSpeed, states and evaluation. With weights of single tasks (`sharing:
    multiple`) in batches that lack a task, `vlds train` leaves that task's weights alone, and
    AdamW moves them by their momentum.

    Errors: ValueError for mistakes in the recipe or its data, and for what needs more than a loss:
    meta, alignment, start, methods that act between steps, and the sequential reader.
    """
    with scratch_folder() as scratch:
        read = parse_recipe(recipe_words(recipe, changes, scratch), "vlds train")
    # One process computes a batch at once, in float32.
    read = replace(
        read,
        data=replace(read.data, micro_batch_size=None, parts=1),
        training=replace(read.training, precision="fp32"),
    )
    for name in ("meta", "alignment", "start"):
        if getattr(read, name) is not None:
            raise ValueError(f"{name}: only `vlds train` does it; leave it out of an own loop")
    if read.data.reader == "sequential":
        raise ValueError("data.reader: got sequential; an own loop reads indexed shards")
    for name, method in read.methods.items():
        if method.needs_whole_model:
            raise ValueError(f"methods.{name}: only `vlds train` prepares it; use that")
    cut = BatchCut()
    check_learnable(read, cut)
    check_recipe(read, cut)
    read = with_lists(read)
    sources = training_sources(read)
    read = with_steps(read, sources)
    processor = read.model.load_processor()
    setup = StreamSetup(
        collator=read.model.collator(processor),
        image=read.image,
        seed=read.seed,
        cut=cut,
        worker_timeout=read.training.worker_timeout,
        blank_images=read.data.blank_images,
    )
    loader = Loader(read, sources, setup)
    stream_of(read, sources, [], setup)  # its errors come now, not at the first batch
    model = build_model(read.model_setup, list(read.tasks), torch.float32, processor)
    for name in [*model.step_rules, *model.revisions]:
        raise ValueError(
            f"methods.{name}: it acts between steps, which only `vlds train` does; choose another"
        )
    known = [dataset.info for source in sources for dataset in source.datasets]
    model.shows_clips = any(info is None or info.may_show_clips for info in known)
    model.to(device_of()).train()
    return OpenRecipe(read, model, processor, loader, sources)

"""Evaluation on all ranks: every example once, gathered on the first rank and scored once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vlds.config import DataConfig, Recipe
from vlds.data import (
    Dataset,
    EvalStream,
    Source,
    StreamedSource,
    open_dataset,
    open_streamed,
)
from vlds.models.vl_model import VLModel
from vlds.schema import Batch
from vlds.tasks.base import Task, by_id
from vlds.training.distributed import Ranks

GREY = 128


@dataclass(frozen=True)
class Evaluation:
    """One task on its data."""

    task: str
    scores: dict[str, float]
    predictions: dict[str, str]
    references: dict[str, Any] = field(repr=False)
    unreadable: list[str] = field(default_factory=list)
    """Ids and reasons of examples whose picture could not be read: predicted as "" and scored as
    such."""

    def write(self, folder: Path) -> None:
        """One line per example: id, prediction, reference."""
        folder.mkdir(parents=True, exist_ok=True)
        lines = [
            json.dumps({"id": key, "prediction": text, "reference": self.references[key]})
            for key, text in self.predictions.items()
        ]
        (folder / f"{self.task}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def evaluation_sources(recipe: Recipe) -> list[Source]:
    """The data that the recipe's tasks are evaluated on; tasks without any are left out.

    Errors: ValueError for a folder that holds no data set, or one of another kind, and for a score
    that was asked for and cannot be computed here.
    """
    for name, task in recipe.tasks.items():
        if task.evaluate and (missing := task.missing_for_scores()) is not None:
            raise ValueError(f"tasks.{name}.{missing}")
    return [
        Source(name, task, open_datasets(name, task, task.evaluate, recipe.data), task.weight)
        for name, task in recipe.tasks.items()
    ]


def training_sources(recipe: Recipe) -> list[Source]:
    """The data that the recipe's tasks learn from.

    Errors: ValueError as above, and where a task names none.
    """
    check_train_data(recipe)
    return [
        Source(name, task, open_datasets(name, task, task.train, recipe.data), task.weight)
        for name, task in recipe.tasks.items()
    ]


def streamed_sources(recipe: Recipe) -> list[StreamedSource]:
    """The shards that the recipe's tasks learn from, for the sequential reader.

    Errors: ValueError as above.
    """
    check_train_data(recipe)
    if unknown := sorted(set(recipe.data.fields) - set(recipe.tasks)):
        raise ValueError(
            f"data.fields: no task is called {unknown[0]}; the tasks are {', '.join(recipe.tasks)}"
        )
    sources = []
    for name, task in recipe.tasks.items():
        try:
            fields = recipe.data.fields.get(name)
            datasets = [open_streamed(place, task.kinds, fields) for place in task.train]
        except ValueError as error:
            raise ValueError(f"tasks.{name}: {error}") from error
        sources.append(StreamedSource(name, task, datasets, task.weight))
    return sources


def check_train_data(recipe: Recipe) -> None:
    """Every task must learn from something.

    Errors: ValueError that names the task.
    """
    for name, task in recipe.tasks.items():
        if not task.train:
            raise ValueError(f"tasks.{name}.train: names no data set; name at least one folder")


def open_datasets(name: str, task: Task, folders: Sequence[str], data: DataConfig) -> list[Dataset]:
    """Open a task's data sets and check that it understands them."""
    try:
        datasets = [open_dataset(folder, data.shard_cache) for folder in folders]
    except ValueError as error:
        raise ValueError(f"tasks.{name}: {error}") from error
    for folder, dataset in zip(folders, datasets, strict=True):
        if dataset.kind not in task.kinds:
            raise ValueError(
                f"tasks.{name}: {folder} holds samples of kind '{dataset.kind}', "
                f"{type(task).__name__} "
                f"understands {', '.join(task.kinds)}; name another folder or another task class"
            )
    return datasets


def evaluate(
    model: VLModel, recipe: Recipe, sources: Sequence[Source], tokenizer: Any, ranks: Ranks
) -> list[Evaluation]:
    """Decode and score every source that has data. Collective; the result is on the first rank, []
    elsewhere."""
    evaluations = []
    for task_number, source in enumerate(sources):
        if not source.datasets:
            continue
        stream = EvalStream(
            source,
            tokenizer=tokenizer,
            image=recipe.image,
            micro_batch_size=recipe.data.eval_batch_size,
            world_size=ranks.world_size,
            global_rank=ranks.global_rank,
            num_workers=recipe.data.num_workers,
            task_index=task_number,
        )
        batches = blanked(stream) if recipe.data.blank_images else stream
        own = list(decode(model, batches, source.task, tokenizer, ranks))
        gathered = ranks.gather((own, stream.bad))
        if gathered is not None:
            evaluations.append(merge_and_score(source, gathered))
    return evaluations


def decode(
    model: VLModel, stream: Iterable[Batch], task: Task, tokenizer: Any, ranks: Ranks
) -> Iterator[tuple[str, tuple[str, Any]]]:
    """(id, (prediction, reference)) of this rank's examples."""
    for batch in stream:
        moved = batch.to(ranks.device)
        with torch.no_grad():
            texts = tokenizer.batch_decode(
                model.generate(moved, task.decoding), skip_special_tokens=True
            )
        for number, (key, text) in enumerate(zip(batch.ids, texts, strict=True)):
            if batch.valid[number]:
                yield key, (text.strip(), batch.references[number])


def blanked(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The same batches with grey pictures: what a model knows without seeing."""
    for batch in batches:
        pictures = batch.images if batch.images is not None else batch.features
        if pictures is not None:
            pictures.fill_(GREY if batch.images is not None else 0)
        yield batch


def merge_and_score(
    source: Source, gathered: Sequence[tuple[Sequence[tuple[str, tuple[str, Any]]], Sequence[Any]]]
) -> Evaluation:
    """Put the ranks' examples together in the order of their ids, and score them.

    Errors: ValueError where two examples have one id.
    """
    bad = [entry for _, own_bad in gathered for entry in own_bad]
    readable = [pair for own, _ in gathered for pair in own]
    merged = by_id([*readable, *((entry.id, ("", entry.reference)) for entry in bad)])
    predictions = {key: merged[key][0] for key in sorted(merged)}
    references = {key: merged[key][1] for key in sorted(merged)}
    scores = source.task.score(predictions, references)
    return Evaluation(
        source.name,
        scores,
        predictions,
        references,
        [f"{entry.id}: {entry.reason}" for entry in bad],
    )


def read_predictions(run: Path, task: str) -> Evaluation:
    """A task's predictions at the last evaluation of a training run, without scores."""
    file = max((run / "predictions").glob(f"step-*/{task}.jsonl"))
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    predictions = {line["id"]: line["prediction"] for line in lines}
    return Evaluation(task, {}, predictions, {line["id"]: line["reference"] for line in lines})

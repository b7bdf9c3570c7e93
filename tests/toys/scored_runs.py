"""Run folders with predictions on real shards, scored by the real tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.toys.files import read_lines, write_lines
from tests.toys.world import world_recipe
from vlds.data.shards.store import open_dataset
from vlds.recipe.config import Recipe, save_recipe
from vlds.tasks import VQA
from vlds.tasks.base import Task

Line = dict[str, Any]


@dataclass(frozen=True)
class Runs:
    """Two runs on the same examples of the tasks vqa and caption."""

    world: Path
    first: Path
    second: Path


def lines_of(task: Task, wrong_every: int, shift: int = 0) -> list[Line]:
    """A line per example; every `wrong_every`th answer is wrong, the first of them at `shift`."""
    lines = []
    for index, (key, sample, reference) in enumerate(references_of(task)):
        wrong = index % wrong_every == shift
        right = reference[0] if isinstance(reference, list) else task.answer_of(reference)
        prediction = "no idea" if wrong else right
        line = {"id": key, "sample": sample, "prediction": prediction, "reference": reference}
        lines.append(line)
    return lines


def references_of(task: Task) -> Iterator[tuple[str, str, Any]]:
    """Ids, samples and references of a task's evaluation data."""
    for path in task.evaluate:
        dataset = open_dataset(path)
        for index in range(dataset.num_samples):
            sample = dataset.read(index)
            whole = task.unit == "sample"
            for annotation in [None] if whole else range(len(sample.annotations)):
                example = task.example("any", sample, annotation, None)
                yield example.id, sample.id, example.reference


def scored_recipe(world: Path, output: Path) -> Recipe:
    """The world's recipe with exact match for vqa, and captions evaluated by word F1."""
    recipe = world_recipe(world, output)
    vqa = replace(recipe.tasks["vqa"], headline="exact_match")
    caption = replace(
        recipe.tasks["caption"], evaluate=[str(world / "caption")], headline="word_f1"
    )
    return replace(recipe, tasks={"vqa": vqa, "caption": caption})


def write_scored_run(
    folder: Path,
    recipe: Recipe,
    lines: Mapping[str, Sequence[Line]],
    scores: Mapping[str, Mapping[str, float]] | None = None,
    step: int | None = 10,
) -> Path:
    """A run of ten steps that was evaluated after the last one; with step None by
    `vlds evaluate`, which logs no scores."""
    predictions = folder / "predictions" / ("" if step is None else f"step-{step:08d}")
    predictions.mkdir(parents=True)
    for task, of_task in lines.items():
        write_predictions(predictions / f"{task}.jsonl", of_task)
    save_recipe(recipe, folder / "recipe.yaml")
    metrics: list[Line] = [
        {
            "step": 0,
            "bytes_per_rank": {"frozen": 2_000_000, "trainable": 500_000},
            "trainable": {"total": 1000, "trainable": 40, "percent": 4.0, "by_part": {}},
        }
    ]
    metrics += [
        {"step": n, "loss": 3 / n, "loss/vqa": 2 / n, "samples_per_second": 100.0 + n}
        for n in range(1, 11)
    ]
    if step is not None:
        metrics.append({"step": step, "scores": score(recipe, lines) if scores is None else scores})
    write_lines(folder / "metrics.jsonl", metrics)
    return folder


def score(recipe: Recipe, lines: Mapping[str, Sequence[Line]]) -> dict[str, dict[str, float]]:
    """Scores of the predictions by the recipe's tasks."""
    return {
        name: recipe.tasks[name].score(
            {line["id"]: line["prediction"] for line in of_task},
            {line["id"]: line["reference"] for line in of_task},
        )
        for name, of_task in lines.items()
    }


def write_predictions(path: Path, lines: Sequence[Line]) -> None:
    """Write a task's predictions; each line says how many there are."""
    write_lines(path, [line | {"of": len(lines)} for line in lines])


def vqa_run(world: Path, folder: Path, wrong_every: int, shift: int = 0) -> Path:
    """A run with vqa as its only task."""
    recipe = world_recipe(world, folder)
    task = recipe.tasks["vqa"]
    assert isinstance(task, VQA)
    return write_scored_run(folder, recipe, {"vqa": lines_of(task, wrong_every, shift)})


def with_data(run: Path, data: str) -> Path:
    """Record in the run's predictions on which data they were made."""
    for file in run.glob("predictions/**/*.jsonl"):
        write_lines(file, [line | {"data": data} for line in read_lines(file)])
    return run


HOSTILE = "</script><img src=x onerror=alert(1)>"

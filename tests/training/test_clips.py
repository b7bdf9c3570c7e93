"""Clips, of which there are stored features and subtitles: shards, two ranks, scores."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.packing.writer import SampleRecord, write_dataset
from tests.toys.rank_pool import RankPool
from tests.toys.world import world_recipe
from vlds.config import Recipe
from vlds.tasks import VideoCaption, VideoQA
from vlds.training.loop import train
from vlds.vision import StoredFeatures

FRAMES, DIM = 4, 6


def clips(kind: str) -> Iterator[SampleRecord]:
    """Twelve clips; two questions with three choices, or two descriptions each."""
    for number in range(12):
        array = np.random.default_rng(number).normal(size=(FRAMES, DIM)).astype(np.float16)
        buffer = io.BytesIO()
        np.save(buffer, array)
        asked = {"question": "what is it ?", "choices": ["red", "green", "blue"], "span": "0-1"}
        annotations: dict[str, list[dict[str, Any]]] = {
            "video_qa": [{"id": f"q{number}-{n}", "answer_index": n, **asked} for n in range(2)],
            "video_caption": [{"id": f"d{number}-{n}", "caption": "it is red"} for n in range(2)],
        }
        yield SampleRecord(
            id=f"clip-{number}",
            members=[("features.npy", buffer.getvalue())],
            json={
                "annotations": annotations[kind],
                "subtitles": [{"text": f"that is {'now ' * (number % 4)}", "start": 0, "end": 1}],
                "span": [0.0, 1.5],
            },
        )


def clip_recipe(world: Path, folder: Path) -> Recipe:
    """Both video tasks on the tiny T5 under ZeRO-3."""
    tasks = {"tvqa": VideoQA, "tvc": VideoCaption}
    for name, cls in tasks.items():
        (kind,) = cls.kinds
        write_dataset(folder / name, name=name, kind=kind, split="train", records=clips(kind))
    recipe = world_recipe(world, folder / "run", stage=3)
    return replace(
        recipe,
        training=replace(recipe.training, steps=40, save_every=40),
        vision=StoredFeatures(dim=DIM, grid=2),
        tasks={
            name: cls(
                train=[str(folder / name)],
                evaluate=[str(folder / name)],
                prompt=f"{name}: ",
                max_prompt_tokens=40,
            )
            for name, cls in tasks.items()
        },
    )


def run_recipe(recipe: Recipe) -> int:
    """What `vlds train` does on a rank."""
    return train(recipe)


def test_both_tasks_train_and_are_scored(world: Path, ranks2: RankPool, tmp_path: Path) -> None:
    recipe = clip_recipe(world, tmp_path)
    assert ranks2.run(run_recipe, recipe, timeout=120) == [0, 0]
    lines = [
        json.loads(line)
        for line in (Path(recipe.output) / "metrics.jsonl").read_text("utf-8").splitlines()
    ]
    losses = [line for line in lines if "loss" in line]
    assert all(
        losses[-1][f"loss/{name}"] < 0.8 * losses[0][f"loss/{name}"] for name in recipe.tasks
    )
    # 40 steps of 8 examples over two tasks of 24, with equal weights.
    assert [losses[-1][f"epoch/{name}"] for name in recipe.tasks] == [160 / 24] * 2
    assert lines[-1]["scores"].keys() == recipe.tasks.keys()
    assert lines[-1]["scores"]["tvqa"].keys() == {"accuracy"}
    assert "word_f1" in lines[-1]["scores"]["tvc"]
    file = Path(recipe.output) / "predictions" / "step-00000040" / "tvqa.jsonl"
    predicted = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert sorted(line["id"] for line in predicted) == sorted(
        f"q{number}-{n}" for number in range(12) for n in range(2)
    )

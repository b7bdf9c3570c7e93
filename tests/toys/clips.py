"""Clips with stored features and subtitles, and a recipe of the video tasks on them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.packing.writer import SampleRecord, write_dataset
from tests.toys.recipes import with_model
from tests.toys.world import world_recipe
from vlds.models.vision import StoredFeatures
from vlds.recipe.config import Recipe
from vlds.tasks import VideoCaption, VideoQA

CLIP_FRAMES = 4
CLIP_DIM = 6


def clips(kind: str) -> Iterator[SampleRecord]:
    """Twelve clips; two questions with three choices, or two descriptions each."""
    for index in range(12):
        array = np.random.default_rng(index).normal(size=(CLIP_FRAMES, CLIP_DIM)).astype(np.float16)
        buffer = io.BytesIO()
        np.save(buffer, array)
        asked = {"question": "what is it ?", "choices": ["red", "green", "blue"], "span": "0-1"}
        annotations: dict[str, list[dict[str, Any]]] = {
            "video_qa": [{"id": f"q{index}-{n}", "answer_index": n, **asked} for n in range(2)],
            "video_caption": [{"id": f"d{index}-{n}", "caption": "it is red"} for n in range(2)],
        }
        yield SampleRecord(
            id=f"clip-{index}",
            members=[("features.npy", buffer.getvalue())],
            json={
                "annotations": annotations[kind],
                "subtitles": [{"text": f"that is {'now ' * (index % 4)}", "start": 0, "end": 1}],
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
    return with_model(
        replace(
            recipe,
            training=replace(recipe.training, steps=40, save_every=40),
            tasks={
                name: cls(
                    train=[str(folder / name)],
                    evaluate=[str(folder / name)],
                    prompt=f"{name}: ",
                    max_prompt_tokens=40,
                )
                for name, cls in tasks.items()
            },
        ),
        vision=StoredFeatures(dim=CLIP_DIM, grid=2),
    )

"""Runs on conversations: rows without pictures and with several, on any number of ranks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from data_prep.cli import main
from tests.toys.files import read_lines, write
from tests.toys.kinds import ALL_KINDS, kind_recipe
from tests.toys.own_rows import photos
from tests.toys.rank_jobs import run_recipe
from tests.toys.rank_pool import RankPool
from tests.toys.recipes import with_model
from tests.toys.resumed_runs import assert_same_run, half_a_run, losses
from vlds.recipe.config import Recipe
from vlds.schema import Decoding
from vlds.tasks import Chat

ANSWERS = ("Red.", "A Dog", '{"dark": true}')


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets of conversations of up to three questions about up to two pictures: `any`, and
    `pictured`, in which each has a picture."""
    folder = tmp_path_factory.mktemp("chat")
    names = [f"{number}.jpg" for number in range(12)]
    photos(folder / "photos", *names)
    for name, fewest in (("any", 0), ("pictured", 1)):
        file = write(folder / f"{name}.jsonl", "\n".join(map(json.dumps, drawn(names, fewest))))
        words = ["--annotations", str(file), "--images", str(folder / "photos")]
        assert main(["chat", *words, "--out", str(folder / name)]) == 0
    return folder


def drawn(names: list[str], fewest: int) -> Iterator[dict[str, Any]]:
    draw = Random(0)
    for _ in range(60):
        turns = [{"role": "system", "content": "Be brief."}] if draw.random() < 0.3 else []
        pictures: list[str] = []
        for number in range(draw.randint(1, 3)):
            count = draw.randint(0 if number else fewest, 2 - len(pictures))
            pictures += draw.choices(names, k=count)
            turns.append({"role": "user", "content": "<image>" * count + f"what is {number}?"})
            turns.append({"role": "assistant", "content": draw.choice(ANSWERS)})
        yield {"messages": turns, "images": pictures}


def chat_recipe(kind: str, world: Path, shards: Path, output: Path, stage: int) -> Recipe:
    recipe = kind_recipe(kind, world, output, stage)
    data = [str(shards / ("pictured" if kind == "joint" else "any"))]
    task = Chat(
        train=data, evaluate=data, scores=["json", "exact_match"],
        max_prompt_tokens=60, decoding=Decoding(max_new_tokens=3),
    )  # fmt: skip
    recipe = replace(recipe, tasks={"chat": task})
    if kind == "joint":
        embedding = replace(recipe.model.visual_embedding, num_images=2)  # type: ignore[attr-defined]
        return with_model(recipe, visual_embedding=embedding)
    return with_model(recipe, num_images=2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_run_is_the_same_on_more_ranks_and_after_a_stop(
    kind: str, world: Path, shards: Path, ranks1: RankPool, ranks2: RankPool, tmp_path: Path
) -> None:
    """Under ZeRO-3, whose ranks wait for each other in every layer."""
    recipe = chat_recipe(kind, world, shards, tmp_path / "whole", stage=3)
    assert ranks2.run(run_recipe, recipe, timeout=120) == [0, 0]
    whole = tmp_path / "whole"
    half_a_run(whole, tmp_path / "half")
    resumed = replace(recipe, output=str(tmp_path / "half"))
    assert ranks2.run(run_recipe, resumed, True, timeout=120) == [0, 0]
    assert_same_run(tmp_path / "half", whole, task="chat")
    alone = chat_recipe(kind, world, shards, tmp_path / "alone", stage=2)
    if kind == "joint":  # its dropout is drawn by rank
        return
    assert ranks1.run(run_recipe, alone, timeout=120) == [0]
    for (step, loss, norm), (other, expected, of_norm) in zip(
        losses(tmp_path / "alone"), losses(whole), strict=True
    ):
        assert step == other
        assert (loss, norm) == pytest.approx((expected, of_norm), rel=1e-4)
    scores = [
        next(
            line["scores"]["chat"] for line in read_lines(run / "metrics.jsonl") if "scores" in line
        )
        for run in (whole, tmp_path / "alone")
    ]
    assert scores[0] == scores[1]
    assert {"json", "exact_match", "json/turn/1", "json/turn/2", "json/turn/3"} == set(scores[0])

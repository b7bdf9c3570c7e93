"""Runs on conversations: rows without pictures and with several, on any number of ranks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from data_prep.cli import main
from tests.toys.files import read_lines, write
from tests.toys.kinds import ALL_KINDS, kind_recipe
from tests.toys.own_rows import photos
from tests.toys.rank_jobs import check_complaint, ranks_of, run_recipe
from tests.toys.rank_pool import RankPool
from tests.toys.recipes import with_model, with_task
from tests.toys.resumed_runs import assert_same_run, half_a_run, losses
from vlds.data.shards.store import open_dataset
from vlds.data.streams.source import Source
from vlds.evaluation.evaluator import first_examples
from vlds.recipe.config import Recipe
from vlds.schema import IGNORED_LABEL, Decoding, Row
from vlds.tasks import Chat
from vlds.training.prepare import prepare

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


def test_conversations_without_an_answer_to_learn(
    world: Path, shards: Path, tmp_path: Path
) -> None:
    """Some are counted; a task of nothing else is refused, in training and in its plan."""
    folders = {}
    for name, marked in (("some", {0, 1}), ("all", set(range(5)))):
        rows = list(drawn([f"{number}.jpg" for number in range(12)], fewest=1))[:5]
        for number in marked:
            for turn in rows[number]["messages"]:
                turn["weight"] = 0
        file = write(tmp_path / f"{name}.jsonl", "\n".join(map(json.dumps, rows)))
        words = ["--annotations", str(file), "--images", str(shards / "photos")]
        assert main(["chat", *words, "--out", str(tmp_path / name)]) == 0
        folders[name] = [str(tmp_path / name)]
    recipe = chat_recipe("joint", world, shards, tmp_path / "run", stage=2)
    told = prepare(with_task(recipe, "chat", train=folders["some"]), ranks_of(1), False).notices
    assert told[0].startswith("tasks.chat.train: 2 of the first 5 conversations have no answer to")
    message = check_complaint(with_task(recipe, "chat", train=folders["all"]))
    assert message.startswith("tasks.chat.train: none of the first 5 conversations has an answer")
    # What is marked has no labels, in a model that learns the last answer alone, too.
    model = recipe.model
    sample = Source("chat", recipe.tasks["chat"], [open_dataset(folders["all"][0])])
    examples = list(first_examples(sample))
    rows = [Row(e, 0, 60, 20, range(sum(t.num_pictures for t in e.turns))) for e in examples]
    pictures = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    batch = model.collator(model.load_processor())(rows, pictures, evaluation=False)
    assert batch.labels is not None
    assert (batch.labels == IGNORED_LABEL).all()


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

"""Whole runs of causal models, and on one's own conversations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_prep.cli import main
from data_prep.cli import main as data_prep
from tests.toys.causal import TEMPLATE, causal_recipe
from tests.toys.files import read_lines, write
from tests.toys.films import film
from tests.toys.kinds import ALL_KINDS, kind_recipe
from tests.toys.own_rows import photos
from tests.toys.rank_jobs import check_complaint, ranks_of, run_recipe
from tests.toys.rank_pool import RankPool
from tests.toys.recipes import with_model, with_task
from tests.toys.resumed_runs import assert_same_run, half_a_run, losses
from vlds.artifact import load_run
from vlds.cli.main import run_command
from vlds.convert.verify import logits
from vlds.data.shards.store import open_dataset
from vlds.data.streams.source import Source
from vlds.evaluation.evaluator import first_examples
from vlds.evaluation.sources import training_sources
from vlds.models import Causal
from vlds.recipe.config import Recipe
from vlds.schema import IGNORED_LABEL, Decoding, Row
from vlds.tasks import Chat
from vlds.training.prepare import prepare

# A whole run of a causal model: evaluating, converting, folding.


@pytest.fixture(scope="module")
def whole(world: Path, ranks2: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks under ZeRO-3."""
    folder = tmp_path_factory.mktemp("run")
    return trained(ranks2, causal_recipe(folder, world, folder / "whole", stage=3))


def trained(pool: RankPool, recipe: Recipe) -> Path:
    """The folder of a run that has ended well."""
    assert pool.run(run_recipe, recipe, timeout=120) == [0] * pool.world_size
    return Path(recipe.output)


@pytest.mark.slow
def test_a_converted_folder_opens_in_hugging_face(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["convert", "hf", "--run", str(whole), "--out", str(out), "--verify"]
    assert run_command(words) == 0
    shutil.move(out, tmp_path / "moved")
    moved = load_run(tmp_path / "moved")
    assert isinstance(moved.recipe.model, Causal)
    assert not moved.recipe.model.train_projector
    loaded = load_run(whole)
    assert loaded.processor.chat_template == TEMPLATE
    assert torch.equal(logits(moved, "vqa", ()), logits(loaded, "vqa", ()))
    text = AutoModelForCausalLM.from_pretrained(tmp_path / "moved")
    state = moved.model.backbone.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in text.state_dict().items())
    assert AutoTokenizer.from_pretrained(tmp_path / "moved").chat_template == TEMPLATE


# Runs on one's own conversations and rows: without pictures, with several, and with clips.

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


NUM_ROWS = 12


@pytest.fixture
def clip_rows(tmp_path: Path) -> Path:
    """A data set of rows with clips of unlike lengths, with pictures, and with text alone."""
    content = []
    photos(tmp_path / "files", "a.jpg")
    for number in range(NUM_ROWS):
        row: dict[str, object] = {"question": f"what is {number} ?", "answer": "a red car"}
        if number % 3 == 0:
            film(tmp_path / "files" / f"{number}.mp4", 0.4 if number % 2 else 2, size=(32, 32))
            row["video"] = f"{number}.mp4"
        elif number % 3 == 1:
            row["image"] = "a.jpg"
        content.append(row)
    file = write(tmp_path / "rows.jsonl", "\n".join(map(json.dumps, content)))
    places = [f"--{name}={tmp_path / 'files'}" for name in ("images", "videos")]
    words = ["--annotations", str(file), "--out", str(tmp_path / "data"), "--frames", "6"]
    assert data_prep(["video", *words, *places, "--workers", "1"]) == 0
    return tmp_path / "data"


def recipe_on(rows: Path, kind: str, world: Path, output: Path, num_images: int = 6) -> Recipe:
    recipe = kind_recipe(kind, world, output, stage=3)
    task = Chat(train=[str(rows)], evaluate=[str(rows)], decoding=Decoding(max_new_tokens=3))
    model = replace(recipe.model, num_images=num_images)
    return replace(recipe, model=model, tasks={"vqa": task})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["causal", "image_text"])
def test_clips_train_and_are_scored(
    kind: str, clip_rows: Path, world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    recipe = recipe_on(clip_rows, kind, world, tmp_path / "run")
    assert ranks2.run(run_recipe, recipe, timeout=180) == [0, 0]
    (file,) = (tmp_path / "run" / "predictions").rglob("vqa.jsonl")
    answers = {entry["id"]: entry["prediction"] for entry in read_lines(file)}
    assert len(answers) == NUM_ROWS
    for command in ("evaluate", "predict"):
        out = tmp_path / command
        words = ["--run", str(tmp_path / "run"), "--out", str(out)]
        if command == "predict":
            words += ["--data", str(clip_rows)]
        assert run_command([command, *words]) == 0
        (again,) = out.rglob("*.jsonl")
        assert {entry["id"]: entry["prediction"] for entry in read_lines(again)} == answers


def test_longer_clips_than_the_model_takes(clip_rows: Path, world: Path, tmp_path: Path) -> None:
    recipe = recipe_on(clip_rows, "image_text", world, tmp_path / "run", num_images=4)
    (source,) = training_sources(recipe)
    message = r"it has 6 pictures, 0 to 4 expected; raise model\.num_images"
    with pytest.raises(ValueError, match=message):
        source.check(recipe.model.image)

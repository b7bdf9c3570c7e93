"""Data sets from their files to scores: packed, read with their own tokenizer, trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import pytest

from data_prep.cli import main as data_prep
from tests.toys import official_sets as made
from tests.toys.class_folders import pack_folders
from tests.toys.files import read_lines, write
from tests.toys.rank_jobs import run_and_print, run_recipe
from tests.toys.rank_pool import RankPool
from tests.toys.recipes import with_model
from tests.toys.world import COLOURS, picture, world_recipe
from vlds.data.config import DataConfig
from vlds.data.errors import ErrorPolicy
from vlds.data.shards.store import open_dataset
from vlds.evaluation.sources import evaluation_sources, streamed_sources, training_sources
from vlds.models.backbones import T5, Bart
from vlds.recipe.config import Recipe, load_recipe, parse_recipe
from vlds.schema import Decoding
from vlds.tasks import (
    VQA,
    Caption,
    DirectAnswer,
    Entailment,
    Grounding,
    ImageClass,
    MultipleChoice,
    Refer,
    Task,
    TextVQA,
)
from vlds.tasks.metrics.plain_scores import plain, split

SPLITS = {"okvqa": "val", "aokvqa": "val", "textvqa": "val", "scienceqa": "test",
          "refcoco": "testA", "flickr30k": "test"}  # fmt: skip
CLASSES = {"red": "a fire", "green": "the grass", "blue": "the sea"}


def scores_of(
    tasks: Mapping[str, Task], shards: list[str], world: Path, folder: Path, ranks: RankPool
) -> dict[str, dict[str, float]]:
    """The scores of a run on tasks, with a tokenizer for the words of some shards."""
    words = str(folder / "spiece.model")
    assert data_prep(["tokenizer", *shards, "--out", words, "--vocab-size", "90"]) == 0
    sizes = json.loads((world / "t5.json").read_text("utf-8")) | {"vocab_size": 200}
    config = write(folder / "t5.json", sizes)
    backbone = T5(config=str(config), tokenizer=words, extra_tokens=0, visual_tokens=36)
    recipe = replace(world_recipe(world, folder / "run"), tasks=dict(tasks))
    assert ranks.run(run_recipe, with_model(recipe, backbone=backbone), timeout=120) == [0, 0]
    scores: dict[str, dict[str, float]] = read_lines(folder / "run/metrics.jsonl")[-1]["scores"]
    return scores


def predicted(folder: Path, task: str) -> list[str]:
    lines = read_lines(folder / f"run/predictions/step-00000010/{task}.jsonl")
    return [line["prediction"] for line in lines]


@pytest.mark.slow
def test_official_files_train_and_are_scored(world: Path, ranks2: RankPool, tmp_path: Path) -> None:
    """Six data sets in one run."""
    shards = {name: [str(tmp_path / name)] for name in SPLITS}
    for name, of_set in SPLITS.items():
        src = tmp_path / "official" / name
        getattr(made, f"write_{name}")(src)
        words = [name, "--src", str(src), "--split", of_set, "--out", *shards[name]]
        assert data_prep([*words, "--workers", "1"]) == 0
    # So small a tokenizer has no piece for a letter with the blank before it.
    written = Decoding(max_new_tokens=4)
    by_set: dict[str, tuple[str, Task]] = {
        "okvqa": ("okvqa", VQA()),
        "choice": ("aokvqa", MultipleChoice(decoding=written)),
        "direct": ("aokvqa", DirectAnswer()),
        "textvqa": ("textvqa", TextVQA()),
        "scienceqa": ("scienceqa", MultipleChoice(decoding=written)),
        "boxes": ("refcoco", Grounding()),
        "pointers": ("refcoco", Refer()),
        "flickr30k": ("flickr30k", Caption()),
    }
    tasks = {
        name: replace(task, train=shards[of_set], evaluate=shards[of_set])
        for name, (of_set, task) in by_set.items()
    }
    folders = [folder for folders in shards.values() for folder in folders]
    scores = scores_of(tasks, folders, world, tmp_path, ranks2)
    firsts = {name: next(iter(plain(of_task))) for name, of_task in scores.items()}
    assert firsts.pop("flickr30k") in ("CIDEr", "cider_plain_tokens", "word_f1")
    assert firsts == {
        "okvqa": "vqa_accuracy",
        "choice": "accuracy",
        "direct": "vqa_accuracy_direct",
        "textvqa": "vqa_accuracy_textvqa",
        "scienceqa": "accuracy",
        "boxes": "accuracy",
        "pointers": "accuracy",
    }
    assert "accuracy/subject/social science" in scores["scienceqa"]
    assert all(0 <= score <= 1 for name in firsts for score in plain(scores[name]).values())


@pytest.mark.slow
def test_folders_of_classes(world: Path, ranks2: RankPool, tmp_path: Path) -> None:
    """Every answer is one of the classes, whose list comes from dataset.json."""
    for number in range(24):
        colour = list(COLOURS)[number % 3]
        write(tmp_path / "in" / CLASSES[colour] / f"{number}.jpg", picture(colour, number))
    sizes = ("--split-sizes", "test=0.25")
    assert pack_folders(tmp_path / "in", tmp_path / "shards", *sizes) == 0
    train, test = (str(tmp_path / "shards" / name) for name in ("train", "test"))
    answers = Decoding(answers=f"{train}/dataset.json")
    tasks = {"classes": ImageClass(train=[train], evaluate=[test], decoding=answers)}
    scores = scores_of(tasks, [train], world, tmp_path, ranks2)["classes"]
    cells = {cell[2] for name in scores if (cell := split(name))}
    assert cells == set(CLASSES.values())
    assert scores["accuracy"] == scores["mean_class_accuracy"]  # two pictures a class
    assert len(predicted(tmp_path, "classes")) == 6
    assert set(predicted(tmp_path, "classes")) <= set(CLASSES.values())


@pytest.mark.parametrize("family", ["t5", "gpt2"])
@pytest.mark.parametrize("task", [Entailment(), MultipleChoice()], ids=["labels", "letters"])
def test_real_tokenizers_tell_the_words_apart(family: str, task: Task, shared: Path) -> None:
    folder = str(shared / "data/tokenizers" / family)
    source = T5(path="t5-base", tokenizer=folder) if family == "t5" else Bart(
        path="facebook/bart-base", tokenizer=folder
    )  # fmt: skip
    tokenizer = source.load_tokenizer()
    choices = task.decoding.choices or ()
    firsts = {tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in choices}
    assert len(firsts) == len(choices) > 2


# Runs that stream their shards, whose batches are of one task, or that last some epochs.


def streamed(recipe: Recipe, world: Path) -> Recipe:
    """The same tasks from one shard of captions and three of questions, one of them at a URL;
    two processes for each rank."""
    caption, vqa = recipe.tasks["caption"], recipe.tasks["vqa"]
    shards = [f"{world}/vqa/vqa-train-0000{{0,1}}.tar", f"file://{world}/vqa/vqa-train-00002.tar"]
    tasks = {
        "vqa": replace(vqa, train=shards),
        "caption": replace(caption, train=[f"{world}/caption/caption-train-00000.tar"]),
    }
    data = DataConfig(
        global_batch_size=8, micro_batch_size=2, num_workers=2, reader="sequential",
        shuffle_buffer=8, errors=ErrorPolicy(max_bad_fraction=1.0),
    )  # fmt: skip
    return replace(recipe, tasks=tasks, data=data)


@pytest.mark.slow
def test_two_ranks_train_and_resume(world: Path, ranks2: RankPool, tmp_path: Path) -> None:
    recipe = streamed(world_recipe(world, tmp_path / "run"), world)
    short = replace(recipe, training=replace(recipe.training, steps=5))
    (code, said), (other, _) = ranks2.run(run_and_print, short, False, timeout=120)
    assert (code, other) == (0, 0)
    assert "the order of examples depends on their number; --resume begins new shards" in " ".join(
        said.split()
    )
    assert [code for code, _ in ranks2.run(run_and_print, recipe, True, timeout=120)] == [0, 0]
    lines = read_lines(tmp_path / "run/metrics.jsonl")
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 11))
    assert sum("loss/vqa" in line for line in steps) == 10
    assert not any("epoch/vqa" in line for line in steps)  # nobody knows
    assert load_recipe(tmp_path / "run" / "recipe.yaml") == recipe
    predictions = (tmp_path / "run/predictions/step-00000010/vqa.jsonl").read_text().splitlines()
    assert len(predictions) == 48  # evaluation reads the indexed data set, each example once


def test_what_needs_an_index_says_so(world: Path, tmp_path: Path) -> None:
    recipe = world_recipe(world, tmp_path / "run")
    shards = f"{world}/vqa/vqa-train-0000{{0..2}}.tar"
    vqa = recipe.tasks["vqa"]
    train_on = replace(recipe, tasks={"vqa": replace(vqa, train=[shards])})
    with pytest.raises(ValueError, match=r"^tasks\.vqa: .* set data\.reader to sequential; "):
        training_sources(train_on)
    score_on = replace(recipe, tasks={"vqa": replace(vqa, evaluate=[shards])})
    with pytest.raises(ValueError, match=r"^tasks\.vqa: .* put them into a folder and index it"):
        evaluation_sources(score_on)
    named = replace(train_on, data=DataConfig(reader="sequential", fields={"vqo": {"a": "b"}}))
    with pytest.raises(ValueError, match=r"^data\.fields: no task is called vqo; the tasks are"):
        streamed_sources(named)
    with pytest.raises(ValueError, match=r"^tasks\.caption: .* holds samples of kind 'vqa'"):
        streamed_sources(
            replace(named, tasks={"caption": replace(recipe.tasks["caption"], train=[shards])},
                    data=DataConfig(reader="sequential"))
        )  # fmt: skip


@pytest.mark.parametrize(
    ("reader", "option", "message"),
    [
        ("sequential", ("--data.window", "3"), r"data\.window: got 3, which data\."),
        (
            "indexed",
            ("--data.shuffle_buffer", "5"),
            r"data\.shuffle_buffer: got 5, which data\.reader indexed",
        ),
        ("streamed", (), r"give one of indexed, sequential"),
        ("sequential", ("--data.shuffle_buffer", "0"), r"shuffle_buffer: got 0"),
    ],
)
def test_options_of_the_other_reader(reader: str, option: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_recipe(["--config", "recipes/demo.yaml", "--data.reader", reader, *option])


def task_batches(world: Path, output: Path) -> Recipe:
    """Two epochs of questions in batches of 7 and captions in batches of 5, without dropout."""
    recipe = world_recipe(world, output)
    vqa = replace(recipe.tasks["vqa"], weight=1.0, batch_size=7)
    caption = replace(recipe.tasks["caption"], batch_size=5)
    return with_model(
        replace(
            recipe,
            tasks={"vqa": vqa, "caption": caption},
            data=replace(recipe.data, unit="global_batch", temperature=1.0, micro_batch_size=2),
            training=replace(recipe.training, steps=None, epochs=2),
        ),
        backbone=replace(recipe.model.backbone, dropout=0.0),
    )


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = read_lines(run / "metrics.jsonl")
    return [line for line in lines if "loss" in line]


@pytest.mark.slow
def test_epochs_become_steps_and_any_ranks_take_the_same(
    world: Path, ranks1: RankPool, ranks4: RankPool, tmp_path: Path
) -> None:
    """Four ranks share batches of 7 and 5 in micro-batches of one and two."""
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert ranks1.run(run_recipe, task_batches(world, alone), timeout=120) == [0]
    assert ranks4.run(run_recipe, task_batches(world, shared), timeout=120) == [0] * 4
    questions, captions = (
        open_dataset(world / name).num_annotations for name in ("vqa", "caption")
    )
    vqa_steps, caption_steps = 2 * ceil(questions / 7), 2 * ceil(captions / 5)
    steps = vqa_steps + caption_steps
    saved = load_recipe(shared / "recipe.yaml").training
    assert (saved.steps, saved.epochs) == (steps, None)
    one, other = metrics(alone), metrics(shared)
    assert [line["step"] for line in one] == list(range(1, steps + 1))
    for name in ("loss", "loss/vqa", "loss/caption", "epoch/vqa", "epoch/caption"):
        found, expected = ([line.get(name) for line in lines] for lines in (other, one))
        assert found == [value and pytest.approx(value, rel=1e-3) for value in expected], name
    # A batch is of one task; its last batch of an epoch is filled up from the next.
    assert all(("loss/vqa" in line) != ("loss/caption" in line) for line in one)
    assert other[-1]["epoch/vqa"] == pytest.approx(vqa_steps * 7 / questions)
    assert other[-1]["epoch/caption"] == pytest.approx(caption_steps * 5 / captions)


def test_a_batch_size_needs_batches_of_one_task(world: Path, tmp_path: Path) -> None:
    recipe = world_recipe(world, tmp_path)
    vqa = replace(recipe.tasks["vqa"], batch_size=7)
    with pytest.raises(ValueError, match=r"tasks\.vqa\.batch_size: got 7, but data\.unit is exam"):
        replace(recipe, tasks=recipe.tasks | {"vqa": vqa})

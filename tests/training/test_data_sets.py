"""Data sets from their files to scores: packed, read with their own tokenizer, trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.cli import main as data_prep
from tests.toys import official_sets as made
from tests.toys.class_folders import pack_folders
from tests.toys.clips import clip_recipe
from tests.toys.files import read_lines, write
from tests.toys.rank_jobs import run_recipe
from tests.toys.rank_pool import RankPool
from tests.toys.recipes import with_model
from tests.toys.world import COLOURS, picture, world_recipe
from vlds.models.backbones import T5, Bart
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


@pytest.mark.slow
def test_clips_of_stored_features_and_subtitles(
    world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    recipe = clip_recipe(world, tmp_path)
    assert ranks2.run(run_recipe, recipe, timeout=120) == [0, 0]
    lines = read_lines(Path(recipe.output) / "metrics.jsonl")
    losses = [line for line in lines if "loss" in line]
    for name in recipe.tasks:
        assert losses[-1][f"loss/{name}"] < 0.8 * losses[0][f"loss/{name}"]
        # 40 steps of 8 examples over two tasks of 24, with equal weights.
        assert losses[-1][f"epoch/{name}"] == 160 / 24
    assert lines[-1]["scores"].keys() == recipe.tasks.keys()
    assert lines[-1]["scores"]["tvqa"].keys() == {"accuracy"}
    assert "word_f1" in lines[-1]["scores"]["tvc"]
    told = read_lines(Path(recipe.output) / "predictions" / "step-00000040" / "tvqa.jsonl")
    asked = [f"q{number}-{n}" for number in range(12) for n in range(2)]
    assert sorted(line["id"] for line in told) == sorted(asked)


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

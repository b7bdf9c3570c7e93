"""Pictures of classes from folders to scores: packed, learned as text, answered from the list."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.cli import main as data_prep
from tests.toys.class_folders import pack_folders
from tests.toys.files import read_lines, write
from tests.toys.rank_jobs import run_recipe
from tests.toys.rank_pool import RankPool
from tests.toys.recipes import with_model
from tests.toys.world import COLOURS, picture, world_recipe
from vlds.models.backbones import T5
from vlds.schema import Decoding
from vlds.tasks import ImageClass
from vlds.tasks.metrics.plain_scores import split

NAMES = {"red": "a fire", "green": "the grass", "blue": "the sea"}


@pytest.mark.slow
def test_folders_train_and_are_scored(world: Path, ranks2: RankPool, tmp_path: Path) -> None:
    """Every answer is one of the classes, whose list comes from dataset.json."""
    for number in range(24):
        colour = list(COLOURS)[number % 3]
        write(tmp_path / "in" / NAMES[colour] / f"{number}.jpg", picture(colour, number))
    sizes = ("--split-sizes", "test=0.25")
    assert pack_folders(tmp_path / "in", tmp_path / "shards", *sizes) == 0
    words = str(tmp_path / "spiece.model")
    train, test = (str(tmp_path / "shards" / name) for name in ("train", "test"))
    assert data_prep(["tokenizer", train, "--out", words, "--vocab-size", "90"]) == 0
    recipe = world_recipe(world, tmp_path / "run")
    answers = Decoding(answers=f"{train}/dataset.json")
    task = ImageClass(train=[train], evaluate=[test], decoding=answers)
    backbone_sizes = json.loads((world / "t5.json").read_text("utf-8")) | {"vocab_size": 200}
    (tmp_path / "t5.json").write_text(json.dumps(backbone_sizes), "utf-8")
    backbone = T5(
        config=str(tmp_path / "t5.json"), tokenizer=words, extra_tokens=0, visual_tokens=4
    )
    recipe = with_model(replace(recipe, tasks={"classes": task}), backbone=backbone)
    assert ranks2.run(run_recipe, recipe, timeout=120) == [0, 0]
    scores = json.loads((tmp_path / "run/metrics.jsonl").read_text("utf-8").splitlines()[-1])
    scores = scores["scores"]["classes"]
    cells = {cell[2] for name in scores if (cell := split(name))}
    assert cells == set(NAMES.values())
    assert scores["accuracy"] == scores["mean_class_accuracy"]  # two pictures a class
    lines = read_lines(tmp_path / "run/predictions/step-00000010/classes.jsonl")
    assert len(lines) == 6
    assert {line["prediction"] for line in lines} <= set(NAMES.values())

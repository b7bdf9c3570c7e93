"""Rows without pictures and rows with clips, from their files to scores."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.cli import main as data_prep
from tests.toys.files import read_lines, write
from tests.toys.films import film
from tests.toys.image_text.rows import tiny
from tests.toys.kinds import kind_recipe
from tests.toys.own_rows import pack_rows, photos
from tests.toys.pictures import jpeg
from tests.toys.rank_jobs import run_recipe
from tests.toys.rank_pool import RankPool
from vlds.cli.main import run_command
from vlds.evaluation.evaluator import check_number
from vlds.evaluation.sources import picture_limits, training_sources
from vlds.recipe.config import Recipe
from vlds.schema import Decoding
from vlds.tasks import Chat

NUM_ROWS = 12


@pytest.fixture
def text_rows(tmp_path: Path) -> Path:
    """A data set of which every third row has a picture."""
    content = [
        {"question": f"what is {n} ?", "answer": "red"} | ({"image": "a"} if n % 3 == 0 else {})
        for n in range(NUM_ROWS)
    ]
    write(tmp_path / "images" / "a.jpg", jpeg(width=48, height=32))
    file = write(tmp_path / "rows.json", content)
    assert pack_rows(file, tmp_path / "images", tmp_path / "data", "--text-rows") == 0
    return tmp_path / "data"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["causal", "image_text"])
def test_rows_without_pictures_train_beside_others(
    kind: str, text_rows: Path, world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    recipe = kind_recipe(kind, world, tmp_path / "run", stage=3)
    task = replace(recipe.tasks["vqa"], train=[str(text_rows)], evaluate=[str(text_rows)])
    recipe = replace(recipe, tasks={"vqa": task})
    assert ranks2.run(run_recipe, recipe, timeout=120) == [0, 0]
    (file,) = (tmp_path / "run" / "predictions").rglob("vqa.jsonl")
    samples = [answer["sample"] for answer in read_lines(file)]
    assert len(samples) == NUM_ROWS
    assert sum(sample.startswith("row ") for sample in samples) == NUM_ROWS - NUM_ROWS // 3


def test_some_models_need_pictures(world: Path, tmp_path: Path) -> None:
    recipe = kind_recipe("joint", world, tmp_path / "run")
    assert picture_limits(recipe, "vqa").fewest == 1
    for model_type, fewest in (("paligemma", 1), ("llava", 0)):
        model = tiny(model_type).kind
        assert picture_limits(replace(recipe, model=model), "vqa").fewest == fewest
    with pytest.raises(ValueError, match=r"^image: got 0, and the task vqa takes 1 to 2$"):
        check_number(recipe, "vqa", 0)


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

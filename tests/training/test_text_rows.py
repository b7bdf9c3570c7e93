"""Rows without pictures, from a file of rows to scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.toys.files import read_lines, write
from tests.toys.image_text.rows import tiny
from tests.toys.kinds import kind_recipe
from tests.toys.own_rows import pack_rows
from tests.toys.pictures import jpeg
from tests.toys.rank_jobs import run_recipe
from tests.toys.rank_pool import RankPool
from vlds.evaluation.evaluator import check_number
from vlds.evaluation.sources import picture_limits
from vlds.recipe.config import Recipe

NUM_ROWS = 12


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A data set of which every third row has a picture."""
    content = [
        {"question": f"what is {n} ?", "answer": "red"} | ({"image": "a"} if n % 3 == 0 else {})
        for n in range(NUM_ROWS)
    ]
    write(tmp_path / "images" / "a.jpg", jpeg(width=48, height=32))
    file = write(tmp_path / "rows.json", content)
    assert pack_rows(file, tmp_path / "images", tmp_path / "data", "--text-rows") == 0
    return tmp_path / "data"


def with_rows(recipe: Recipe, rows: Path) -> Recipe:
    """The recipe on the data set, alone."""
    task = replace(recipe.tasks["vqa"], train=[str(rows)], evaluate=[str(rows)])
    return replace(recipe, tasks={"vqa": task})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["causal", "image_text"])
def test_they_train_beside_others(
    kind: str, rows: Path, world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    recipe = with_rows(kind_recipe(kind, world, tmp_path / "run", stage=3), rows)
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

"""A run in which one task answers with classes and another writes: trained, resumed, scored,
opened, converted."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.toys.kinds import SLOW_KINDS, kind_recipe
from tests.toys.rank_jobs import check_complaint
from tests.toys.rank_pool import RankPool
from tests.toys.resumed_runs import check_resume, losses
from vlds.artifact import load_run
from vlds.cli.main import run_command
from vlds.convert.verify import logits
from vlds.evaluation.sources import with_lists
from vlds.models.heads import Head, LinearHead, MLPHead
from vlds.recipe.config import Recipe
from vlds.schema import Decoding
from vlds.tasks import VQA, Caption

COLOURS = ("red", "green", "blue")
"""The world's answers but for dark, which is worth 0.3 of each question."""


def class_recipe(
    kind: str, world: Path, output: Path, head: Head | None = None, stage: int = 3
) -> Recipe:
    """vqa by a head, caption in words."""
    recipe = kind_recipe(kind, world, output, stage)
    vqa = replace(recipe.tasks["vqa"], head=head or MLPHead(classes=COLOURS))
    return replace(recipe, tasks={**recipe.tasks, "vqa": vqa})


@pytest.fixture(scope="module", params=["joint", *SLOW_KINDS])
def run(
    request: pytest.FixtureRequest,
    world: Path,
    ranks2: RankPool,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A run of two ranks under ZeRO-3, resumed after half of it as if nothing had happened."""
    folder = tmp_path_factory.mktemp("run")
    file = folder / "colours.json"
    file.write_text(json.dumps(COLOURS), "utf-8")
    recipe = class_recipe(request.param, world, folder / "run", MLPHead(classes=str(file)))
    check_resume(ranks2, recipe, folder)
    file.unlink()
    return Path(recipe.output)


def test_the_artifact_is_complete(run: Path) -> None:
    """The recipe holds the classes, though the file that it named is gone."""
    loaded = load_run(run)
    head = loaded.recipe.tasks["vqa"].head
    assert head is not None
    assert head.names == COLOURS
    stored = load_file(run / "artifact" / "weights.safetensors")
    held = {name for name in stored if name.startswith("heads.vqa.")}
    assert held == {f"heads.vqa.{n}.{part}" for n in (0, 2, 3) for part in ("weight", "bias")}
    for name in held:
        assert torch.equal(loaded.model.get_parameter(name), stored[name])
    assert losses(run)[-1][1] < losses(run)[0][1]


@pytest.mark.slow
def test_a_converted_run_keeps_the_heads(run: Path, tmp_path: Path) -> None:
    assert_same_classes(run, tmp_path / "out", "hf")


def assert_same_classes(run: Path, out: Path, layout: str) -> None:
    """A conversion gives the run's scores of classes."""
    words = ["convert", layout, "--run", str(run), "--out", str(out), "--verify"]
    assert run_command(words) == 0
    expected, found = (logits(load_run(each), "vqa", ()) for each in (run, out))
    assert expected.shape == (2, len(COLOURS))
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert "the tasks' heads are kept apart" in (out / "README.md").read_text("utf-8")


# What a recipe may say.


def with_head(world: Path, tmp_path: Path, head: Head) -> Recipe:
    recipe = class_recipe("joint", world, tmp_path / "run", head)
    return replace(recipe, tasks={"vqa": recipe.tasks["vqa"]})


def test_a_list_of_other_data_is_an_error(world: Path, tmp_path: Path) -> None:
    recipe = with_head(world, tmp_path, LinearHead(classes=("yes", "no")))
    assert check_complaint(recipe) == (
        "tasks.vqa.head.classes: none of the first 48 answers is a class, such as 'red'; the "
        "classes are yes, no, ...: give the list of these data"
    )


def test_the_data_may_list_the_classes(world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(world / "vqa", folder)
    recipe = with_head(world, tmp_path, LinearHead())
    task = replace(recipe.tasks["vqa"], train=[str(folder)], evaluate=[str(folder)])
    recipe = replace(recipe, tasks={"vqa": task})
    with pytest.raises(
        ValueError, match=r"tasks.vqa.head.classes: the recipe names none, and data"
    ):
        with_lists(recipe)
    info = json.loads((folder / "dataset.json").read_text("utf-8"))
    text = json.dumps({**info, "classes": [*COLOURS, "dark"]})
    (folder / "dataset.json").write_text(text, "utf-8")
    head = with_lists(recipe).tasks["vqa"].head
    assert head is not None
    assert head.names == (*COLOURS, "dark")
    text = json.dumps({**info, "classes": ["red"]})
    (folder / "dataset.json").write_text(text, "utf-8")
    with pytest.raises(ValueError, match=r"tasks.vqa.head.classes: .*data: got 1; give two"):
        with_lists(recipe)


def test_what_a_head_does_not_go_with() -> None:
    head = LinearHead(classes=COLOURS)
    with pytest.raises(ValueError, match="head: Caption has answers that are texts"):
        Caption(head=head)
    for name in ("choices", "answers"):
        with pytest.raises(ValueError, match=rf"head: .* decoding.{name} limits what is written"):
            VQA(head=head, decoding=Decoding(**{name: ("red", "green")}))

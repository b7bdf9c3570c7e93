"""A run's relative paths are found from any working directory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.toys.recipes import with_model
from tests.toys.world import SIZES, world_recipe, write_tokenizer
from vlds.artifact import artifact_folder, check_same_sources, read_recipe, write_artifact
from vlds.cli.rank import check_recipe
from vlds.models.backbones import T5
from vlds.recipe.config import Recipe, load_recipe, save_recipe
from vlds.recipe.paths import located


def relative_recipe(home: Path) -> Recipe:
    """A recipe that names its files relative to `home`, where they are."""
    write_tokenizer(home / "files" / "spiece.model")
    (home / "files" / "t5.json").write_text(str(SIZES).replace("'", '"'))
    for name in ("vqa", "caption"):
        (home / "shards" / name).mkdir(parents=True)
    recipe = world_recipe(Path("shards"), Path("runs/mine"))
    backbone = replace(
        recipe.model.backbone, config="files/t5.json", tokenizer="files/spiece.model"
    )
    return with_model(recipe, backbone=backbone)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run and its data; the working directory is elsewhere."""
    folder = tmp_path / "home"
    (folder / "files").mkdir(parents=True)
    monkeypatch.chdir(folder)
    recipe = relative_recipe(folder)
    run = folder / "runs" / "mine"
    (run / "artifact").mkdir(parents=True)
    save_recipe(recipe, run / "recipe.yaml")
    write_artifact(run / "artifact", {}, recipe, recipe.model.backbone.load_tokenizer())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder


def check_found(recipe: Recipe, place: Path) -> None:
    assert recipe.model.backbone.tokenizer == str(place / "files" / "spiece.model")
    assert recipe.tasks["vqa"].train == [str(place / "shards" / "vqa")]
    assert recipe.output == str(place / "runs" / "mine")


def test_where_the_run_was_started(home: Path) -> None:
    check_found(load_recipe(home / "runs/mine/recipe.yaml"), home)
    check_found(read_recipe(artifact_folder(home / "runs/mine")), home)


def test_beside_a_run_that_was_moved_with_its_data(home: Path, tmp_path: Path) -> None:
    home.rename(tmp_path / "moved")
    check_found(read_recipe(artifact_folder(tmp_path / "moved/runs/mine")), tmp_path / "moved")
    # If both exist, the files next to the run are meant.
    (home / "shards" / "vqa").mkdir(parents=True)
    check_found(load_recipe(tmp_path / "moved/runs/mine/recipe.yaml"), tmp_path / "moved")


def test_nothing_changes_where_it_was_started(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    recipe = read_recipe(home / "runs/mine/artifact")
    assert recipe.tasks["vqa"].train == ["shards/vqa"]
    assert recipe.output == "runs/mine"


@pytest.mark.parametrize(
    ("name", "there", "expected"),
    [
        ("/old/here/models", "new/here/models", "{top}/new/here/models"),
        ("/old/here/models", None, "/old/here/models"),
        ("google-t5/t5-base", None, "google-t5/t5-base"),
        ("https://host/x", None, "https://host/x"),
    ],
)
def test_names(name: str, there: str | None, expected: str, tmp_path: Path) -> None:
    """Absolute paths follow a moved run; hub names do not change."""
    if there:
        (tmp_path / there).mkdir(parents=True)
    tree: dict[str, Any] = {
        "output": "/old/here/runs/mine",
        "started_in": "/old",
        "backbone": {"init_args": {"path": name}},
    }
    found = located(tree, tmp_path / "new/here/runs/mine/artifact/recipe.yaml")
    assert found["backbone"]["init_args"]["path"] == expected.format(top=tmp_path)
    assert "started_in" not in found


def test_data_that_are_nowhere_are_named_where_they_were(home: Path) -> None:
    (home / "shards" / "vqa").rmdir()
    recipe = load_recipe(home / "runs/mine/recipe.yaml")
    assert recipe.tasks["vqa"].train == [str(home / "shards" / "vqa")]


def test_a_missing_backbone_is_not_called_another_one(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    (home / "models").mkdir()
    (home / "models" / "config.json").write_text("{}")
    recipe = with_model(relative_recipe_of(home), backbone=T5(path="models", visual_tokens=4))
    artifact = home / "runs" / "mine" / "artifact"
    tokenizer = relative_recipe_of(home).model.backbone.load_tokenizer()
    write_artifact(artifact, {}, recipe, tokenizer)
    (home / "models").rename(home / "gone")
    with pytest.raises(ValueError, match=rf"its backbone is missing: no {home}/models; copy it"):
        check_same_sources(artifact, read_recipe(artifact))


def relative_recipe_of(home: Path) -> Recipe:
    return load_recipe(home / "runs/mine/recipe.yaml")


def test_a_saved_recipe_cannot_begin_at_something_else(home: Path) -> None:
    file = home / "runs/mine/recipe.yaml"
    file.write_text(file.read_text().replace(f"started_in: {home}", "started_in: [x]"))
    with pytest.raises(ValueError, match=r"started_in: got \['x'\]; give an absolute path"):
        load_recipe(file)


def test_a_run_that_is_resumed_from_elsewhere_says_where_it_was_started(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    save_recipe(relative_recipe_of(home), home / "user.yaml")
    text = (home / "user.yaml").read_text()
    (home / "user.yaml").write_text(text.replace(f"started_in: {home}", ""))
    monkeypatch.chdir(home.parent / "elsewhere")
    words = [str(home / "user.yaml"), "--output", str(home / "runs" / "mine"), "--resume"]
    assert check_recipe(["train", *words], 1) == 2
    said = capsys.readouterr().err
    assert f"--resume: no files/t5.json here; the run was started in {home}: resume it" in said


def test_runs_that_a_method_fuses_are_found(home: Path) -> None:
    """A mapping of names to folders; a task that is called `runs` is another thing."""
    (home / "runs" / "vqa").mkdir()
    tree = {
        "started_in": str(home),
        "output": "runs/mine",
        "methods": {"fused": {"init_args": {"runs": {"vqa": "runs/vqa", "gone": "runs/gone"}}}},
        "tasks": {"runs": {"class_path": "VQA", "init_args": {"train": ["shards/vqa"]}}},
    }
    found = located(tree, home / "runs" / "mine" / "recipe.yaml")
    runs = {"vqa": str(home / "runs" / "vqa"), "gone": "runs/gone"}
    assert found["methods"]["fused"]["init_args"]["runs"] == runs
    assert found["tasks"]["runs"]["init_args"]["train"] == [str(home / "shards" / "vqa")]

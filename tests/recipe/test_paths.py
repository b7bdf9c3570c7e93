"""A run's relative paths are found from any working directory: the types of fields tell them."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

import pytest
import yaml

from tests.toys.recipes import with_model
from tests.toys.world import SIZES, world_recipe, write_tokenizer
from vlds.artifact import check_same_sources, read_recipe, write_artifact
from vlds.cli.check_recipe import check_recipe
from vlds.models.backbones import T5
from vlds.recipe.choices import concrete_classes, field_types, is_choice
from vlds.recipe.config import Recipe, load_recipe, save_recipe
from vlds.recipe.paths import check_files, file_names, located
from vlds.report import collect
from vlds.runtime.artifact_files import artifact_folder
from vlds.runtime.checks import PathMark


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
    artifact = artifact_folder(home / "runs/mine")
    check_found(read_recipe(artifact), home)
    with chdir(home):
        recipe = read_recipe(artifact)
    assert (recipe.tasks["vqa"].train, recipe.output) == (["shards/vqa"], "runs/mine")
    # Data that are nowhere are named where they were.
    (home / "shards" / "vqa").rmdir()
    check_found(read_recipe(artifact), home)
    # Where files are written, the recipe of an artifact does not say.
    for file in (artifact / "recipe.yaml", home / "runs/mine/recipe.yaml"):
        tree = yaml.safe_load(file.read_text())
        tree["data"]["cache"] = "~/backups"
        file.write_text(yaml.safe_dump(tree))
    assert read_recipe(artifact).data.cache is None
    assert read_recipe(artifact, ["--data.cache", "mine"]).data.cache == "mine"
    collected = collect.read_recipe(home / "runs/mine", [])
    assert collected is not None
    assert collected.data.cache is None


def test_beside_a_run_that_was_moved_with_its_data(home: Path, tmp_path: Path) -> None:
    home.rename(tmp_path / "moved")
    check_found(read_recipe(artifact_folder(tmp_path / "moved/runs/mine")), tmp_path / "moved")
    # If both exist, the files next to the run are meant.
    (home / "shards" / "vqa").mkdir(parents=True)
    check_found(load_recipe(tmp_path / "moved/runs/mine/recipe.yaml"), tmp_path / "moved")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("/old/here/models", "{top}/new/here/models"),
        ("/old/here/gone", "/old/here/gone"),
        ("google-t5/t5-base", "google-t5/t5-base"),
        ("https://host/x", "https://host/x"),
    ],
)
def test_names(name: str, expected: str, tmp_path: Path) -> None:
    """Absolute paths follow a moved run, also in a change of a base, which names no class; hub
    names do not change."""
    (tmp_path / "new/here/models").mkdir(parents=True)
    tree = {
        "output": "/old/here/runs/mine", "started_in": "/old",
        "model": {"init_args": {"path": name}},
    }  # fmt: skip
    found = located(tree, tmp_path / "new/here/runs/mine/artifact/recipe.yaml", Recipe)
    assert found["model"]["init_args"]["path"] == expected.format(top=tmp_path)
    assert "started_in" not in found


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
    runs = {"runs": {"vqa": "runs/vqa", "gone": "runs/gone"}}
    tree = {
        "started_in": str(home), "output": "runs/mine",
        "methods": {"fused": {"class_path": "SimAdapter", "init_args": runs}},
        "tasks": {"runs": {"class_path": "VQA", "init_args": {"train": ["shards/vqa"]}}},
    }  # fmt: skip
    found = located(tree, home / "runs" / "mine" / "recipe.yaml", Recipe)
    runs = {"vqa": str(home / "runs" / "vqa"), "gone": "runs/gone"}
    assert found["methods"]["fused"]["init_args"]["runs"] == runs
    assert found["tasks"]["runs"]["init_args"]["train"] == [str(home / "shards" / "vqa")]


# Which fields are paths.

HUB = {"path": "any", "config": "file", "tokenizer": "any"}
TASK = dict.fromkeys(("train", "evaluate", "test"), "data")
PATHS = {
    **dict.fromkeys(("T5", "Bart", "DualEncoder"), HUB),
    "Causal": {**HUB, "projector_weights": "file"},
    "CrossModal": {**HUB, "fusion_weights": "file"},
    "JointEncoder": {**HUB, "visual_weights": "file"},
    "ImageTextToText": {"path": "any", "config": "file", "processor": "any"},
    "VisualEmbeddingConfig": {"weights": "file"},
    "ClipVision": {"path": "any", "config": "file"},
    "ClipTokens": {"path": "any", "config": "file"},
    "ConvNet": {"weights": "file"},
    "Timm": {"weights": "file"},
    "HyperPELT": {"weights": "any"},
    "SimAdapter": {"runs": "any"},
    "LST": {"importance": "file"},
    "LinearHead": {"classes": "any"},
    "MLPHead": {"classes": "any"},
    "TextHead": {"classes": "any", "descriptions": "any"},
    "Decoding": {"answers": "any"},
    **dict.fromkeys(
        (
            "VQA", "TextVQA", "DirectAnswer", "Refer", "VisualGrounding", "GroundedCaption",
            "Grounding", "ImageClass", "Matching", "NLVR2", "Entailment", "VideoQA", "Caption",
            "VideoCaption", "Chat", "MaskedWords", "MultipleChoice", "SpanPrediction",
            "Retrieval",
        ),
        TASK,
    ),
    "GQA": {**TASK, "choices": "any"},
    "AlignmentConfig": {"data": "data"},
    "Recipe": {"start": "any"},
    "DataConfig": {"cache": "written"},
    "TrainingConfig": {"deepspeed": "file"},
}  # fmt: skip
"""Class -> its fields that name files and folders, and of what kind. A new field has the type
SourcePath, SourceFile or DataPath, and is added here."""


class PathField(NamedTuple):
    """A field whose type says that it names a file, and how a recipe sets it."""

    owner: str
    name: str
    kind: str
    tree: Any


def path_fields(
    hint: Any, owner: str = "", name: str = "", around: tuple[type, ...] = ()
) -> Iterator[PathField]:
    """All path fields below a type, at each place that a recipe has for them."""
    for mark in getattr(hint, "__metadata__", ()):
        if isinstance(mark, PathMark):
            yield PathField(owner, name, mark.kind, "files/it")
    if isinstance(hint, type) and is_dataclass(hint):
        for cls in concrete_classes(hint).values() if is_choice(hint) else [hint]:
            if not cls.__module__.startswith("vlds.") or cls in around:
                continue  # a class of another test; methods may hold methods
            for field, kind in field_types(cls).items():
                for found in path_fields(kind, cls.__name__, field, (*around, cls)):
                    tree = {field: found.tree}
                    if is_choice(hint):
                        tree = {"class_path": cls.__name__, "init_args": tree}
                    yield found._replace(tree=tree)
    else:
        *_, last = get_args(hint) or (None,)
        for part in [last] if get_origin(hint) is dict else get_args(hint):
            for found in path_fields(part, owner, name, around):
                form = {list: [found.tree], tuple: [found.tree], dict: {"x": found.tree}}
                yield found._replace(tree=form.get(get_origin(hint), found.tree))


EVERYWHERE = list(path_fields(Recipe))


def test_fields_that_are_paths() -> None:
    found: dict[str, dict[str, str]] = {}
    for field in EVERYWHERE:
        found.setdefault(field.owner, {})[field.name] = field.kind
    assert found == PATHS


def test_every_path_is_found_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home" / "files").mkdir(parents=True)
    (tmp_path / "home" / "files" / "it").touch()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for field in EVERYWHERE:
        tree = {**field.tree, "output": "runs/mine", "started_in": str(tmp_path / "home")}
        (before,) = file_names(tree, Recipe)
        (after,) = file_names(located(tree, tmp_path / "recipe.yaml", Recipe), Recipe)
        assert before.key.split(".")[-2 if field.name == "runs" else -1] == field.name
        assert (before.name, after.name) == ("files/it", str(tmp_path / "home" / "files" / "it"))
        assert after.key == before.key


MINE = """
from dataclasses import dataclass, field
from vlds.models.methods import Full
from vlds.runtime.checks import SourcePath

@dataclass(frozen=True, kw_only=True)
class FromNotes(Full):
    notes: SourcePath | None = None
    more: dict[str, list[SourcePath]] = field(default_factory=dict)
    remark: str = ""
"""


def open_with_own_class(home: Path) -> None:
    """Save a run whose method is of a user's file, and open it from elsewhere."""
    os.chdir(home)
    sys.path.insert(0, str(home))
    module = __import__("my_notes")
    name, there = "files/notes.txt", str(home / "files" / "notes.txt")
    mine = module.FromNotes(notes=name, more={"a": [name]}, remark=name)
    run = home / "runs" / "mine"
    save_recipe(replace(relative_recipe_of(home), methods={"mine": mine}), run / "recipe.yaml")
    os.chdir(home.parent / "elsewhere")
    found = load_recipe(run / "recipe.yaml").methods["mine"]
    assert found == module.FromNotes(notes=there, more={"a": [there]}, remark=name)


def test_a_class_in_a_file_of_the_user(home: Path) -> None:
    (home / "my_notes.py").write_text(MINE)
    (home / "files" / "notes.txt").touch()
    # In another process: here it would stay among the methods that messages list.
    process = multiprocessing.get_context("fork").Process(target=open_with_own_class, args=(home,))
    process.start()
    process.join()
    assert process.exitcode == 0


def test_a_run_may_begin_with_a_run(home: Path) -> None:
    """HyperPELT's `weights` are a folder, where other classes name a file."""
    run = home / "runs" / "mine"
    tree = {"methods": {"pelt": {"class_path": "HyperPELT", "init_args": {"weights": str(run)}}}}
    check_files(tree, Recipe)
    embedding = {"visual_embedding": {"weights": str(run)}}
    tree = {"model": {"class_path": "JointSeq2Seq", "init_args": embedding}}
    with pytest.raises(
        ValueError, match=rf"model.visual_embedding.weights: {run} is a folder; name a file"
    ):
        check_files(tree, Recipe)

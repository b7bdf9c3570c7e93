"""Recipes that build on another recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.toys.files import ROOT
from vlds.models.kinds.joint import JointSeq2Seq
from vlds.recipe.config import Recipe, parse_recipe, save_recipe
from vlds.recipe.paths import merged, read_merged


def write(file: Path, tree: dict[str, Any]) -> Path:
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return file


def test_mappings_are_merged_and_the_rest_is_replaced(tmp_path: Path) -> None:
    task = {"class_path": "VQA", "init_args": {"x": 1, "y": [2]}}
    write(tmp_path / "a.yaml", {"tasks": {"t": task}, "methods": {"adapter": {}}})
    changed = {"t": {"init_args": {"y": [3]}}, "u": 4}
    write(tmp_path / "b.yaml", {"base": "a.yaml", "tasks": changed, "methods": {}})
    last = write(tmp_path / "c.yaml", {"base": "b.yaml", "seed": 5})
    task["init_args"] = {"x": 1, "y": [3]}
    expected = {"tasks": {"t": task, "u": 4}, "methods": {}, "seed": 5}
    assert read_merged(last, Recipe) == expected


def test_another_class_takes_nothing_over() -> None:
    old = {"class_path": "T5", "init_args": {"path": "a"}}
    new = {"class_path": "Bart", "init_args": {"config": "b"}}
    assert merged({"backbone": old}, {"backbone": new}, ()) == {"backbone": new}
    same = {"class_path": "T5", "init_args": {"config": "b"}}
    both = {"class_path": "T5", "init_args": {"path": "a", "config": "b"}}
    assert merged({"backbone": old}, {"backbone": same}, ()) == {"backbone": both}


def test_null_leaves_a_task_out(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", {"tasks": {"vqa": 1, "gqa": 2, "caption": 3}})
    fewer = write(tmp_path / "b.yaml", {"base": "a.yaml", "tasks": {"vqa": None, "caption": None}})
    assert read_merged(fewer, Recipe) == {"tasks": {"gqa": 2}}
    again = write(tmp_path / "c.yaml", {"base": "b.yaml", "tasks": {"vqa": 4}})
    assert read_merged(again, Recipe) == {"tasks": {"gqa": 2, "vqa": 4}}
    wrong = write(tmp_path / "d.yaml", {"base": "b.yaml", "tasks": {"gqaa": None}})
    with pytest.raises(ValueError, match=r"tasks.gqaa: null leaves out .* mean 'gqa'\? it has gqa"):
        read_merged(wrong, Recipe)


def test_null_takes_a_value_of_the_base_away(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", {
        "base": "recipes/demo.yaml",
        "training": {"evaluate_every": 50, "log_every": 7},
        "data": {"temperature": 2.0},
    })  # fmt: skip
    first = parse_recipe(["--config", str(tmp_path / "a.yaml")])
    assert first.training.evaluate_every == 50
    changes: dict[str, Any] = {
        "training": {"evaluate_every": None},
        "data": {"temperature": None},  # null is one of its values
        "model": {"init_args": {"visual_embedding": None, "train_norms": None}},
        "tasks": {"vqa": {"init_args": {"weight": None}}},
    }
    last = write(tmp_path / "b.yaml", {"base": "a.yaml", **changes})
    recipe = parse_recipe(["--config", str(last)])
    assert (recipe.training.evaluate_every, recipe.training.log_every) == (0, 7)
    assert recipe.data.temperature is None
    assert isinstance(first.model, JointSeq2Seq)
    assert isinstance(recipe.model, JointSeq2Seq)
    assert first.model.visual_embedding.boxes != recipe.model.visual_embedding.boxes
    assert (recipe.tasks["vqa"].weight, list(recipe.tasks)) == (1.0, list(first.tasks))
    over = write(tmp_path / "c.yaml", {"training.evaluate_every": None})
    for words in (["--config", str(over)], ["--training.log_every", "9", "--config", str(over)]):
        recipe = parse_recipe(["--config", str(tmp_path / "a.yaml"), *words])
        assert recipe.training.evaluate_every == 0
    needed = write(tmp_path / "d.yaml", {"base": "a.yaml", "model": None})
    with pytest.raises(ValueError, match=r"^model is required"):
        parse_recipe(["--config", str(needed)])
    # Without a value to take away, it is a mistake.
    write(tmp_path / "e.yaml", {"base": "a.yaml", "training": {"log_every": None, "steps": 5}})
    wrong = write(tmp_path / "f.yaml", {"base": "e.yaml", "training": {"log_every": None}})
    with pytest.raises(ValueError, match=r"training.log_every: got null; give a value"):
        parse_recipe(["--config", str(wrong)])


@pytest.mark.parametrize("words", [[], ["--training.log_every", "null"]])
def test_null_on_the_command_line_is_that_of_a_file(words: list[str], tmp_path: Path) -> None:
    two = {"adapter": {"class_path": "Adapter"}, "lora": {"class_path": "LoRA"}}
    training = {"log_every": 7}
    write(tmp_path / "a.yaml", {"base": "recipes/demo.yaml", "methods": two, "training": training})
    nulls = ["--methods.lora", "null", "--tasks.gqa", "null", "--tasks.vqa.weight=null"]
    recipe = parse_recipe([str(tmp_path / "a.yaml"), *nulls, *words], "vlds train")
    assert [*recipe.methods] == ["adapter"]
    assert [*recipe.tasks] == ["vqa", "nlvr2", "caption"]
    assert (recipe.tasks["vqa"].weight, recipe.training.log_every) == (1.0, 20 if words else 7)
    for key, said in (
        ("methods.lorra", "methods.lorra: .* did you mean 'lora'"),
        ("tasks.vqaa", "tasks.vqaa: .* did you mean 'vqa'"),
        ("model", "model is required"),
        ("training.stepz", "unknown key 'training.stepz'"),
    ):
        with pytest.raises(ValueError, match=said):
            parse_recipe([str(tmp_path / "a.yaml"), f"--{key}", "null"], "vlds train")


def test_the_base_lies_beside_the_recipe_or_comes_with_vlds(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"  # plain YAML reads 1e-3 as a string
    own.write_text("base: recipes/demo.yaml\noptimizer: {learning_rate: 1e-3}\n", "utf-8")
    recipe = parse_recipe(["--config", str(own), "--seed", "3"])
    assert recipe.optimizer.learning_rate == 0.001
    assert (recipe.seed, list(recipe.methods)) == (3, ["adapter"])
    save_recipe(recipe, tmp_path / "saved.yaml")
    assert "base" not in yaml.safe_load((tmp_path / "saved.yaml").read_text("utf-8"))
    assert parse_recipe(["--config", str(tmp_path / "saved.yaml")]) == recipe


def test_mistakes(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("base: a.yaml", "utf-8")
    for text, message in (
        ("base: b.yaml", r"base: a.yaml -> b.yaml -> a.yaml is a circle"),
        ("base: nowhere.yaml", r"no such file: nowhere\.yaml"),
        ("base: recipes/demo.yaml\nsead: 3", r"sead.*seed"),
        ("base: recipes/demo.yaml\noutput: [a\n", r"a.yaml, line 3: not YAML"),
    ):
        (tmp_path / "a.yaml").write_text(text, "utf-8")
        with pytest.raises(ValueError, match=message):
            parse_recipe(["--config", str(tmp_path / "a.yaml")])


# Recipes say in their second line what they need from the Hugging Face hub.

PARTS = {"lora.yaml"}
"""Recipes without a model, which others build on."""


def test_recipes_say_what_they_need() -> None:
    files = sorted((ROOT / "recipes").rglob("*.yaml"))
    assert len(files) > 100
    wrong = {}
    for file in files:
        line = file.read_text("utf-8").splitlines()[1]
        assert line.startswith("# Needs "), f"{file}: its second line does not say what it needs"
        if file.name in PARTS:
            continue
        places = parse_recipe([str(file)]).model.read_files
        # A run's folder may be missing here; a name without an ending is one on the hub.
        names = [place for place in places if not place.startswith(("runs/", "models/"))]
        names = [name for name in names if not Path(name).exists() and not is_file(name)]
        unsaid = [name for name in names if name not in line]
        if unsaid or (names and "no hub" in line):
            wrong[file.name] = unsaid
    assert wrong == {}


def is_file(name: str) -> bool:
    """True for what ends like a file of weights or of a tokenizer."""
    return Path(name).suffix in {".model", ".safetensors", ".json", ".pt"}

"""The JSON Schema of recipes accepts every recipe that vlds brings and refuses what people write by
mistake, as vlds does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from tests.toys.files import ROOT
from vlds.cli.main import run_command
from vlds.cli.schema import KINDS
from vlds.recipe.build import build, to_tree
from vlds.recipe.config import Recipe, parse_recipe

FILES = {"recipe": ROOT / "recipes" / "recipe.schema.json",
         "sweep": ROOT / "sweeps" / "sweep.schema.json"}  # fmt: skip
GOOD = """
output: runs/mine
model:
  class_path: JointSeq2Seq
  init_args:
    backbone: {class_path: T5, init_args: {config: recipes/backbones/t5_demo.json}}
    vision: {class_path: ConvNet, init_args: {image_size: 48, grid: 3}}
methods:
  adapter: {class_path: Adapter, init_args: {reduction: 4}}
tasks:
  vqa: {class_path: VQA, init_args: {train: [shards/a], evaluate: [shards/b]}}
data: {global_batch_size: 8}
optimizer: {learning_rate: 1e-3}
training: {steps: 10, deepspeed: ds_configs/zero2.json}
"""
MISTAKES = {
    "a misspelt section": ("optimiser", {"learning_rate": 0.1}),
    "a misspelt key": ("optimizer.learning_rte", 0.1),
    "a word for a number": ("training.steps", "many"),
    "zero of what must be one": ("data.global_batch_size", 0),
    "less than nothing": ("optimizer.learning_rate", -0.1),
    "more than all": ("optimizer.warmup_ratio", 500),
    "an unknown word": ("training.precision", "float16"),
    "a number for true": ("training.reproducible", 1),
    "one data set for a list": ("tasks.vqa.init_args.train", "shards/a"),
    "one number for two": ("optimizer.betas", 0.9),
    "settings in place of their file": ("training.deepspeed", {"zero_optimization": {}}),
    "a number in place of a section": ("data", 256),
    "a list in place of names": ("methods", [{"class_path": "Adapter"}]),
    "a misspelt class": ("methods.adapter.class_path", "Adaptor"),
    "a class of another kind": ("tasks.vqa.class_path", "Adapter"),
    "another class's argument": ("methods.adapter.init_args.rank", 8),
    "an argument next to its class": ("methods.adapter.reduction", 4),
    "a choice without its class": ("methods.lora", {"init_args": {"rank": 8}}),
    "a misspelt argument of an inner class": ("model.init_args.vision.init_args.size", 48),
    "an argument's wrong type": ("methods.adapter.init_args.reduction", "four"),
    "nothing where something belongs": ("output", None),
}


@pytest.fixture(scope="module")
def check() -> Draft7Validator:
    """Checks recipes by the shipped schema."""
    schema = json.loads(FILES["recipe"].read_text("utf-8"))
    Draft7Validator.check_schema(schema)
    return Draft7Validator(schema)


@pytest.mark.parametrize("kind", KINDS)
def test_the_shipped_schema_is_that_of_the_dataclasses(kind: str, tmp_path: Path) -> None:
    assert run_command(["schema", kind, "--out", str(tmp_path / "schema.json")]) == 0
    shipped = json.loads(FILES[kind].read_text("utf-8"))
    written = json.loads((tmp_path / "schema.json").read_text("utf-8"))
    # The number in an environment is that of its last installation.
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert f'version = "{shipped["$id"].split(":")[2]}"' in project
    names = ("$id", "title")
    different = f"write it again: vlds schema {kind} --out {FILES[kind].relative_to(ROOT)}"
    assert {k: v for k, v in written.items() if k not in names} == {
        k: v for k, v in shipped.items() if k not in names
    }, different


@pytest.mark.parametrize("kind", KINDS)
def test_it_accepts_every_file_and_each_names_it(kind: str) -> None:
    validator = Draft7Validator(json.loads(FILES[kind].read_text("utf-8")))
    files = sorted(FILES[kind].parent.rglob("*.yaml"))
    assert len(files) > 20
    for file in files:
        text = file.read_text("utf-8")
        _, _, name = text.splitlines()[0].partition("# yaml-language-server: $schema=")
        assert (file.parent / name).resolve() == FILES[kind], file
        faults = [f"{list(e.path)}: {e.message:.200}" for e in validator.iter_errors(read(text))]
        assert faults == [], file


def test_it_accepts_what_runs_save(check: Draft7Validator) -> None:
    names = ("demo", "demo_few_shot", "demo_cross_modal", "related/demo_meta_adapter", "easy_vqa")
    for name in names:
        recipe = parse_recipe([str(ROOT / "recipes" / f"{name}.yaml")])
        tree = json.loads(json.dumps(to_tree(recipe)))
        assert [error.message for error in check.iter_errors(tree)] == []
    part = {"base": "mine.yaml", "tasks": {"vqa": None, "gqa": {"init_args": {"weight": 2}}}}
    mine = {"methods": {"own": {"class_path": "mine.Method", "init_args": {"width": 3}}}}
    for tree in (read(GOOD), part, mine, {"optimizer.betas": [0.9, 0.98]}):
        assert [error.message for error in check.iter_errors(tree)] == []


@pytest.mark.parametrize("name", MISTAKES)
def test_it_refuses_what_vlds_refuses(name: str, check: Draft7Validator) -> None:
    place, value = MISTAKES[name]
    tree = inner = read(GOOD)
    *above, last = place.split(".")
    for key in above:
        inner = inner.setdefault(key, {})
    inner[last] = value
    with pytest.raises(ValueError, match=str(value) if last == "class_path" else last):
        build(Recipe, tree)
    assert list(check.iter_errors(tree)), "the schema accepts it"


def read(text: str) -> Any:
    """A recipe as editors' servers read it."""
    return yaml.safe_load(text)


def test_what_a_sweep_sets_is_refused() -> None:
    """But a prepared recipe may have a seed of its own, as that of the merge study has."""
    check = Draft7Validator(json.loads(FILES["sweep"].read_text("utf-8")))
    base = {"base": "recipes/demo.yaml"}
    for key, value, places in (("seed", 1, ["recipes"]), ("output", "a", ["recipes", "prepare"])):
        for place in places:
            tree = {"output": "runs/s", "seeds": [0], "recipes": {"row": base}}
            assert check.is_valid(tree)
            assert not check.is_valid(tree | {place: {"row": base | {key: value}}})

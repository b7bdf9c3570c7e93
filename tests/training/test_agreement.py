"""Ranks that would not run the same thing, or would with damaged weights, are stopped before the
first step."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from shutil import copyfile, copytree
from typing import Any

import pytest
import torch

from data_prep.packing.writer import write_dataset
from tests.toys.rank_pool import RankPool
from tests.toys.recipes import with_model, with_task
from tests.toys.world import records, world_recipe
from vlds.evaluation.sources import check_frozen_files
from vlds.models.loading.model_files import damaged_source
from vlds.recipe.config import Recipe
from vlds.runtime.deepspeed_start import start_ranks
from vlds.runtime.json_files import DESCRIPTION, write_manifest
from vlds.runtime.ranks import Ranks
from vlds.training import agreement
from vlds.training.loop import train
from vlds.training.prepare import prepare


def start(recipes: list[Recipe]) -> str:
    """What `vlds train` says on this rank, whose recipe differs."""
    try:
        return str(train(recipes[int(os.environ["RANK"])]))
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize(
    ("key", "values"), [("seed", (7, 8)), ("model.backbone.dropout", (None, 0.3))]
)
def test_another_recipe(
    key: str, values: tuple[Any, Any], world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    recipe = world_recipe(world, tmp_path / "run")
    backbone = replace(recipe.model.backbone, dropout=values[1])
    other = replace(recipe, seed=8) if key == "seed" else with_model(recipe, backbone=backbone)
    results = ranks2.run(start, [recipe, other], timeout=60)
    assert f"{key}: {values[0]}, on rank 1 {values[1]}" in results[0]
    assert results[1] == results[0]
    assert results[0].endswith("with the same command line, files and versions.")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_other_files_under_the_same_names(world: Path, ranks2: RankPool, tmp_path: Path) -> None:
    """Each rank reads through its own link, as hosts read their own folders."""
    recipes = []
    for rank, seed in enumerate((1, 2)):
        place = tmp_path / f"host{rank}"
        write_dataset(
            place / "vqa", name="vqa", kind="vqa", split="train",
            records=[r for r in records("vqa", 24) if rank == 0 or r.id != "vqa-3"],
        )  # fmt: skip
        zero = json.loads((world / "zero2.json").read_text()) | {"wall_clock_breakdown": seed == 1}
        (place / "zero2.json").write_text(json.dumps(zero))
        recipe = world_recipe(world, tmp_path / "run")
        recipes.append(with_task(recipe, "vqa", train=[str(place / "vqa")]))
    said, _ = ranks2.run(start, recipes, timeout=60)
    assert "tasks.vqa.train: " in said
    assert f"data set vqa: {tmp_path}/host0/vqa" in said


def differing(facts: Sequence[agreement.Facts]) -> list[str]:
    return agreement.differences([("host", each) for each in facts])


def test_another_version_of_the_code(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = {"code": agreement.code_digest(), "seed": 1}
    assert differing([one, dict(one)]) == []
    other = {"code": "another", "seed": 1}
    assert differing([one, one, other]) == [f"code: {one['code']}, on rank 2 another"]
    many = [{str(n): 0 for n in range(9)}, {str(n): 1 for n in range(9)}]
    assert differing(many)[-1] == "and 4 more"
    (line,) = agreement.differences([("a", one), ("b", one | {"seed": 2})])
    assert line == "seed: 1, on rank 1 (b) 2"


def facts(recipe: Recipe) -> agreement.Facts:
    ranks = Ranks(0, 1, 0, 1, torch.device("cpu"))
    return agreement.facts_of(recipe, prepare(recipe, ranks, False), "new")


def test_what_else_decides_what_is_computed(world: Path, tmp_path: Path) -> None:
    """The order of tasks, samples in quarantine, the content of a tokenizer, a task's own code."""
    shards = tmp_path / "vqa"
    copytree(world / "vqa", shards)
    recipe = with_task(world_recipe(world, tmp_path / "run"), "vqa", train=[str(shards)])
    spiece, code = tmp_path / "own.model", tmp_path / "own_task.py"
    copyfile(world / "spiece.model", spiece)
    recipe = with_model(recipe, backbone=replace(recipe.model.backbone, tokenizer=str(spiece)))
    code.write_text("from vlds.tasks import VQA\nclass Own(VQA): pass\n")
    sys.path.insert(0, str(tmp_path))
    try:
        own = importlib.import_module("own_task").Own
    finally:
        sys.path.remove(str(tmp_path))
    recipe = replace(recipe, tasks=recipe.tasks | {"own": own(**vars(recipe.tasks["vqa"]))})
    before = facts(recipe)
    reordered = replace(recipe, tasks=dict(reversed(recipe.tasks.items())))
    spiece.write_bytes(spiece.read_bytes() + b"\0")
    code.write_text(code.read_text() + "# other\n")
    bad = {"shard": "vqa-train-00000.tar", "i": 1, "reason": "damaged"}
    (shards / "quarantine.jsonl").write_text(json.dumps(bad) + "\n")
    said = "\n".join(differing([before, facts(reordered)]))
    assert "code of own_task (sha256): " in said
    assert "content of model.backbone.tokenizer (sha256): " in said
    assert f"data set vqa: {shards}, samples in quarantine: nothing, on rank 1 [1]" in said
    assert "order of the tasks: ['vqa'" in said


def written(folder: Path) -> Path:
    """A folder such as `vlds convert hf` writes."""
    (folder / "vision").mkdir(parents=True)
    for name in (DESCRIPTION, "model.safetensors", "tokenizer.json", "vision/model.safetensors"):
        (folder / name).write_bytes(name.encode() * 100)
    write_manifest(folder)
    return folder


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", DESCRIPTION])
def test_a_flipped_bit_is_named(tmp_path: Path, name: str) -> None:
    folder = written(tmp_path / "hf")
    assert damaged_source(str(folder)) is None
    flip(folder / name)
    assert damaged_source(str(folder)) == (
        f"{folder}: {name} is not what was written (size or sha256 differ); copy the folder again "
        "from where it was written"
    )


def test_only_what_is_named_is_read(tmp_path: Path) -> None:
    """A file in the folder, or CLIP's own folder below it."""
    folder = written(tmp_path / "hf")
    flip(folder / "tokenizer.json")
    assert damaged_source(str(folder / "model.safetensors")) is None
    assert damaged_source(str(folder / "vision")) is None
    flip(folder / "vision" / "model.safetensors")
    assert "vision/model.safetensors is not" in str(damaged_source(str(folder / "vision")))
    assert "does not list other" in str(damaged_source(str(folder / "other")))


def test_folders_of_others_have_no_hashes(tmp_path: Path) -> None:
    folder = written(tmp_path / "hf")
    (folder / "manifest.json").write_text("[]", encoding="utf-8")
    assert "manifest.json is not a list of files" in str(damaged_source(str(folder)))
    (folder / "manifest.json").unlink()
    assert "has no manifest.json" in str(damaged_source(str(folder)))
    (folder / DESCRIPTION).unlink()
    assert damaged_source(str(folder)) is None
    assert damaged_source("google/flan-t5-base") is None


def check(world: Path, folder: Path) -> str:
    """What a rank says of a vision encoder in the folder."""
    recipe = world_recipe(world, folder / "run")
    vision = replace(recipe.model.vision, weights=str(folder / "hf" / "model.safetensors"))
    try:
        check_frozen_files(with_model(recipe, vision=vision), start_ranks(60))
    except ValueError as error:
        return str(error)
    return "well"


def test_all_ranks_stop(ranks2: RankPool, world: Path, tmp_path: Path) -> None:
    folder = written(tmp_path / "hf")
    assert ranks2.run(check, world, tmp_path) == ["well", "well"]
    flip(folder / "model.safetensors")
    said = ranks2.run(check, world, tmp_path)
    assert said[0] == said[1]
    assert said[0].startswith(f"{folder}: model.safetensors is not what was written")

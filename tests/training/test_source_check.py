"""A changed byte in frozen weights is named before training; on all ranks, though one has
looked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.toys.rank_pool import RankPool
from tests.toys.recipes import with_model
from tests.toys.world import world_recipe
from vlds.evaluation.sources import check_frozen_files
from vlds.models.loading.model_files import damaged_source
from vlds.runtime.deepspeed_start import start_ranks
from vlds.runtime.json_files import DESCRIPTION, write_manifest


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


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    folder = written(tmp_path / "hf")
    (folder / "model.safetensors").unlink()
    assert f"{folder}: model.safetensors is missing" in str(damaged_source(str(folder)))


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

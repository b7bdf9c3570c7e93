"""Recipes say in their second line what they need from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from tests.toys.files import ROOT
from vlds.recipe.config import parse_recipe

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

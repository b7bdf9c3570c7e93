"""Whatever stands in a state folder or a recipe: an error that a user can read, and nothing is
written outside."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.toys.strategies import FAST, JSON
from vlds.recipe.config import load_recipe
from vlds.runtime.json_files import MANIFEST, damage, sha256
from vlds.training import checkpoint
from vlds.training.states import PROGRESS, TENSORS, Progress, newest

NAMES = st.sampled_from(
    [
        TENSORS,
        PROGRESS,
        "../victim",
        "/etc/passwd",
        "a/../../victim",
        "",
        ".",
        "..",
        "\0",
        "a" * 5000,
    ]
) | st.text(max_size=10)
ENTRIES = st.dictionaries(NAMES, JSON | st.fixed_dictionaries({"bytes": JSON, "sha256": JSON}))


def read(folder: Path) -> None:
    """Everything that resuming reads; a state may turn out to be whole, and then it is loaded."""
    found, complaints = newest(folder)
    assert (found is None) == bool(complaints)
    if found is not None:
        with contextlib.suppress(ValueError):  # its tensors may still be none
            checkpoint.load(found)
    else:
        with pytest.raises(ValueError, match="step-00000007"):
            checkpoint.load(folder / "step-00000007")


def write(folder: Path, files: dict[str, bytes]) -> Path:
    """A state folder with these files, next to a file that must not change."""
    (folder / "victim").write_text("untouched")
    state = folder / "state" / "step-00000007"
    state.mkdir(parents=True)
    for name, content in files.items():
        (state / name).write_bytes(content)
    return state


def tree(folder: Path) -> dict[str, str]:
    """Every file and its content's hash."""
    return {str(path): sha256(path) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@given(entries=ENTRIES | JSON)
@example(entries={"../victim": {"bytes": 9, "sha256": ""}})
@FAST
def test_hostile_manifests(entries: Any) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        text = json.dumps(entries).encode()
        state = write(folder, {MANIFEST: text, TENSORS: b"x", PROGRESS: b"{}"})
        before = tree(folder)
        assert damage(state, (TENSORS, PROGRESS)) is not None
        read(folder / "state")
        assert tree(folder) == before
        checkpoint.save(folder / "state", {"a": {"fp32": torch.ones(1)}}, Progress(8, {}), keep=1)
        assert (folder / "victim").read_text() == "untouched"
        assert [path.name for path in folder.iterdir() if path.name != "state"] == ["victim"]
        assert [path.name for path in (folder / "state").iterdir()] == ["step-00000008"]


RECIPES = JSON | st.dictionaries(
    st.sampled_from(
        ["output", "seed", "backbone", "vision", "methods", "tasks", "data", "training", "base"]
    ),
    JSON | st.fixed_dictionaries({"class_path": st.text(max_size=10), "init_args": JSON}),
)


@example(recipe="base: .")
@example(recipe="base: " + "a" * 5000)
@example(recipe="[" * 5000)
@given(recipe=RECIPES.map(yaml.safe_dump) | st.text(max_size=60))
@settings(FAST, max_examples=60)
def test_recipes(recipe: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "recipe.yaml"
        file.write_text(recipe, encoding="utf-8")
        before = tree(Path(scratch))
        with pytest.raises(ValueError, match=r"\w"):
            load_recipe(file)
        assert tree(Path(scratch)) == before

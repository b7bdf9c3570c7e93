"""No process of vlds imports from the working directory, where a stranger's files may lie."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from tests.toys.world import world_recipe
from vlds.recipe.config import save_recipe

SPY = "import os, sys; os.write(2, f'{__name__} ran in {sys.orig_argv}'.encode()); os._exit(66)"
MODULES = [*sys.stdlib_module_names, *packages_distributions(), "vlds"]
TRAIN = "train run.yaml --training.steps 1 --training.save_every 1"
COMMANDS = {
    "sweep": ("sweep sweep.yaml --ranks 1 --at-once 2", ""),
    "ranks that start again": (f"{TRAIN} --ranks 2 --training.reproducible true", ""),
    "DeepSpeed's launcher": (TRAIN, "--log_level critical"),
    "proof": (f"{TRAIN} --prove", ""),
    "runs of a proof": ("prove run.yaml --only leaves-right", ""),
    "pool": ("data demo --out drawn --scenes 512", ""),
}


@pytest.mark.slow
@pytest.mark.launcher
@pytest.mark.parametrize("name", COMMANDS)
def test_what_lies_there_does_not_run(name: str, world: Path, tmp_path: Path) -> None:
    for module in filter(str.isidentifier, MODULES):
        (tmp_path / f"{module}.py").write_text(SPY)
    save_recipe(world_recipe(world, tmp_path / "run"), tmp_path / "run.yaml")
    sweep = {"output": "table", "recipes": {"a": {"base": "run.yaml", "training": {"steps": 1}}}}
    sweep |= {"seeds": [1], "scores": {"vqa": "soft_score"}}
    sweep |= {"prepare": {"made": "python -c \"import csv; open('made', 'x')\""}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    words, launcher = COMMANDS[name]
    # As installed: `python -m vlds` would have the folder on its path at first.
    program = [sys.executable, str(Path(sys.executable).with_name("vlds")), *words.split()]
    ended = subprocess.run(
        program, cwd=tmp_path, capture_output=True, text=True, timeout=400,
        env=os.environ | {"VLDS_LAUNCHER_ARGS": launcher, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert (ended.returncode, " ran in " in ended.stderr) == (0, False), ended.stderr + ended.stdout

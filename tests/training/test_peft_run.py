"""Whole runs with methods of peft: resumed, and opened again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.toys.rank_pool import RankPool
from tests.toys.resumed_runs import check_resume
from tests.toys.world import world_recipe
from vlds.artifact import load_run
from vlds.convert.verify import logits
from vlds.models.methods import Peft
from vlds.recipe.config import Recipe

pytest.importorskip("peft", reason="peft is not installed: pip install 'vlds[peft]'")
SETTINGS: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
}


def recipe_with(word: str, stage: int, world: Path, folder: Path) -> Recipe:
    """Ten steps of two tasks."""
    settings = {"r": 2, "lora_alpha": 2, "lora_dropout": 0.1, **SETTINGS[word]}
    method = Peft(type="LORA", settings=settings, roles=["attn_q", "attn_v"])
    return replace(world_recipe(world, folder / "whole", stage), methods={"method": method})


def logits_elsewhere(run: Path) -> Tensor:
    """Logits of a run that another process has loaded."""
    return logits(load_run(run), "vqa", ())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "stage"),
    [
        ("pissa", 2),
        pytest.param("pissa", 3, marks=pytest.mark.slow),
        pytest.param("dora", 2, marks=pytest.mark.slow),
        pytest.param("dora", 3, marks=pytest.mark.slow),
    ],
)
def test_ten_steps_are_five_and_five(
    word: str, stage: int, world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    recipe = recipe_with(word, stage, world, tmp_path)
    check_resume(ranks2, recipe, tmp_path)
    run = Path(recipe.output)
    loaded = load_run(run)
    stored = load_file(run / "artifact" / "weights.safetensors")
    assert loaded.model.changed <= stored.keys()
    assert bool(loaded.model.changed) == (word == "pissa")
    expected = logits(loaded, "vqa", ())
    assert expected.any()
    assert all(torch.equal(found, expected) for found in ranks2.run(logits_elsewhere, run))

"""The recipe fills DeepSpeed's "auto" fields, and contradictions are refused by name."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toys.world import world_recipe
from vlds.data.order.mixed_order import BatchCut
from vlds.training.deepspeed_config import (
    SMALL,
    complete_deepspeed_config,
    fit_sizes,
)


def completed(
    folder: Path, precision: str = "bf16", stage: int = 2, **fields: Any
) -> dict[str, Any]:
    """A file with these fields, completed for a recipe."""
    file = folder / "mine.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": stage}, **fields}))
    recipe = world_recipe(folder, folder / "run", precision=precision)
    return complete_deepspeed_config(file, recipe, BatchCut(2, 2))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_gradients_are_summed_in_fp32(precision: str, tmp_path: Path) -> None:
    config = completed(tmp_path, precision)
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert config["communication_data_type"] == "fp32"
    assert completed(tmp_path, communication_data_type="auto") == completed(tmp_path)
    with pytest.raises(
        ValueError, match=r"mine.json says data_types.grad_accum_dtype = bf16, .*fp32"
    ):
        completed(tmp_path, data_types={"grad_accum_dtype": "bf16"})


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_stage_1_does_not_go_with_half_precision(precision: str, tmp_path: Path) -> None:
    assert completed(tmp_path, "fp32", 1)["zero_optimization"] == {"stage": 1}
    with pytest.raises(ValueError, match=rf"stage = 1, .*precision {precision}; set 2"):
        completed(tmp_path, precision, 1)


@pytest.mark.parametrize(
    ("fp16", "told"),
    [
        ([], "has fp16 = []; give settings"),
        ({"loss_scale_window": 0}, "fp16.loss_scale_window = 0; give a whole number from 1 to "),
        ({"min_loss_scale": 0.5}, "fp16.min_loss_scale = 0.5; give a whole number"),
        ({"hysteresis": True}, "fp16.hysteresis = True; give a whole number"),
        ({"initial_scale_power": 64}, "fp16.initial_scale_power = 64; give a whole number from 0"),
        ({"initial_scale_power": 2, "min_loss_scale": 8}, "= 8, and begins at 4 (2 ^ fp16.initial"),
        ({"loss_scale": -1}, "fp16.loss_scale = -1; give the number by which"),
        ({"loss_scale": "dynamic"}, "fp16.loss_scale = 'dynamic'; give the number"),
        ({"enabled": True}, "says fp16.enabled = True, the recipe says False"),
    ],
)
def test_a_wrong_loss_scale_is_found_before_the_start(fp16: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        completed(tmp_path, fp16=fp16)
    scaled = completed(tmp_path, "fp16", fp16={"loss_scale": 128, "initial_scale_power": 0})
    assert scaled["fp16"] == {"loss_scale": 128, "initial_scale_power": 0, "enabled": True}
    assert scaled["bf16"]["enabled"] is False


def test_sizes_fit_the_model() -> None:
    layers = torch.nn.ModuleList([torch.nn.Linear(3, 5), torch.nn.Linear(4, 7)])
    layers[1].requires_grad_(False)
    model = torch.nn.ModuleDict({"table": torch.nn.Embedding(9, 9), "layers": layers})
    model["table"].requires_grad_(False)
    given = {
        "zero_optimization": {
            "stage": 3,
            "reduce_bucket_size": 5e7,
            "stage3_prefetch_bucket_size": "auto",
            "stage3_max_live_parameters": "auto",
            "stage3_max_reuse_distance": 11,
        },
        "other": 1,
    }
    before = deepcopy(given)
    assert fit_sizes(given, model) == {
        "zero_optimization": {
            "stage": 3,
            "reduce_bucket_size": 20,
            "allgather_bucket_size": 20,
            "overlap_comm": True,
            "stage3_prefetch_bucket_size": SMALL,
            "stage3_max_live_parameters": SMALL,
            "stage3_max_reuse_distance": 11,
        },
        "other": 1,
    }
    there = fit_sizes(given, model, on_gpu=True)["zero_optimization"]
    assert there["stage3_prefetch_bucket_size"] == 35
    assert there["stage3_max_live_parameters"] == 70
    assert given == before
    small = {"zero_optimization": {"stage": 2, "reduce_bucket_size": 4}}
    assert fit_sizes(small, model)["zero_optimization"]["reduce_bucket_size"] == 4

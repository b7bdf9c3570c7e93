"""The recipe fills DeepSpeed's "auto" fields, and contradictions are refused by name."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toys.files import ROOT
from tests.toys.world import world_recipe
from vlds.data.order.mixed_order import BatchCut
from vlds.runtime.process import find, shipped
from vlds.training import deepspeed_config
from vlds.training.deepspeed_config import (
    BUCKETS,
    LIVE_LAYERS,
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


def test_a_file_may_choose_half_the_traffic(tmp_path: Path) -> None:
    config = completed(tmp_path, communication_data_type="bf16")
    assert config["communication_data_type"] == "bf16"
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}


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


def test_a_bucket_is_what_trains_in_one_layer_and_even(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepspeed_config, "LEAST_BUCKET", 1)
    layers = torch.nn.ModuleList([torch.nn.Linear(3, 5, bias=False), torch.nn.Linear(4, 7)])
    zero = {"zero_optimization": {"stage": 2}}
    for trained, size in ((layers, 36), (layers[0], 16), (layers[1].bias, 8)):
        layers.requires_grad_(False)
        trained.requires_grad_(True)
        fitted = fit_sizes(zero, layers)["zero_optimization"]
        assert [fitted[name] for name in BUCKETS] == [size, size]
        # On a GPU all that trains is one bucket, whose message nothing is left to hide.
        trains = sum(weight.numel() for weight in layers.parameters() if weight.requires_grad)
        assert fitted["overlap_comm"] == (size < trains)
        there = fit_sizes(zero, layers, on_gpu=True)["zero_optimization"]
        assert [there[name] for name in BUCKETS] == [trains + trains % 2] * 2
        assert not there["overlap_comm"]


@pytest.mark.parametrize("name", [name for name in shipped("ds_configs") if name.endswith(".json")])
def test_shipped_files_leave_sizes_to_us_and_the_rest_to_the_recipe(name: str) -> None:
    config = json.loads(find(name).read_text("utf-8"))
    zero = config["zero_optimization"]
    assert zero["stage"] == int(Path(name).name[len("zero")])
    sizes = {*BUCKETS[:1], *LIVE_LAYERS} if zero["stage"] == 3 else {*BUCKETS}
    assert {key: zero[key] for key in sizes} == dict.fromkeys(sizes, "auto")
    of_recipe = {"train_batch_size", "gradient_accumulation_steps", "gradient_clipping"}
    assert {key: config[key] for key in of_recipe} == dict.fromkeys(of_recipe, "auto")


PROGRAM = """
import sys
from deepspeed.runtime import compiler
from vlds.runtime.deepspeed_start import import_muon
own = compiler.compile
import_muon()
from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam
print(compiler.compile is own, "torch._inductor.compile_fx" in sys.modules)
"""


@pytest.mark.slow
def test_the_compiler_is_not_imported() -> None:
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "True False"

"""Training in fp16: what is scaled, which steps are skipped, and where a resumed run goes on.

DeepSpeed refuses fp16 on this CPU, though torch computes in it, so these tests lift the refusal.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

from tests.toys.engines import Case, global_batch, make_case, own_micro_batches, start_engine
from tests.toys.rank_jobs import check_complaint, run_recipe
from tests.toys.rank_pool import RankPool
from tests.toys.resumed_runs import check_resume, losses
from tests.toys.world import world_recipe
from vlds.data.order.mixed_order import BatchCut
from vlds.recipe.config import MetaConfig, Recipe
from vlds.training.deepspeed_config import (
    SMALL,
    complete_deepspeed_config,
    fit_sizes,
)
from vlds.training.engine import State
from vlds.training.states import LossScale, read_progress, state_folders

STEPS = 6
EACH_STEP = {"initial_scale_power": 8, "loss_scale_window": 1, "hysteresis": 1}
"""The loss scale doubles after each step but the first."""
TOO_LARGE = {"initial_scale_power": 40, "loss_scale_window": 100, "hysteresis": 2}


@contextmanager
def fp16_computes() -> Iterator[None]:
    """Let DeepSpeed and a run's checks take fp16 here."""
    with mock.patch.object(CPU_Accelerator, "is_fp16_supported", return_value=True):
        yield


def train(
    case: Case, steps: int = STEPS, before: tuple[State, LossScale] | None = None, start: int = 0
) -> dict[str, Any]:
    """The reports of an engine's steps and its state at the end; it may go on after `start` steps
    from the state `before`."""
    with fp16_computes():
        made, cut = start_engine(case)
        if before is not None:
            made.restore(before[0], start, 0, [start] * 3, before[1])
        reports, found = [], []
        for step in range(start, steps):
            report = made.step(own_micro_batches(global_batch(step), made, cut))
            reports.append(report)
            found.append(made.ranks.sum(report.task_losses))
        state, scale = made.export(), made.loss_scale
        made.close()
    return {"reports": reports, "losses": found, "state": state, "scale": scale}


@pytest.mark.parametrize(
    ("stage", "offload", "scaling"),
    [
        (3, False, EACH_STEP),
        pytest.param(2, False, EACH_STEP, marks=pytest.mark.slow),
        pytest.param(2, True, EACH_STEP, marks=pytest.mark.slow),
        pytest.param(2, False, {"loss_scale": 512}, marks=pytest.mark.slow),
    ],
)
def test_a_scaled_gradient_is_the_gradient(
    stage: int, offload: bool, scaling: dict[str, int], ranks2: RankPool, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {"stage": stage, "clip_norm": 0.1, "micro_batch_size": 3}
    exact, *_ = ranks2.run(train, make_case(tmp_path, **fields), timeout=120)
    case = make_case(tmp_path, precision="fp16", scaling=scaling, offload=offload, **fields)
    found, *_ = ranks2.run(train, case, timeout=120)
    scales = [report.loss_scale for report in found["reports"]]
    assert scales == ([None] * 6 if "loss_scale" in scaling else [256, 256, 512, 1024, 2048, 4096])
    assert not any(report.skipped for report in found["reports"])
    for report, expected in zip(found["reports"], exact["reports"], strict=True):
        # Above the clipping norm, so that a step divided by another scale would show in the next.
        assert expected.gradient_norm > 0.1
        assert report.gradient_norm == pytest.approx(expected.gradient_norm, rel=0.01)
    torch.testing.assert_close(found["losses"], exact["losses"], rtol=2e-3, atol=0)
    for name, tensors in exact["state"].items():
        for key, tensor in tensors.items():
            difference = (found["state"][name][key] - tensor).norm()
            assert difference <= 0.02 * tensor.norm() + 1e-6, (name, key)


@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_scale_falls_until_gradients_are_finite(
    stage: int, ranks2: RankPool, tmp_path: Path
) -> None:
    case = make_case(tmp_path, stage=stage, precision="fp16", scaling=TOO_LARGE)
    found = ranks2.run(train, case, 40, timeout=200)
    for of_rank in found:
        skipped = [report.skipped for report in of_rank["reports"]]
        assert all(skipped[:15])
        assert not all(skipped[15:25])
        for step, report in enumerate(of_rank["reports"]):
            # Hysteresis: the first skipped step leaves the scale.
            assert report.loss_scale == 2.0 ** (40 - max(sum(skipped[:step]) - 1, 0))
            assert report.scale_can_fall
            assert not report.not_finite
            assert math.isfinite(report.gradient_norm) != report.skipped
        last = max(step for step, flag in enumerate(skipped) if flag)
        assert of_rank["scale"] == LossScale(2.0 ** (41 - sum(skipped)), 40, last, 1)


def run_in_fp16(recipe: Recipe, resume: bool = False) -> int:
    """What `vlds train` does on a rank of a device that computes in fp16."""
    with fp16_computes():
        return run_recipe(recipe, resume)


def test_a_run_resumes_while_its_scale_falls(world: Path, ranks2: RankPool, tmp_path: Path) -> None:
    recipe = world_recipe(world, tmp_path / "whole", stage=3)
    file = tmp_path / "fp16.json"
    settings = json.loads(Path(recipe.training.deepspeed).read_text(encoding="utf-8"))
    settings["fp16"] = {"initial_scale_power": 20, "loss_scale_window": 1, "hysteresis": 1}
    file.write_text(json.dumps(settings), encoding="utf-8")
    # Steps that are skipped for their scale are no fault, however few of those a run may have.
    training = replace(
        recipe.training, precision="fp16", deepspeed=str(file), max_nonfinite_steps=0
    )
    recipe = replace(recipe, training=training)
    check_resume(ranks2, recipe, tmp_path, run=run_in_fp16, skips=True)
    half, whole = (
        [read_progress(folder) for folder in state_folders(run / "state")]
        for run in (tmp_path / "half", tmp_path / "whole")
    )
    assert half == whole
    # Both parts of the run skip steps, so that the scale that was saved is not the first one.
    assert 0 < half[0].skipped < half[1].skipped == 10 - len(losses(tmp_path / "half"))


def test_a_device_without_fp16_says_so_before_data_are_read(world: Path, tmp_path: Path) -> None:
    recipe = world_recipe(world, tmp_path / "run", stage=2)
    recipe = replace(recipe, training=replace(recipe.training, precision="fp16"))
    with mock.patch.object(CPU_Accelerator, "is_fp16_supported", return_value=False):
        told = check_complaint(recipe, planned=False)  # another machine may have it
    assert told.startswith("training.precision: got fp16, in which DeepSpeed does not train on ")
    assert told.endswith("; set bf16 or fp32")


def test_steps_inside_tasks_are_not_scaled(world: Path, tmp_path: Path) -> None:
    recipe = world_recipe(world, tmp_path / "run", stage=2)
    with pytest.raises(ValueError, match=r"meta: .* training.precision fp16; set that to bf16"):
        replace(recipe, meta=MetaConfig(), training=replace(recipe.training, precision="fp16"))


# The recipe fills DeepSpeed's "auto" fields, and contradictions are refused by name.


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

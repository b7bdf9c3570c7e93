"""Every kind of model on an accelerator: no operation mixes devices, results are the CPU's, and the
host waits for the device only where a library asks for it.

Each wait ends a GPU's queue of work: it idles until Python has sent more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version

from tests.toys import accelerator as simulated
from tests.toys.device_cases import (
    DeviceCase,
    dual_case,
    encoder_case,
    joint_case,
    packed_case,
    wide_case,
)
from tests.toys.image_text import PARAMETERS
from tests.toys.method_cases import PAIRS
from tests.toys.rank_pool import RankPool
from tests.toys.wide_models import CAUSAL
from vlds.models.backbones import Backbone
from vlds.models.methods import APoLLo, Full, LoRA, Method, SimNL, TipAdapter
from vlds.models.model import step_draws

BUDGET = {
    "T5": 2, "Bart": 2, "llama": 2, "opt": 2, "qwen2_vl": 42, "qwen2_5_vl": 50, "qwen3_vl": 51,
    "florence2": 4, "paligemma": 1, "llava": 3, "smolvlm": 7, "idefics3": 7, "llava_onevision": 19,
    "gemma3": 1, "internvl": 3, "qwen3_5": 47, "qwen3_vl_moe": 51, "glm4v": 42, "glm4v_moe": 42,
    "glm46v": 42, "lfm2_vl": 11, "llava_next": 13, "vipllava": 3, "mistral3": 19, "aya_vision": 3,
    "cohere2_vision": 3, "idefics2": 8, "got_ocr2": 7, "blip-2": 3, "perception_lm": 3,
    "ovis2": 24, "paddleocr_vl": 59, "video_llama_3": 44, "lighton_ocr": 21, "deepseek_vl": 3,
    "gemma4": 6, "CrossModal": 1, "JointEncoder": 1, "DualEncoder": 0,
}  # fmt: skip
"""Waits of a micro-batch's forward and backward pass, all of them in Hugging Face's code: does the
mask hide anything, how large is each picture. Ours has none."""
IS_COUNTED = Version(transformers.__version__) >= Version("5.24")
"""False for versions of Hugging Face's code that wait more often."""

MakesCase = Callable[..., DeviceCase]


@dataclass(frozen=True)
class Compared:
    """What a model's run on both devices gave."""

    differences: list[str]
    ours: list[str]
    """Waits of lines of vlds, in evaluation and in training, of all rows at once and in parts."""
    theirs: list[str]
    """Those of libraries, of all rows at once."""


def compare(case: DeviceCase) -> Compared:
    """Loss, gradients and answers of one model on the CPU and on the device."""
    make, batch, decodings, questions = case
    device, scale = simulated.register(), torch.linspace(0.5, 1, len(batch))
    here, there = make().eval(), make().eval()
    # In two parts, as a micro-batch of unlike rows is computed.
    rows = [torch.arange(len(batch))[start::2] for start in (0, 1)]
    expected = here(batch, scale, rows)
    expected.loss.backward()
    simulated.move(there)
    different = []
    with simulated.accelerator() as running:
        moved, scales = batch.to(device), scale.to(device)
        running.waits.clear()
        found = there(moved, scales)
        found.loss.backward()
        waits = dict(running.waits)
        pieces = there(moved, scales, rows)
        ours = {wait for wait in running.waits if wait.is_ours}
        for output in (found, pieces):
            if not torch.allclose(simulated.raw(output.loss), expected.loss, rtol=1e-5):
                different.append("loss")
        weights = dict(there.named_parameters())
        for name, weight in here.named_parameters():
            mine, other = weight.grad, weights[name].grad
            if mine is None or other is None:
                if mine is not other:
                    different.append(f"{name} has a gradient on one device")
                continue
            # A sum rounds by a share of its largest terms: gradients of gemma4's toy reach 60.
            smallest = 1e-5 * max(1.0, mine.abs().max().item())
            if not torch.allclose(simulated.raw(other), mine, rtol=1e-4, atol=smallest):
                different.append(name)
        for decoding in decodings:
            asked = questions or batch
            of_cpu = here.answer(asked, decoding)
            of_device = there.answer(asked.to(device), decoding)
            if [answer.text for answer in of_cpu] != [answer.text for answer in of_device]:
                different.append(f"answers by {decoding}")
        running.waits.clear()
        there.train()  # draws differ from the CPU's, so that only waits compare
        with step_draws(there, 0, 0, 0, 0):
            there(moved, scales).loss.backward()
        ours |= {wait for wait in running.waits if wait.is_ours}
    return Compared(
        different,
        [f"{wait.what} at {wait.place}" for wait in ours],
        [f"{w.what} at {w.place}" for w, num in waits.items() if not w.is_ours for _ in range(num)],
    )


def compare_case(make: MakesCase, *arguments: Any) -> Compared:
    """Runs in the process that knows the device; functions and arguments pickle."""
    return compare(make(*arguments))


@pytest.fixture(scope="module")
def pool() -> Iterator[RankPool]:
    """One process, in which torch knows the simulated device."""
    pool = RankPool(1)
    yield pool
    pool.close()


def faults(pool: RankPool, budget: int, make: MakesCase, *arguments: Any) -> list[str]:
    """What differs from the CPU, our waits, and those of libraries if they are more than known."""
    (found,) = pool.run(compare_case, make, *arguments)
    more = found.theirs if len(found.theirs) > budget and IS_COUNTED else []
    return [*found.differences, *found.ours, *more]


@pytest.mark.sampled(8)
@PAIRS
def test_methods(name: str, family: type[Backbone], pool: RankPool) -> None:
    # LST's ladder runs beside the backbone.
    num_models = 2 if name.startswith("LST") else 1
    budget = num_models * BUDGET[family.__name__]
    assert faults(pool, budget, joint_case, family.__name__, name) == []


@pytest.mark.sampled(2)
@pytest.mark.parametrize("model_type", [*CAUSAL, *PARAMETERS])
def test_language_models(model_type: str, pool: RankPool) -> None:
    assert faults(pool, BUDGET[model_type], wide_case, model_type, LoRA(rank=2)) == []


@pytest.mark.parametrize("model_type", ["llava", pytest.param("smolvlm", marks=pytest.mark.slow)])
def test_rows_beside_each_other(model_type: str, pool: RankPool) -> None:
    assert faults(pool, BUDGET[model_type], packed_case, model_type, LoRA(rank=2)) == []


@pytest.mark.parametrize("kind", ["CrossModal", "JointEncoder"])
def test_encoders(kind: str, pool: RankPool) -> None:
    assert faults(pool, BUDGET[kind], encoder_case, kind) == []


@pytest.mark.parametrize(
    "method", [Full(), LoRA(rank=2), APoLLo(depth=1, heads=4), SimNL(), TipAdapter()]
)
def test_dual_encoders(method: Method, pool: RankPool) -> None:
    assert faults(pool, BUDGET["DualEncoder"], dual_case, method) == []

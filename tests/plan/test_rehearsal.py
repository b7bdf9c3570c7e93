"""A rehearsal beside what torch's allocator hands out in a real step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from tests.toys.image_text import PARAMETERS
from tests.toys.image_text.claims import EXPERTS_ALONE
from tests.toys.image_text.rows import TASKS, tiny
from tests.toys.kinds import ALL_KINDS, built, kind_recipe
from tests.toys.world import SIZES
from vlds.models.build import ModelSetup, build_model
from vlds.models.kernels.attention import step_kernels
from vlds.models.kernels.dropout import StepDropout
from vlds.models.methods import IA3, Adapter, BitFit, Compacter, Full, LoRA, Method, Mixture
from vlds.models.methods.mixture import of_ffn
from vlds.plan.forecast import Forecast, forecast
from vlds.plan.rehearsal import (
    NOTHING,
    TOKENS,
    Rehearsal,
    Work,
    evaluation_batches,
    micro_batch,
    rehearse,
    rehearse_answers,
    seconds_here,
)
from vlds.recipe.config import Recipe
from vlds.schema import Batch, Decoding
from vlds.training.deepspeed_config import cut_batches

METHODS: Mapping[str, Method] = {
    "adapter": Adapter(reduction=2, sharing="multiple"),
    "lora": LoRA(rank=2, roles=["attn_q", "ffn_out"], train_biases=False),
    "compacter": Compacter(),
    "ia3": IA3(),
    "bitfit": BitFit(add_biases=True),
    "full": Full(),
}
ROWS = 96


def repeated(batch: Batch) -> Batch:
    """So many rows that small tensors of whole numbers do not count."""
    return batch.select(torch.arange(ROWS) % len(batch.ids))


def allocated(recipe: Recipe, batch: Batch, file: Path) -> int:
    """The most bytes that torch holds in a forward and a backward pass, beside weights."""
    model = built(recipe).train()
    with profile(profile_memory=True) as profiler, step_kernels(model, StepDropout(0, 0)):
        model(batch, torch.ones(len(batch.ids))).loss.backward()
    return most_held(profiler, file)


def most_held(profiler: profile, file: Path) -> int:
    """The most bytes that torch held at once."""
    profiler.export_chrome_trace(str(file))
    events = json.loads(file.read_text())["traceEvents"]
    found = [event["args"] for event in events if event.get("name") == "[memory]"]
    # The sum goes on from one profile of a process to the next.
    before = found[0]["Total Allocated"] - found[0]["Bytes"]
    return max(held["Total Allocated"] for held in found) - before


FAST = {("joint", "adapter", "fp32"), ("causal", "lora", "bf16"), ("image_text", "full", "fp32")}
CASES = product(ALL_KINDS, METHODS, ("fp32", "bf16"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name", "precision"),
    [pytest.param(*case, marks=[] if case in FAST else [pytest.mark.slow]) for case in CASES],
)
def test_the_bytes_of_a_step(
    kind: str, name: str, precision: str, world: Path, tmp_path: Path
) -> None:
    recipe = kind_recipe(kind, world, tmp_path, precision=precision)
    recipe = replace(recipe, methods={"method": METHODS[name]})
    with torch.device("meta"):
        shapes = built(recipe)
    batch = repeated(micro_batch(recipe, shapes, cut_batches(recipe, 1)))
    found = rehearse(shapes, batch).work
    real = allocated(recipe, batch, tmp_path / "trace.json")
    assert found.peak == pytest.approx(real, rel=0.1)
    assert found.flops > 0
    assert found.calls > 0


@pytest.mark.parametrize(
    ("kind", "num_beams"),
    [
        pytest.param(*case, marks=[] if case == ("causal", 3) else [pytest.mark.slow])
        for case in product(ALL_KINDS, (1, 3))
    ],
)
def test_the_bytes_of_written_answers(
    kind: str, num_beams: int, world: Path, tmp_path: Path
) -> None:
    """Of random weights, which do not end their answers early; more tokens than are rehearsed."""
    recipe = kind_recipe(kind, world, tmp_path)
    decoding = Decoding(num_beams=num_beams, max_new_tokens=TOKENS + 8)
    check_answers(recipe, decoding, tmp_path / "trace.json")


def check_answers(recipe: Recipe, decoding: Decoding | None, file: Path) -> None:
    """A rehearsal of answers says what a real evaluation holds beside weights."""
    with torch.device("meta"):
        shapes = built(recipe)
    model = built(recipe).eval()
    for asked in evaluation_batches(recipe):
        batch, way = repeated(asked.batch), decoding or asked.decoding
        with torch.no_grad(), profile(profile_memory=True) as profiler:
            model.answer(batch, way)
        real = most_held(profiler, file)
        assert rehearse_answers(shapes, batch, way) == pytest.approx(real, rel=0.1)


@pytest.mark.slow
def test_a_gpu_has_fewer_and_larger_operations(world: Path, tmp_path: Path) -> None:
    recipe = kind_recipe("joint", world, tmp_path, precision="bf16")
    cut = cut_batches(recipe, 1)
    here, there = (forecast(recipe, cut, on_gpu=on_gpu) for on_gpu in (False, True))

    def fused(found: Forecast) -> int:
        names = ((str(one.function), times) for one, times in found.operations.items())
        return sum(times for name, times in names if "scaled_dot_product" in name)

    assert fused(here) == 0
    # Forward and backward, of each layer of the encoder and two for the decoder's.
    assert fused(there) == 2 * (SIZES["num_layers"] + 2 * SIZES["num_decoder_layers"])
    assert there.whole.calls < 0.9 * here.whole.calls
    assert there.whole.flops == pytest.approx(here.whole.flops, rel=0.1)


def test_a_forecast_is_a_line(world: Path, tmp_path: Path) -> None:
    recipe = kind_recipe("joint", world, tmp_path)
    found = forecast(recipe, cut_batches(recipe, 1))
    assert found.at(found.rows) == found.whole
    assert found.at(2 * found.rows).flops > 1.5 * found.whole.flops
    spare = found.at(40).peak
    assert found.most_rows(spare) == 40
    assert found.most_rows(spare - 1) == 39
    assert found.most_rows(0) == 0


@pytest.mark.slow
def test_what_a_second_pass_takes(world: Path, tmp_path: Path) -> None:
    """All that a run with one pass does not take."""
    found = {}
    for consistency in (0.0, 1.0):
        recipe = kind_recipe("joint", world, tmp_path)
        mixture = Mixture(of=replace(of_ffn(), reduction=4), consistency=consistency)
        recipe = replace(recipe, methods={"mix": mixture})
        found[consistency] = forecast(recipe, cut_batches(recipe, 1))
    one, two = found[0.0], found[1.0]
    assert (one.passes, one.further) == (1, NOTHING)
    assert two.passes == 2
    assert two.further == Work(*(a - b for a, b in zip(two.whole, one.whole, strict=True)))
    assert 0.4 < two.further.flops / two.whole.flops < 0.6
    assert 0.4 < two.further.calls / two.whole.calls < 0.6
    assert 0 < two.further.peak < two.whole.peak


@pytest.mark.sampled(2)
@pytest.mark.parametrize("model_type", PARAMETERS)
def test_every_type_of_image_text_model(model_type: str) -> None:
    source = tiny(model_type)
    method = LoRA(rank=4, roles=["attn_q"]) if model_type in EXPERTS_ALONE else METHODS["lora"]
    setup = ModelSetup(kind=source.kind, methods={"method": method})
    with torch.device("meta"):
        shapes = build_model(setup, list(TASKS), torch.float32, source.processor)
    asked = source.batch(source.rows(), evaluation=True)
    assert rehearse_answers(shapes, asked, Decoding(num_beams=2, max_new_tokens=3)) > 0
    work, operations = rehearse(shapes, source.batch(source.rows()))
    assert work.peak > 0
    assert work.flops > 0
    assert work.calls <= operations.total()
    products, others = seconds_here(operations)
    assert min(products, others) > 0


def test_experts_take_the_operations_of_their_products_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the forward pass and, of rows and of weights, in the backward pass."""
    model = tiny("glm4v_moe").build({"method": METHODS["full"]})
    experts: Any = next(m for path, m in model.named_modules() if path.endswith(".experts"))
    hidden = torch.ones(6, experts.hidden_dim)
    chosen = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0], [0, 2], [1, 3]])
    shares = torch.full(chosen.shape, 0.5)
    with monkeypatch.context() as patch:
        patch.setattr(experts.config, "_experts_implementation", "eager")
        with FlopCounterMode(display=False) as counted:
            experts(hidden.requires_grad_(), chosen, shares).sum().backward()
    rehearsal = Rehearsal()
    rehearsal.empty(experts)
    with rehearsal:
        hollow = rehearsal.hollow(hidden).requires_grad_()
        experts(hollow, chosen, shares).sum().backward()
    assert rehearsal.flops == counted.get_total_flops() > 0

"""Models of both kinds whose language model is packed in 4 or 8 bits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.toys.causal import WIDE, build, kind_in, save_model
from tests.toys.files import read_lines
from tests.toys.image_text.rows import TASKS, tiny
from tests.toys.models import shake
from tests.toys.rank_jobs import check_complaint, run_recipe
from tests.toys.rank_pool import RankPool
from tests.toys.trained_runs import convert, convert_code
from tests.toys.wide_models import opened, packed, wide
from tests.toys.world import world_recipe
from vlds.artifact import load_run, own_tensors, save_artifact
from vlds.models import Causal, ImageTextToText
from vlds.models.build import ModelSetup, build_shapes, describe
from vlds.models.loading import quantised
from vlds.models.loading.quantised import Bits, packed_linears, scale_bytes
from vlds.models.methods import Adapter, Full, LoRA, Method
from vlds.models.vision import ConvNet
from vlds.plan import Forecast, forecast_or_reason, plan_recipe
from vlds.recipe.config import Recipe

bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
ADAPTER: dict[str, Method] = {"words": Adapter(reduction=4)}
BITS = pytest.mark.parametrize("bits", [4, 8])
TYPES = pytest.mark.parametrize("model_type", ["qwen2_vl", "florence2", "llava", "llama", "opt"])
KINDS = pytest.mark.parametrize("model_type", ["qwen2_vl", "llama"])
"""A type of each kind of model."""


def logits(model: Any, source: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval().logits(source.batch(source.rows()))
    return found


@pytest.mark.sampled(7)
@BITS
@TYPES
def test_linear_layers_of_the_language_model_are_packed(model_type: str, bits: Bits) -> None:
    """All of them, no other, and as bitsandbytes packs them."""
    source = packed(model_type, bits)
    plain, model = wide(model_type).build(), source.build()
    part = f"{model.parts['backbone'].path}."
    head = plain.backbone.get_output_embeddings()
    kind = bnb.nn.Linear4bit if bits == 4 else bnb.nn.Linear8bitLt
    found = {path for path, module in model.named_modules() if isinstance(module, kind)}
    linears = {path: m for path, m in plain.named_modules() if isinstance(m, nn.Linear)}
    assert found == {p for p, m in linears.items() if p.startswith(part) and m is not head}
    assert len(found) < len(linears)
    assert model.sources == plain.sources, "packed tensors are the source's"
    theirs = dict(plain.named_parameters())
    matrices = {path: unpack(model.get_submodule(path)) for path in found}
    for path, matrix in matrices.items():
        error, largest = (m.abs().max() for m in (matrix - theirs[f"{path}.weight"], matrix))
        assert 0 < error < (0.16 if bits == 4 else 0.005) * largest  # half the widest step
    for name, parameter in model.named_parameters():
        if name.removesuffix(".weight") not in found:
            assert torch.equal(parameter, theirs[name]), name
    expected = logits(model, source)
    assert not torch.equal(logits(plain, source), expected)
    with torch.no_grad():
        for path in found:
            theirs[f"{path}.weight"].copy_(matrices[path])
    # Layers of 8 bits round their inputs too.
    share = 1e-5 if bits == 4 else 0.05
    assert (logits(plain, source) - expected).abs().max() < share * expected.abs().max()


@pytest.mark.parametrize(("bits", "value"), [(4, "nan"), (8, "inf")])
def test_weights_that_are_not_finite_are_not_packed(bits: Bits, value: str, tmp_path: Path) -> None:
    save_model(tmp_path / "model", **WIDE)
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.1.mlp.up_proj.weight"][3, 2] = float(value)
    save_file(weights, file, {"format": "pt"})
    said = rf"^model\.path: .*layers\.1\.mlp\.up_proj\.weight holds {value}, finite numbers exp"
    with pytest.raises(ValueError, match=said):
        build(kind_in(tmp_path / "model", bits=bits))


def unpack(layer: Any) -> Tensor:
    """The matrix of a packed layer, (out, in) floats."""
    if isinstance(layer, bnb.nn.Linear4bit):
        assert layer.weight.quant_state.quant_type == "nf4"
        assert not layer.weight.quant_state.nested
        whole: Tensor = bnb.functional.dequantize_4bit(layer.weight, layer.weight.quant_state)
        return whole
    return layer.weight.float() * layer.weight.SCB[:, None] / 127


@pytest.mark.sampled(4)
@BITS
@TYPES
def test_shapes_alone_are_as_large(model_type: str, bits: Bits) -> None:
    source = packed(model_type, bits)
    setup = ModelSetup(kind=source.kind, methods=ADAPTER)
    model = source.build(ADAPTER)
    shapes = build_shapes(setup, TASKS, torch.float32)
    assert {n: (p.shape, p.dtype) for n, p in shapes.named_parameters()} == {
        n: (p.shape, p.dtype) for n, p in model.named_parameters()
    }
    counts = describe(setup, TASKS)
    assert counts == model.count_parameters()
    assert counts == describe(replace(setup, kind=replace(source.kind, bits=None)), TASKS)
    scales = [
        m.weight.quant_state.absmax if bits == 4 else m.weight.SCB for m in packed_linears(model)
    ]
    assert scale_bytes(shapes) == scale_bytes(model) == sum(scale.nbytes for scale in scales) > 0


@KINDS
def test_what_eight_bits_keep_beside_weights_moves_with_them(model_type: str) -> None:
    """Before the first forward pass, which moves it to another place, and after."""
    source = packed(model_type, 8)
    model = source.build()
    for ran in (False, True):
        if ran:
            logits(model, source)
        model._apply(torch.clone)
        for layer in packed_linears(model):
            holder = layer.state if ran else layer.weight
            assert holder.CB.data_ptr() == layer.weight.data_ptr()
            assert holder.SCB.device == layer.weight.device


# Refusals.

RANDOM = r"bits: 4, config: c\.json; random weights are not packed"
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a random image-text model": (lambda: ImageTextToText(config="c.json", bits=4), RANDOM),
    "a random causal model": (
        lambda: Causal(config="c.json", bits=4, vision=ConvNet()),
        RANDOM,
    ),
    "all weights train": (
        lambda: packed("llama", 4).build({"a": Full()}),
        r"methods\.a: Full trains every weight, .* quantised",
    ),
    "layers too narrow": (
        lambda: replace(tiny("llava"), kind=replace(tiny("llava").kind, bits=4)).build(),
        r"model\.bits: 4, but no linear layer of LlavaFor",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_packed(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("library", ["bitsandbytes", "no-such-library-of-ours"])
@KINDS
def test_a_missing_library(model_type: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(quantised.LIBRARIES, library, "999")
    source = packed(model_type, 4)
    message = f"model.bits: 4 needs {library}>=999, .*; install vlds.quantise., or set bits to null"
    for work in (source.kind.check_sources, source.build):
        with pytest.raises(ValueError, match=message):
            work()


def run_of(
    model_type: str, world: Path, folder: Path, bits: Bits = 4, stage: int = 2,
    precision: str = "fp32",
) -> Recipe:  # fmt: skip
    """Four steps, a state after each second one, no evaluation."""
    recipe = world_recipe(world, folder, precision=precision)
    file = folder.parent / f"zero{stage}.json"
    file.write_text(f'{{"zero_optimization": {{"stage": {stage}}}}}', encoding="utf-8")
    tasks = {
        name: replace(task, evaluate=[], max_prompt_tokens=24, max_target_tokens=24)
        for name, task in recipe.tasks.items()
    }
    return replace(
        recipe,
        model=packed(model_type, bits).kind,
        methods={"words": LoRA(rank=2)},
        tasks=tasks,
        training=replace(recipe.training, steps=4, save_every=2, deepspeed=str(file)),
    )


@pytest.mark.slow
@KINDS
def test_stage_3_is_refused(model_type: str, world: Path, tmp_path: Path) -> None:
    recipe = run_of(model_type, world, tmp_path, stage=3)
    message = check_complaint(recipe)
    assert "stage = 3, which cannot partition the 4-bit weights of model.bits; set 2" in message
    with pytest.raises(ValueError, match="cannot partition the 4-bit weights"):
        plan_recipe(recipe, [2])
    files = plan_recipe(run_of(model_type, world, tmp_path), [2])[0].files
    assert len(files) == 3
    assert not any("zero3" in file for file in files)
    assert len({needs.held.frozen for needs in files.values()}) == 1
    assert isinstance(forecast_or_reason(run_of(model_type, world, tmp_path), 2), Forecast)


# Whole runs.


def logits_in_rank(run: Path, model_type: str) -> Tensor:
    """Logits of a run, as a rank opens it."""
    loaded = load_run(run)
    return logits(loaded.model, opened(model_type, loaded.recipe.model, loaded.processor))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bits", "stage", "precision"),
    [(4, 2, "fp32"), (4, 2, "bf16"), (4, 1, "fp32"), (8, 2, "fp32"), (8, 2, "bf16")],
)
@KINDS
def test_two_ranks_resumed(
    model_type: str, bits: Bits, stage: int, precision: str,
    world: Path, ranks2: RankPool, tmp_path: Path,
) -> None:  # fmt: skip
    recipe = run_of(model_type, world, tmp_path / "whole", bits, stage, precision)
    whole, half = tmp_path / "whole", tmp_path / "half"
    assert ranks2.run(run_recipe, recipe, timeout=120) == [0, 0]
    shutil.copytree(whole, half)
    for later in ("state/step-00000004", "artifact"):
        shutil.rmtree(half / later)
    assert ranks2.run(run_recipe, replace(recipe, output=str(half)), True, timeout=120) == [0, 0]
    for file in ("artifact/weights.safetensors", "state/step-00000004/state.safetensors"):
        assert (whole / file).read_bytes() == (half / file).read_bytes(), file
    lines = read_lines(whole / "metrics.jsonl")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 4
    assert len(set(losses)) == 4
    held = plan_recipe(recipe, [2])[0].files[recipe.training.deepspeed].held
    (found,) = [line["bytes_per_rank"] for line in lines if "bytes_per_rank" in line]
    assert found == {key: getattr(held, key) for key in ("frozen", "trainable", "optimizer")}
    run = load_run(whole)
    names = set(load_file(whole / "artifact" / "weights.safetensors"))
    # The causal model's vision encoder comes from no file.
    assert {n for n in names if not n.startswith("vision.")} == run.model.trained_by.keys()
    source = replace(wide(model_type), processor=run.processor)
    for found in ranks2.run(logits_in_rank, whole, model_type):
        assert torch.equal(found, logits(run.model, source))


def saved_run(source: Any, world: Path, folder: Path, method: Method) -> None:
    """Save in a folder a run of a model that has trained."""
    recipe = replace(world_recipe(world, folder), model=source.kind, methods={"words": method})
    model = source.build({"words": method})
    shake(model)
    save_artifact(folder / "artifact", own_tensors(model), recipe, source.processor)


@pytest.mark.slow
@BITS
@KINDS
def test_whole_folders(
    model_type: str, bits: Bits, world: Path, tmp_path: Path, capfd: Any
) -> None:
    """Packed weights are not written; the same run on floats is."""
    run, source = tmp_path / "run", packed(model_type, bits)
    saved_run(source, world, run, LoRA(rank=2, train_biases=False))
    message = f"model.bits: the run has weights in {bits} bits, which are neither written nor"
    for layout in ("hf", "merge"):
        assert convert_code(layout, "--run", run, "--out", tmp_path / layout) == 2
        assert message in capfd.readouterr().err
        convert(layout, "--run", run, "--out", tmp_path / layout, "--model.bits", "null")
    expected = logits(load_run(run, changes=["--model.bits", "null"]).model, source)
    kept, merged = (load_run(tmp_path / layout) for layout in ("hf", "merge"))
    # Weights lie otherwise in memory, and some CPUs' kernels then round otherwise.
    assert (logits(kept.model, source) - expected).abs().max() < 1e-6 * expected.abs().max()
    assert (logits(merged.model, source) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert merged.recipe.methods == {}
    assert not torch.equal(logits(load_run(run).model, source), expected)
    convert("merge", "--how", "average", "--run", run, run, "--out", tmp_path / "average")
    mean = load_run(tmp_path / "average").model
    assert torch.equal(logits(mean, source), logits(load_run(run).model, source))
    assert convert_code(
        "merge", "--how", "average", "--run", run, run, "--out", tmp_path / "mean",
        "--model.bits", "null",
    ) == 2  # fmt: skip


@pytest.mark.slow
@torch.no_grad()
@BITS
@KINDS
def test_peft_opens_the_method(model_type: str, bits: Bits, world: Path, tmp_path: Path) -> None:
    """On weights that transformers has packed alike."""
    run, source = tmp_path / "run", packed(model_type, bits, trains_connector=False)
    saved_run(source, world, run, LoRA(rank=2, train_biases=False))
    convert("peft", "--run", run, "--out", tmp_path / "peft", "--verify")
    base = source.build().backbone
    # The card's code packs the base alike.
    card = (tmp_path / "peft" / "README.md").read_text()
    names: dict[str, Any] = {}
    exec(card[card.index("from peft") : card.index("base = ")], names)
    said, packed_by = (
        {name: value for name, value in each.to_dict().items() if bits == 4 or "4bit" not in name}
        for each in (names["packing"], base.config.quantization_config)
    )
    assert said == packed_by
    model = load_run(run).model.eval()
    plain = source.run_by(base.eval(), model)
    theirs = PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    found, expected = source.run_by(theirs, model), source.run_by(model.backbone, model)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert not torch.allclose(plain, expected, rtol=1e-3)

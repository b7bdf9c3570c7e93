"""Image-text runs as folders that Hugging Face's libraries open."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageTextToText, AutoProcessor, Gemma4Config

from tests.toys.dual import text_recipe
from tests.toys.image_text import FAST_TYPES, TYPES
from tests.toys.image_text.claims import BARE
from tests.toys.image_text.rows import Tiny, tiny
from tests.toys.kinds import kind_recipe
from tests.toys.models import shake
from tests.toys.recipes import with_model
from tests.toys.trained_runs import convert, write_run
from tests.toys.world import world_recipe
from vlds.artifact import LoadedRun, load_run
from vlds.convert.adapters import plain
from vlds.convert.hf import fold_methods, write_hf
from vlds.convert.peft import PeftFolders, short_names
from vlds.convert.target import export_run
from vlds.models.methods import IA3, Adapter, BitFit, LoRA, Method, Peft
from vlds.schema import Decoding

EXPERTS = ("qwen3_vl_moe", "glm4v_moe")
"""Types whose feed-forward layers are experts in one tensor, which methods do not extend. Of those
beside them in GLM-4.5V, peft would take the experts' tensors for LoRA's targets too."""
FAST = ("qwen2_vl", "llava", "florence2")
PEFT: dict[str, Method] = {
    # The default alpha's updates are so large here that folding shows float32's rounding.
    "lora": LoRA(rank=2, alpha=2.0, roles=["attn_q", "attn_out", "ffn_out"], train_biases=False),
    "eyes": LoRA(rank=2, roles=["attn_out"], part="vision", train_biases=False),
    "ia3": IA3(),
    "dora": Peft(
        type="LORA", settings={"r": 2, "use_dora": True}, roles=["attn_q", "attn_out", "ffn_out"]
    ),
}


ALL_TYPES = pytest.mark.parametrize(
    "model_type",
    [pytest.param(t, marks=() if t in FAST else pytest.mark.slow) for t in TYPES],
)


def run_of(model: Tiny, method: Method, world: Path, **fields: Any) -> LoadedRun:
    """A run whose method has trained."""
    kind = replace(model.kind, **fields)
    recipe = replace(world_recipe(world, world / "none"), model=kind, methods={"method": method})
    built = replace(model, kind=kind).build({"method": method}).eval()
    shake(built)
    return LoadedRun(recipe, model.processor, built)


CASES = [
    pytest.param(t, name, marks=() if t in FAST else pytest.mark.slow)
    for t in TYPES
    for name in (PEFT if t in FAST_TYPES else ("lora", "eyes"))
]


def lora_of(model_type: str) -> Method:
    """LoRA on the layers that a type has."""
    lora = PEFT["lora"]
    assert isinstance(lora, LoRA)
    return replace(lora, roles=["attn_q", "attn_out"]) if model_type in EXPERTS else lora


@pytest.mark.sampled(7)
@pytest.mark.parametrize(("model_type", "name"), CASES)
def test_peft_opens_the_folder(model_type: str, name: str, world: Path, tmp_path: Path) -> None:
    if (model_type, name) == ("florence2", "ia3"):
        pytest.skip("no ia3 on a model with two kinds of values")
    model = tiny(model_type)
    method = lora_of(model_type) if name == "lora" else PEFT[name]
    run = run_of(model, method, world, train_connector=False)
    PeftFolders(run).write(tmp_path)
    base = AutoModelForImageTextToText.from_pretrained(str(model.kind.path)).eval()
    before = model.run_by(base, run.model)
    found = model.run_by(PeftModel.from_pretrained(base, tmp_path).eval(), run.model)
    expected = run.model.logits(model.batch(model.rows()))
    assert torch.allclose(found, expected, atol=1e-6)
    assert not torch.allclose(found, before, atol=1e-4)


@pytest.mark.sampled(2)
@ALL_TYPES
def test_peft_opens_the_connector_too(model_type: str, world: Path, tmp_path: Path) -> None:
    model = tiny(model_type)
    run = run_of(model, lora_of(model_type), world)
    if model_type in BARE:
        with pytest.raises(
            ValueError, match=r"which (model\.image_newline|query_tokens) is not in; use"
        ):
            PeftFolders(run)
        return
    files = PeftFolders(run)
    files.write(tmp_path)
    base = AutoModelForImageTextToText.from_pretrained(str(model.kind.path)).eval()
    found = model.run_by(PeftModel.from_pretrained(base, tmp_path).eval(), run.model)
    assert torch.allclose(found, run.model.logits(model.batch(model.rows())), atol=1e-6)
    again = PeftFolders(run_of(model, lora_of(model_type), world)).read(tmp_path)
    state = dict(run.model.unique_state())
    assert again.keys() >= run.model.trained_by.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.items())


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", [name for name in PEFT if name != "lora"])
def test_a_connector_beside_any_method(name: str, world: Path, tmp_path: Path) -> None:
    model = tiny("qwen2_vl")  # its connector is inside the vision encoder
    run = run_of(model, PEFT[name], world)
    PeftFolders(run).write(tmp_path)
    base = AutoModelForImageTextToText.from_pretrained(str(model.kind.path)).eval()
    found = model.run_by(PeftModel.from_pretrained(base, tmp_path).eval(), run.model)
    assert torch.allclose(found, run.model.logits(model.batch(model.rows())), atol=1e-6)


def test_names_that_wrappers_share() -> None:
    """Gemma 4's vision tower has linear layers inside modules called q_proj, which peft cannot
    wrap; it finds the language model's own by whole paths."""
    sizes = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "head_dim": 8,
        "num_attention_heads": 2, "num_key_value_heads": 2,
    }  # fmt: skip
    vision = {**sizes, "use_clipped_linears": True, "position_embedding_size": 16, "patch_size": 4}
    words = {"vocab_size": 64, "vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 4}
    config = Gemma4Config(
        text_config={**sizes, **words, "layer_types": ["full_attention"]},
        vision_config=vision,
        audio_config=None,
    )
    start = "model.language_model.layers.0"
    for paths, names in (
        ([f"{start}.self_attn.q_proj"], [f"{start}.self_attn.q_proj"]),
        ([f"{start}.per_layer_projection"], ["per_layer_projection"]),
    ):
        model = AutoModelForImageTextToText.from_config(config)
        assert short_names(paths, model) == names
        with pytest.raises(ValueError, match="Gemma4ClippableLinear"):
            get_peft_model(deepcopy(model), LoraConfig(target_modules=["q_proj"]))
        theirs = get_peft_model(model, LoraConfig(target_modules=short_names(paths, model)))
        assert theirs.targeted_module_names == paths


def test_what_peft_computes_otherwise_is_not_written(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder is there only if peft has opened it and given the run's logits: of each task."""

    class Wrong(PeftFolders):
        def config(self, adapter: str) -> dict[str, Any]:
            alpha = 32.1 if adapter == "caption" else 32.0
            return {**super().config(adapter), "lora_alpha": alpha}

    recipe = with_model(kind_recipe("causal", world, tmp_path / "run"), train_projector=False)
    run = write_run(recipe)
    with pytest.raises(ValueError, match=r"of peft's logits .*\(task caption; .* nothing was wr"):
        export_run(run, Wrong, tmp_path / "out", None, plain)
    assert not (tmp_path / "out").exists()
    export_run(run, Wrong, tmp_path / "out", None, plain, tolerance=0.1)
    assert "of peft's logits on 2 generated pictures: " in capsys.readouterr().out
    assert (tmp_path / "out" / "caption").is_dir()


def test_a_connector_that_peft_cannot_hold_is_told_before_the_run_is_opened(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(kind_recipe("causal", world, tmp_path / "run"))
    with pytest.raises(ValueError, match=r"^model.train_projector: true, and peft .* connector"):
        convert("peft", "--run", run, "--out", tmp_path / "out")
    assert "opening" not in capsys.readouterr().err


def test_a_model_that_does_not_write(world: Path, tmp_path: Path) -> None:
    """peft wraps CLIP in its plain class."""
    recipe = replace(text_recipe(world, tmp_path / "run"), methods={"lora": PEFT["lora"]})
    convert("peft", "--run", write_run(recipe), "--out", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["task_type"] is None


@pytest.mark.sampled(3)
@ALL_TYPES
def test_a_merged_folder_is_hugging_faces(model_type: str, world: Path, tmp_path: Path) -> None:
    model = tiny(model_type)
    run = run_of(model, lora_of(model_type), world)
    if model_type == "gemma4":  # its norms make float32's rounding large
        run.model.double()
    dtype = run.model.backbone.dtype
    expected = run.model.logits(model.batch(model.rows()))
    write_hf(fold_methods(run), tmp_path)
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=dtype).eval()
    limit = 1e-6 * expected.abs().max()
    assert (model.run_by(theirs, run.model) - expected).abs().max() <= limit
    again = load_run(tmp_path, dtype)
    assert again.recipe.methods == {}
    found = again.model.logits(model.batch(model.rows()))
    assert (found - expected).abs().max() <= limit
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert processor.chat_template == model.processor.chat_template


@ALL_TYPES
def test_a_merged_folder_ends_answers_where_ours_end(
    model_type: str, world: Path, tmp_path: Path
) -> None:
    model = tiny(model_type)
    run = run_of(model, lora_of(model_type), world)
    write_hf(fold_methods(run), tmp_path)
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    writer = run.model.writer
    assert theirs.generation_config.eos_token_id == list(writer.ends)
    inputs = run.model.prompts(model.batch(model.rows()).prompts())
    written = writer.write(inputs, Decoding(max_new_tokens=4), None)
    ids = theirs.generate(
        **inputs, max_new_tokens=4, suppress_tokens=list(writer.forbidden) or None
    )
    start = 1 if theirs.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    for row, answer in zip(ids[:, start:].tolist(), written, strict=True):
        assert row[: len(answer.ids)] == answer.ids
        assert set(row[len(answer.ids) :]) <= {writer.pad}


def test_peft_refuses_to_leave_trained_weights_out(world: Path, tmp_path: Path) -> None:
    model = tiny("qwen2_vl")  # its queries, keys and values have biases
    low = replace(PEFT["lora"], train_biases=True)
    with pytest.raises(
        ValueError, match=r"^methods.method: it trains .*_proj.bias .* train_biases"
    ):
        PeftFolders(run_of(model, low, world))
    run = run_of(model, PEFT["lora"], world, train_connector=False)
    methods = {"method": PEFT["lora"], "eyes": BitFit(part="vision")}
    built = replace(model, kind=run.recipe.model).build(methods)
    both = replace(run, recipe=replace(run.recipe, methods=methods), model=built)
    with pytest.raises(
        ValueError, match=r"^methods.eyes: it trains .*visual.* use `vlds convert m"
    ):
        PeftFolders(both)


def test_what_cannot_be_merged_stays_beside_it(world: Path, tmp_path: Path) -> None:
    model = tiny("qwen2_5_vl")
    run = run_of(model, Adapter(reduction=4, sharing="multiple"), world)
    expected = run.model.logits(model.batch(model.rows()))
    write_hf(run, tmp_path)
    again = load_run(tmp_path, torch.float32).model
    assert torch.equal(again.logits(model.batch(model.rows())), expected)

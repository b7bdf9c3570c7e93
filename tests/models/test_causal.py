"""Causal models: loss, pictures, tasks, freezing, export."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, FalconH1Config

from tests.toys.causal import (
    TASKS,
    batch,
    build,
    kind_in,
    rows,
    save_model,
    write_tokenizer,
)
from vlds.models.build import ModelSetup, build_model
from vlds.models.kinds.causal import Causal
from vlds.models.methods import Adapter, Full, LoRA
from vlds.schema import IGNORED_LABEL, Batch


@pytest.mark.sampled(2)
def test_the_loss_is_that_of_hugging_face(causal: Causal) -> None:
    """Also where a class bends the logits behind the output layer."""
    model = build(causal, dtype=torch.float64).eval()
    plain = AutoModelForCausalLM.from_pretrained(causal.path, dtype=torch.float64).eval()
    examples = batch(causal)
    nll = model.token_nll(examples).detach()
    for number in range(len(examples)):
        alone = examples.select(torch.tensor([number]))
        embeds = model.sequences(alone, model.visual_tokens(alone)).embeds
        assert alone.labels is not None
        num_pictures = embeds.shape[1] - alone.labels.shape[1]
        labels = F.pad(alone.labels, (num_pictures, 0), value=IGNORED_LABEL)
        expected = plain(inputs_embeds=embeds, labels=labels).loss.detach()
        num_labels = int((labels != IGNORED_LABEL).sum())
        assert abs(float(nll[number].sum() / num_labels - expected)) < 1e-6


def gradients(model: nn.Module, examples: Batch) -> dict[str, Tensor]:
    model.zero_grad()
    model(examples, torch.ones(len(examples))).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_rows_without_pictures_reach_every_weight_that_trains(llama: Causal) -> None:
    """Under ZeRO-3 a rank that skipped the encoder would let the others wait."""
    methods = {"eyes": Full(part="vision"), "lora": LoRA(rank=2, train_biases=False)}
    model = build(llama, methods).eval()
    examples = replace(batch(llama, [rows()[1]]), images=None)
    reached = gradients(model, examples)
    assert set(reached) == set(model.trained_by)
    assert not reached["connector.linear_1.weight"].any()
    before = {name: buffer.clone() for name, buffer in model.moving_buffers()}
    model.train().token_nll(examples)
    assert model.vision.training
    assert before
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.moving_buffers())
    model.eval()
    picked = batch(llama).select(torch.tensor([1]))
    assert picked.images is not None
    assert len(picked.images) == 0
    assert torch.equal(model.token_nll(picked), model.token_nll(examples))


@pytest.mark.sampled(3)
def test_activation_checkpointing_changes_no_number(causal: Causal) -> None:
    methods = {"adapter": Adapter(sharing="multiple", reduction=4)}
    plain = build(causal, methods).train()
    saving = build(causal, methods, activation_checkpointing=True).train()
    assert any(getattr(m, "gradient_checkpointing", False) for m in saving.modules())
    found, expected = (gradients(model, batch(causal)) for model in (saving, plain))
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-5), name


def test_rotary_frequencies_stay_precise_in_bfloat16(llama: Causal) -> None:
    expected = build(llama).backbone.model.rotary_emb.inv_freq
    for model in (build(llama, dtype=torch.bfloat16), build(llama).to(torch.bfloat16)):
        assert model.backbone.model.rotary_emb.inv_freq.dtype == torch.float32
        assert torch.equal(model.backbone.model.rotary_emb.inv_freq, expected)
        assert model.backbone.lm_head.weight.dtype == torch.bfloat16


def test_errors_name_the_field(llama: Causal, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give exactly one of them"):
        Causal(vision=llama.vision)
    with pytest.raises(ValueError, match=r"model\.grid: 3 is more than the encoder's 2 x 2"):
        build(replace(llama, grid=3))
    bare = replace(llama, path=None, config=f"{llama.path}/config.json")
    with pytest.raises(ValueError, match=r"model\.tokenizer: a model with random weights"):
        bare.check_sources()
    config = tmp_path / "other.json"
    for model_type, message in (
        ("t5", r"model\.config: .* is a t5 model, not a causal"),
        ("unheard-of", "does not know"),
    ):
        config.write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            replace(bare, config=str(config)).read_config()
    many = llama.load_processor()
    many.add_tokens([f"word{n}" for n in range(99)])
    with pytest.raises(ValueError, match=r"model\.tokenizer: it has ids up to \d+, and the lang"):
        build_model(ModelSetup(kind=llama), TASKS, torch.float32, many)


@pytest.mark.parametrize("what", ["a weight", "rope_theta: -1", "rope_theta: 0"])
def test_numbers_of_a_source_that_are_not_finite(what: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_model(folder)
    if what == "a weight":
        file = folder / "model.safetensors"
        weights = load_file(file)
        weights["model.layers.1.mlp.up_proj.weight"][3, 2] = float("-inf")
        save_file(weights, file, {"format": "pt"})
        said = r"^model: .*layers\.1\.mlp\.up_proj\.weight holds -inf, finite numbers expected"
    else:
        fields = json.loads((folder / "config.json").read_text("utf-8"))
        fields["rope_parameters"]["rope_theta"] = float(what.partition(": ")[2])
        (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
        said = r"^model: .*rotary_emb\.inv_freq holds (nan|inf), finite numbers expected; copy"
    with pytest.raises(ValueError, match=said):
        build(kind_in(folder))


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    """It reads an answer before it writes it, though Hugging Face maps it as a causal model."""
    write_tokenizer(tmp_path)
    fields = {"model_type": "bert", "hidden_size": 16, "num_attention_heads": 2,
              "num_hidden_layers": 1, "intermediate_size": 16, "vocab_size": 304}  # fmt: skip
    config = tmp_path / "bert.json"
    config.write_text(json.dumps(fields | {"is_decoder": True}), encoding="utf-8")
    kind = kind_in(tmp_path, path=None, config=str(config), tokenizer=str(tmp_path))
    assert kind.read_config().is_decoder
    config.write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(ValueError, match=r"^model\.config: .* is a bert model, an encoder: it"):
        kind.read_config()


def test_a_model_that_answers_behind_no_embeddings_is_found_before_training(tmp_path: Path) -> None:
    """As Falcon-H1, whose generation begins with ids alone."""
    config = FalconH1Config(
        vocab_size=304, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, mamba_d_ssm=16, mamba_n_heads=2,
        mamba_d_head=8, mamba_n_groups=1, mamba_d_state=4, max_position_embeddings=128,
        pad_token_id=0, eos_token_id=1, bos_token_id=1,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    kind = kind_in(tmp_path)
    model = build(kind)
    message = (
        r"falcon_h1 cannot answer a question behind a picture: .*inputs_embeds.*; name another"
    )
    with pytest.raises(ValueError, match=message):
        kind.check_built(model, model.evaluating)

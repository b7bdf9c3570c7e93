"""Causal models: loss, pictures, tasks, freezing, export."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, FalconH1Config

from tests.toys.causal import (
    GRID,
    TASKS,
    batch,
    build,
    causal_recipe,
    kind_in,
    rows,
    save_model,
    write_tokenizer,
)
from vlds.models.build import ModelSetup, build_model
from vlds.models.kinds.causal import Causal
from vlds.models.methods import Adapter, Full, LoRA
from vlds.models.roles import optimizer_rules
from vlds.models.vision import StoredFeatures
from vlds.schema import IGNORED_LABEL, Batch
from vlds.training.optimizer import parameter_groups


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


@pytest.mark.sampled(3)
def test_a_row_does_not_depend_on_its_batch(causal: Causal) -> None:
    lora = LoRA(rank=2, roles=["attn_out", "ffn_out"], sharing="multiple", train_biases=False)
    model = build(causal, {"lora": lora}, torch.float64).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora.b"):
                parameter.normal_()
        together = model(batch(causal), torch.ones(4)).token_nll_sum
        for number, row in enumerate(rows()):
            alone = model(batch(causal, [row]), torch.ones(1)).token_nll_sum
            assert torch.allclose(alone, together[number : number + 1], rtol=1e-9)


def test_labels_on_the_sequence_are_cut_with_it(llama: Causal) -> None:
    """Also where the prompt is as long as the longest answer."""
    examples = batch(llama)
    assert examples.labels is not None
    assert examples.labels.shape == examples.input_ids.shape
    chosen = examples.select(torch.tensor([3, 0]))
    assert chosen.labels is not None
    assert chosen.labels.shape == chosen.input_ids.shape
    labelled = chosen.labels != IGNORED_LABEL
    assert torch.equal(chosen.labels[labelled], chosen.input_ids[labelled])
    assert labelled.sum(1).tolist() == (examples.labels != IGNORED_LABEL)[[3, 0]].sum(1).tolist()
    # The same widths, but targets that stand alone.
    starts = (examples.labels != IGNORED_LABEL).int().argmax(1)
    rows = [row.roll(-start) for row, start in zip(examples.labels, starts.tolist(), strict=True)]
    apart = replace(examples, labels=torch.stack(rows), labels_on_prompt=False)
    assert apart.select(torch.tensor([3, 0])).labels.shape[1] == int(labelled.sum(1).max())  # type: ignore[union-attr]


def test_sizes_count_visual_tokens(llama: Causal) -> None:
    examples = batch(llama)
    pictures = torch.tensor([1, 0, 1, 2]) * GRID * GRID
    expected = pictures + examples.attention_mask.sum(1)
    assert torch.equal(build(llama).sizes(examples), expected[:, None])


def test_logits_are_those_that_the_loss_reads(llama: Causal) -> None:
    model = build(llama).eval()
    examples = batch(llama)
    assert examples.labels is not None
    logits, real = model.logits(examples), examples.labels != IGNORED_LABEL
    scored = -logits.log_softmax(-1)[real].gather(1, examples.labels[real][:, None])[:, 0]
    assert torch.allclose(scored, model.token_nll(examples)[real])
    assert not logits[~real].any()


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


def test_only_methods_and_the_projector_train(llama: Causal) -> None:
    methods = {"adapter": Adapter(reduction=4)}
    model = build(llama, methods).train()
    assert set(model.trained_by.values()) == {"adapter", "connector"}
    assert optimizer_rules(model)["connector.linear_2.bias"].decays is False
    assert not model.vision.training
    frozen = build(replace(llama, train_projector=False), methods)
    assert set(frozen.trained_by.values()) == {"adapter"}


def test_the_projector_has_a_rate_of_its_own(llama: Causal, world: Path, tmp_path: Path) -> None:
    recipe = causal_recipe(tmp_path, world, tmp_path / "run")
    model = build(llama, recipe.methods)
    groups = parameter_groups(model, recipe)
    peaks = {id(p): group["peak_lr"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert peaks[id(parameter)] == (3e-3 if name.startswith("connector.") else 1e-2)
    with pytest.raises(ValueError, match="'connector' cannot be a method's name"):
        ModelSetup(kind=recipe.model, methods={"connector": Full()})


def test_sources_name_what_files_have_filled(saved: Path) -> None:
    chosen = kind_in(saved / "qwen2")
    model = build(chosen, {"lora": LoRA(rank=2, roles=["attn_q"], train_biases=False)})
    names = {name for name, _ in model.unique_state() if name.startswith("backbone.")}
    assert model.sources.names == {name for name in names if "extensions" not in name}


def test_weights_without_a_source_are_drawn_by_name(llama: Causal) -> None:
    config = f"{llama.path}/config.json"
    chosen = replace(llama, path=None, config=config, tokenizer=llama.path)
    torch.manual_seed(1)
    one = build(chosen).state_dict()
    torch.manual_seed(2)
    other = build(chosen).state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert one["backbone.lm_head.weight"].std() > 0.01


def test_a_copy_is_a_model_of_its_own(llama: Causal) -> None:
    model = build(llama, {"adapter": Adapter(sharing="multiple", reduction=4)}).eval()
    twin = copy.deepcopy(model)
    examples = batch(llama)
    assert torch.equal(twin.token_nll(examples), model.token_nll(examples))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert twin.token_nll(examples).sum() > model.token_nll(examples).sum()


def test_rotary_frequencies_stay_precise_in_bfloat16(llama: Causal) -> None:
    expected = build(llama).backbone.model.rotary_emb.inv_freq
    for model in (build(llama, dtype=torch.bfloat16), build(llama).to(torch.bfloat16)):
        assert model.backbone.model.rotary_emb.inv_freq.dtype == torch.float32
        assert torch.equal(model.backbone.model.rotary_emb.inv_freq, expected)
        assert model.backbone.lm_head.weight.dtype == torch.bfloat16


@pytest.mark.sampled(3)
def test_an_exported_model_is_the_same(causal: Causal, tmp_path: Path) -> None:
    model = build(causal, {"all": Full(), "eyes": Full(part="vision")}).eval()
    exported = causal.export(model, tmp_path)
    again = build(exported).eval()
    assert not again.trained_by
    model.requires_grad_(False)  # torch has other kernels for weights that train
    assert torch.equal(again.token_nll(batch(exported)), model.token_nll(batch(causal)))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    trained = {n for n, by in model.trained_by.items() if by == "all"}
    assert trained == {f"backbone.{name}" for name, _ in theirs.named_parameters()}
    tied = model.backbone.lm_head.weight is model.backbone.get_input_embeddings().weight
    assert tied == (again.backbone.lm_head.weight is again.backbone.get_input_embeddings().weight)


def test_stored_features(llama: Causal) -> None:
    chosen = replace(llama, vision=StoredFeatures(dim=6, grid=4), grid=2)
    model = build(chosen).eval()
    collator = pickle.loads(pickle.dumps(chosen.collator(chosen.load_processor())))
    features = torch.randn(3, 16, 6).half()
    examples = collator(rows(), features, evaluation=False)
    assert examples.images is None
    assert model.visual_tokens(examples).shape == (3, 4, 16)
    changed = replace(examples, features=torch.zeros_like(features))
    moved = (model.token_nll(changed) - model.token_nll(examples)).abs().sum(1) > 0
    assert moved.tolist() == [True, False, True, True]


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

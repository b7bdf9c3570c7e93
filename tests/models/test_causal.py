"""Causal models: loss, pictures, tasks, freezing, export."""

from __future__ import annotations

import inspect
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    FalconH1Config,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from tests.toys.causal import (
    SIZES,
    TASKS,
    batch,
    build,
    kind_in,
    rows,
    save_model,
    write_tokenizer,
)
from vlds.models.build import ModelSetup, build_model
from vlds.models.kinds.causal import Causal, CausalModel
from vlds.models.methods import Adapter, Full, Hyperformer, HyperPELT, LoRA, Method, PrefixTuning
from vlds.models.vision import StoredFeatures
from vlds.schema import IGNORED_LABEL, Batch, Decoding


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


# Answers of causal models: generated, chosen, from a list; how sure they are.

KINDS = pytest.mark.parametrize("kind", SIZES)
FREE = Decoding(max_new_tokens=6)
BEAMS = Decoding(max_new_tokens=6, num_beams=3)


@torch.no_grad()
def ids_of(model: CausalModel, examples: Batch, decoding: Decoding) -> list[list[int]]:
    """Tokens that a model writes."""
    listed = model.answer_list(decoding)
    return [w.ids for w in model.writer.write(model.prompts(examples), decoding, listed)]


@pytest.mark.sampled(7)
@KINDS
@pytest.mark.parametrize("decoding", [FREE, BEAMS], ids=["greedy", "beams"])
def test_ids_are_those_of_the_plain_model(kind: str, decoding: Decoding, saved: Path) -> None:
    chosen = kind_in(saved / kind)
    # Gemma's own attention gives NaN for padding in float64: its mask overflows in float32.
    dtype = torch.float32 if kind == "gemma2" else torch.float64
    model = build(chosen, dtype=dtype).eval()
    plain = AutoModelForCausalLM.from_pretrained(saved / kind, dtype=dtype).eval()
    plain.generation_config = GenerationConfig()
    together = ids_of(model, batch(chosen, evaluation=True), decoding)
    for number, row in enumerate(rows()):
        alone = batch(chosen, [row], evaluation=True)
        sequence = model.sequences(alone, model.visual_tokens(alone))
        (expected,) = plain.generate(
            inputs_embeds=sequence.embeds,
            max_new_tokens=6,
            num_beams=decoding.num_beams,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=[1, 2],
        ).tolist()
        assert ids_of(model, alone, decoding) == [together[number]]
        assert together[number] == expected[: len(together[number])]
        assert not set(expected[len(together[number]) :]) - {0}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("decoding", [FREE, BEAMS], ids=["greedy", "beams"])
def test_tasks_are_mixed_in_a_batch(decoding: Decoding, llama: Causal) -> None:
    """Each row is written with its own task's weights, in all its beams."""
    methods = {
        "adapter": Adapter(sharing="multiple", reduction=4),
        "hyper": Hyperformer(task_dim=6, hidden_dim=5, projected_dim=4, reduction=4),
        "lora": LoRA(rank=2, sharing="multiple", train_biases=False),
    }
    model = build(llama, methods, torch.float64).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "extensions" in name:
                parameter.normal_(std=0.5)
    together = ids_of(model, batch(llama, evaluation=True), decoding)
    alone = [ids_of(model, batch(llama, [row], evaluation=True), decoding)[0] for row in rows()]
    assert together == alone
    moved = [row._replace(task_index=(row.task_index + 1) % 3) for row in rows()]
    assert ids_of(model, batch(llama, moved, evaluation=True), decoding) != together


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("no_repeat_ngram_size", [0, 1])
@torch.no_grad()
def test_confidence_is_the_probability_of_the_answer(
    no_repeat_ngram_size: int, num_beams: int, llama: Causal
) -> None:
    """Whichever beam wrote it, and before rules."""
    decoding = replace(FREE, num_beams=num_beams, no_repeat_ngram_size=no_repeat_ngram_size)
    model = build(llama, dtype=torch.float64).eval()
    examples = batch(llama, evaluation=True)
    answers, written = model.answer(examples, decoding), ids_of(model, examples, decoding)
    for number, (answer, ids) in enumerate(zip(answers, written, strict=True)):
        alone = batch(llama, [rows()[number]], evaluation=True)
        sequence = model.sequences(alone, model.visual_tokens(alone))
        words = model.backbone.get_input_embeddings()(torch.tensor([ids]))
        logits = model.backbone(inputs_embeds=torch.cat([sequence.embeds, words], 1)).logits
        scores = logits[0, -len(ids) - 1 : -1].log_softmax(-1)
        total = float(scores.gather(1, torch.tensor(ids)[:, None]).sum())
        assert answer.confidence == pytest.approx(math.exp(total), rel=1e-6)
        assert answer.token_confidence == pytest.approx(math.exp(total / len(ids)), rel=1e-6)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_listed_answer_is_as_sure_as_a_choice(num_beams: int, llama: Causal) -> None:
    """These differ in their first token, so the rest is certain."""
    model, examples = build(llama, dtype=torch.float64).eval(), batch(llama, evaluation=True)
    words = ("red", "blue", "dark")
    listed = model.answer(examples, Decoding(answers=words, num_beams=num_beams))
    chosen = model.answer(examples, Decoding(choices=words))
    # Beams weigh the length of answers too, so they may choose another.
    same = [(a, b) for a, b in zip(listed, chosen, strict=True) if a.text == b.text]
    assert len(same) == len(listed) if num_beams == 1 else same
    for one, other in same:
        assert one.confidence == pytest.approx(other.confidence, rel=1e-6)
        assert one.token_confidence is None


def test_an_answer_in_the_batch_is_not_read(llama: Causal) -> None:
    model = build(llama, dtype=torch.float64).eval()
    assert batch(llama, evaluation=True).labels is None
    held, bare = (model.answer(batch(llama, evaluation=e), FREE) for e in (False, True))
    assert [answer.text for answer in held] == [answer.text for answer in bare]
    for one, other in zip(held, bare, strict=True):
        assert one.confidence == pytest.approx(other.confidence)


# A causal model with the weights of a LLaVA computes what LLaVA computes.

IMAGE_TOKEN, NUM_TOKENS = 303, 4


def llava() -> LlavaForConditionalGeneration:
    """A tiny LLaVA with random weights, which sees 2 x 2 patches."""
    torch.manual_seed(4)
    vision = {
        "model_type": "clip_vision_model", "hidden_size": 12, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
    }  # fmt: skip
    text = {
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "vocab_size": 304,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    }  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN)
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    return model.eval()


@torch.no_grad()
def test_the_loss_is_llavas(tmp_path: Path) -> None:
    theirs = llava()
    projector = theirs.model.multi_modal_projector.state_dict()
    save_file({name: t.contiguous() for name, t in projector.items()}, tmp_path / "p.safetensors")
    save_model(tmp_path / "text")
    kind = Causal(
        path=str(tmp_path / "text"),
        vision=StoredFeatures(dim=12, grid=2),
        projector_weights=str(tmp_path / "p.safetensors"),
    )
    model = build_model(ModelSetup(kind=kind), TASKS, torch.float32, kind.load_processor()).eval()
    model.backbone.model.load_state_dict(theirs.model.language_model.state_dict())
    model.backbone.lm_head.load_state_dict(theirs.lm_head.state_dict())

    pixels, words = torch.randn(2, 3, 16, 16), torch.randint(5, 300, (2, 9))
    places = torch.full((2, NUM_TOKENS), IMAGE_TOKEN)
    labels = words.clone()
    labels[:, :5] = IGNORED_LABEL
    loss = theirs(
        input_ids=torch.cat([places, words], 1),
        pixel_values=pixels,
        labels=torch.cat([torch.full_like(places, IGNORED_LABEL), labels], 1),
    ).loss
    # LLaVA takes the last layer but one, without the class token.
    seen = theirs.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    examples = Batch(
        ids=["a", "b"],
        task_index=torch.tensor([0, 1]),
        input_ids=words,
        attention_mask=torch.ones_like(words, dtype=torch.bool),
        labels=labels,
        weights=torch.ones(2),
        valid=torch.ones(2, dtype=torch.bool),
        image_index=torch.tensor([[0], [1]]),
        features=seen,
        labels_on_prompt=True,
    )
    assert float(model.token_nll(examples).sum() / 8) == pytest.approx(float(loss), abs=1e-6)


# What methods meet in causal models alone.


@pytest.mark.parametrize(
    ("kind", "method", "reason"),
    [
        ("gemma2", PrefixTuning(), r"computes these by itself \(eager\); .*use LoRA or Adapter"),
        ("gemma2", HyperPELT(), r"computes these by itself .*HyperPELT's prefix_length: 0"),
        ("phi3", HyperPELT(), "prefix_length: got 20, and no layer .*'attn_k'.*prefix_length: 0"),
        ("phi3", PrefixTuning(), "'attn_k'.*values come from one layer"),
    ],
)
def test_prefixes_that_attention_would_not_read_are_refused(
    kind: str, method: Method, reason: str, saved: Path
) -> None:
    chosen = kind_in(saved / kind)
    usual = build(chosen, {}).backbone.config._attn_implementation
    if kind == "gemma2" and usual != "eager":
        pytest.skip(f"this version of transformers computes Gemma 2's attention by {usual}")
    with pytest.raises(ValueError, match=f"methods.mine: .*{reason}"):
        build(chosen, {"mine": method})


@pytest.mark.sampled(2)
@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "qwen2", "opt"])
def test_prefixes_are_keys_and_values_that_stand_before_all_others(kind: str, saved: Path) -> None:
    """Hugging Face's model computes the same from a cache that holds them, with positions that
    count from the first token of its input."""
    chosen = kind_in(saved / kind)
    method = PrefixTuning(length=3, hidden_dim=None)
    model = build(chosen, {"prefixes": method}, torch.float64).eval()
    plain = build(chosen, {}, torch.float64).eval()
    examples = batch(chosen).select(torch.tensor([0]))
    sequences = model.sequences(examples, model.visual_tokens(examples))
    length, head_dim = sequences.embeds.shape[1], 8
    assert sequences.mask.all()
    pieces = model.backbone.extensions["prefixes"].pieces.value
    heads = [piece.unflatten(-1, (-1, head_dim)).transpose(1, 2) for piece in pieces]
    cache = DynamicCache(list(zip(heads[::2], heads[1::2], strict=True)))
    # Versions of transformers differ in the cache's name.
    parameters = inspect.signature(type(plain.backbone).forward).parameters
    name = "cache" if "cache" in parameters else "past_key_values"
    expected = plain.backbone(
        inputs_embeds=sequences.embeds,
        attention_mask=torch.ones(1, method.length + length, dtype=torch.long),
        position_ids=torch.arange(length)[None],
        **{name: cache},
    ).logits
    found = model.backbone(inputs_embeds=sequences.embeds, use_cache=False).logits
    assert torch.allclose(found, expected, atol=1e-10)
    assert not torch.allclose(found, plain.backbone(inputs_embeds=sequences.embeds).logits)

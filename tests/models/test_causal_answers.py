"""Answers of causal models: generated, chosen, from a list; how sure they are."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from tests.toys.causal import SIZES, TASKS, batch, build, kind_in, rows, save_model
from vlds.models.build import ModelSetup, build_model
from vlds.models.kinds.causal import Causal, CausalModel
from vlds.models.methods import Adapter, Hyperformer, HyperPELT, LoRA, Method, PrefixTuning
from vlds.models.vision import StoredFeatures
from vlds.schema import IGNORED_LABEL, Batch, Decoding

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

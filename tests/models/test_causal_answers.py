"""Answers of causal models: generated, chosen, from a list; how sure they are."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig

from tests.toys.causal import SIZES, batch, build, kind_in, rows
from vlds.models.kinds.causal import Causal, CausalModel
from vlds.models.methods import Adapter, Hyperformer, LoRA
from vlds.schema import Batch, Decoding

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


def test_choices_are_compared_in_the_first_step(llama: Causal) -> None:
    model = build(llama, dtype=torch.float64).eval()
    examples, words = batch(llama, evaluation=True), ("red", "blue", "dark")
    firsts = [ids[0] for ids in model.choice_ids(words)]
    answers = model.answer(examples, Decoding(choices=words))
    sequences = model.sequences(examples, model.visual_tokens(examples), left=True)
    step = model.backbone.generate(
        inputs_embeds=sequences.embeds, attention_mask=sequences.mask.long(), max_new_tokens=1,
        output_logits=True, return_dict_in_generate=True, pad_token_id=0,
    ).logits[0][:, firsts]  # fmt: skip
    assert [answer.text for answer in answers] == [words[n] for n in step.argmax(-1).tolist()]
    shares = step.softmax(-1).amax(-1).tolist()
    assert [answer.confidence for answer in answers] == pytest.approx(shares, abs=1e-6)


def test_an_answer_in_the_batch_is_not_read(llama: Causal) -> None:
    model = build(llama, dtype=torch.float64).eval()
    assert batch(llama, evaluation=True).labels is None
    held, bare = (model.answer(batch(llama, evaluation=e), FREE) for e in (False, True))
    assert [answer.text for answer in held] == [answer.text for answer in bare]
    for one, other in zip(held, bare, strict=True):
        assert one.confidence == pytest.approx(other.confidence)


def test_the_head_reads_no_slice(causal: Causal) -> None:
    """Torch multiplies a slice many times slower than a copy."""
    model = build(causal).eval()
    head = model.backbone.get_output_embeddings()
    read: list[bool] = []
    products = torch.nn.functional.linear

    def linear(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight is head.weight:
            read.append(states.is_contiguous())
        return products(states, weight, bias)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", linear)
        ids_of(model, batch(causal, evaluation=True), FREE)
    assert read
    assert all(read)

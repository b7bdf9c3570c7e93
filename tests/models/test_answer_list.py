"""Answers from a list: never another answer, and the best by the rules of the search."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toys.beam_search import beam_search, log_probs
from tests.toys.models import Words, batch
from vlds.models.backbones.attention import CPU_ATTENTION, EXTENDED_ATTENTION
from vlds.models.generation.answer_list import read_answers
from vlds.models.kinds.joint import JointModel
from vlds.schema import Decoding


class Targets(Words):
    """Tokenizes answers as targets: BART's begin with <s>, all end with </s>."""

    def __init__(self, model: JointModel) -> None:
        config = model.backbone.config
        self.start = model.family.choice_prefix(model.backbone)[1:]
        self.end = config.eos_token_id

    def __call__(self, texts: Any, add_special_tokens: bool = True) -> dict[str, Any]:
        if not add_special_tokens:
            return super().__call__(texts, add_special_tokens)
        words = (super(Targets, self).__call__(text, False)["input_ids"] for text in texts)
        return {"input_ids": [[*self.start, *ids, self.end] for ids in words]}


LISTED = ("w3", "w3 w4", "w3 w4 w5 w3", "w7 w3", "w9 w9 w9", "w12 w4", "w15", "w18 w3 w8")


@pytest.mark.parametrize("num_beams", [1, 2, 5])
def test_the_best_of_the_list(model: JointModel, num_beams: int) -> None:
    """Equal to a search without a cache in which tokens outside the list are out of reach."""
    model.processor = Targets(model)
    decoding = Decoding(num_beams=num_beams, answers=LISTED)
    listed = model.answer_list(decoding)
    assert listed is not None
    examples = batch(seed=1)
    found = model.generate(examples, decoding)[0]
    config = model.backbone.config
    paths = {path[:length] for path in listed.texts for length in range(1, 1 + len(path))}

    def within(ids: list[int], rows: Any) -> list[float]:
        scores = log_probs(model, rows, ids)
        return [s if (*ids[1:], n) in paths else -1e30 for n, s in enumerate(scores)]

    with torch.no_grad():
        states, mask = model.encode(examples)
        model.context.routing.set(torch.zeros(1, dtype=torch.long))
        for number, answer in enumerate(found):
            scores = partial(within, rows=(states[number : number + 1], mask[number : number + 1]))
            start, end = config.decoder_start_token_id, config.eos_token_id
            whole = replace(decoding, max_new_tokens=listed.longest)
            assert answer == beam_search(scores, start, end, whole)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("answers", [None, LISTED], ids=["free", "listed"])
@pytest.mark.parametrize("num_beams", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_confidence_is_the_probability_of_the_answer(
    model: JointModel, num_beams: int, answers: tuple[str, ...] | None
) -> None:
    """Of its tokens and, if it ends, </s>, among those that lead to an answer of a list; also for
    examples that leave the batch before others."""
    model.processor = Targets(model)
    config = model.backbone.config
    decoding = Decoding(num_beams=num_beams, max_new_tokens=6, answers=answers)
    tree = model.answer_list(decoding)
    listed = None if tree is None else [*tree.texts]
    lengths = set()
    for seed in range(6):
        examples = batch(tasks=(0,) * 16, seed=seed)
        with torch.no_grad():
            states, mask = model.encode(examples)
            written = model.written(examples, states, mask, decoding)
            for number, row in enumerate(written.ids.tolist()):
                end = row.index(config.eos_token_id, 1) + 1 if config.eos_token_id in row[1:] else 7
                forced = answers is None and num_beams > 1 and model.family.beam_forces_eos
                total, rows = 0.0, (states[number : number + 1], mask[number : number + 1])
                for place in range(1, end - (forced and end == 7)):
                    logs = log_probs(model, rows, row[:place])
                    total += logs[row[place]]
                    if listed is not None:
                        begun = row[1:place]
                        lead = {t[len(begun)] for t in listed if [*t[: len(begun)]] == begun}
                        total -= torch.tensor([logs[token] for token in lead]).logsumexp(0).item()
                assert written.log_probabilities[number].item() == pytest.approx(total, abs=1e-5)
                lengths.add(end)
    # The toy BART always takes one answer.
    assert answers is None or model.family.beam_forces_eos or len(lengths) > 1


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_free_text_has_the_mean_of_its_tokens(model: JointModel, num_beams: int) -> None:
    """A geometric mean that includes </s>; answers of one token or from a list have none."""
    model.processor = Targets(model)
    free = Decoding(num_beams=num_beams, max_new_tokens=6)
    num_before = len(model.tokenizer.start)
    several = 0
    for seed in range(6):
        examples = batch(tasks=(0,) * 16, seed=seed)
        ids = model.generate(examples, free)[0]
        for tokens, answer in zip(ids, model.answer(examples, free), strict=True):
            if len(tokens) - num_before < 2:
                assert answer.token_confidence is None
                continue
            several += 1
            count = min(len(tokens) + 1, 6) - num_before
            assert answer.token_confidence is not None
            assert answer.token_confidence**count == pytest.approx(answer.confidence)
        for restricted in (replace(free, answers=LISTED), Decoding(choices=("w7", "w9"))):
            answers = model.answer(examples, restricted)
            assert {answer.token_confidence for answer in answers} == {None}
    assert several > 5


@pytest.mark.parametrize("num_beams", [1, 3])
def test_the_attention_of_gpus(model: JointModel, num_beams: int) -> None:
    """torch's fused attention, where beams share an example's states, gives the same answers."""
    assert model.backbone.config._attn_implementation == CPU_ATTENTION
    decoding = Decoding(num_beams=num_beams, max_new_tokens=6)
    expected = model.generate(batch(), decoding)[0]
    for name in ("sdpa", EXTENDED_ATTENTION):
        model.backbone.set_attn_implementation(name)
        try:
            assert model.generate(batch(), decoding)[0] == expected
            assert model.backbone.config._attn_implementation == name
        finally:
            model.backbone.set_attn_implementation(CPU_ATTENTION)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('["yes", ""]', "none of them empty"),
        ('{"yes": 1}', "must be a list of one or more texts"),
        ("yes, no", "is not JSON"),
        (None, "No such file"),
    ],
)
def test_lists_that_are_none(tmp_path: Path, content: str | None, complaint: str) -> None:
    file = tmp_path / "answers.json"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"^decoding.answers: .*answers.json.*{complaint}"):
        read_answers(str(file))
    with pytest.raises(ValueError, match=r"^decoding.answers: \[yes, 3\] is not a list of texts"):
        read_answers("[yes, 3]")


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"answers": ("a",), "choices": ("b",)}, "choices"),
        ({"answers": ("a",), "no_repeat_ngram_size": 2}, "no_repeat_ngram_size"),
    ],
)
def test_impossible_decoding(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: got"):
        Decoding(**fields)

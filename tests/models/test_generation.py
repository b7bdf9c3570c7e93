"""Beam search equals a plain Python version of transformers 4.2's, and greedy decoding equals
decoding without a cache."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.toys.beam_search import beam_search, log_probs
from tests.toys.models import Words, batch
from vlds.models.backbones.attention import CPU_ATTENTION, EXTENDED_ATTENTION
from vlds.models.generation.answer_list import read_answers
from vlds.models.generation.decoding import Beams, answers, best_choice
from vlds.models.kinds.joint import JointModel
from vlds.schema import Decoding

NUM, WORDS, END, PAD, START = 40, 7, 1, 0, 2
"""Number of examples and size of the vocabulary of an invented language."""


def made_up(example: int, ids: list[int]) -> list[float]:
    """The next token's log-probabilities: arbitrary numbers that depend on all tokens before."""
    seed = [example, *ids]
    logits = np.random.default_rng(seed).normal(size=WORDS) * 1.5
    return [float(x) for x in logits - np.log(np.exp(logits).sum())]


CONFIG = SimpleNamespace(eos_token_id=END, pad_token_id=PAD)


def search_all(decoding: Decoding) -> list[list[int]]:
    """Our beam search over the invented language."""
    limit = decoding.max_new_tokens + 1
    start = torch.full((NUM, decoding.num_beams, 1), START)
    beams = Beams(start, limit, CONFIG, decoding)
    while beams.ids.shape[2] < limit and not beams.done.all():
        before = beams.ids.flatten(0, 1)
        rows = [
            made_up(number // decoding.num_beams, ids) for number, ids in enumerate(before.tolist())
        ]
        scores = torch.tensor(rows, dtype=torch.float64)
        chosen = beams.advance(scores, scores.logsumexp(-1))
        assert torch.equal(beams.ids.flatten(0, 1)[:, :-1], before[chosen])
    return answers(beams.best().ids, END)


CHOICES = [
    Decoding(num_beams=k, max_new_tokens=n, early_stopping=early, length_counts_start=counts)
    for k, n in ((2, 7), (3, 4), (5, 6))
    for early in (False, True)
    for counts in (False, True)
]


@pytest.mark.parametrize("decoding", CHOICES, ids=str)
def test_beams(decoding: Decoding) -> None:
    expected = [beam_search(partial(made_up, n), START, END, decoding) for n in range(NUM)]
    assert search_all(decoding) == expected
    assert len({len(answer) for answer in expected}) > 2


@pytest.mark.parametrize("num_beams", [1, 2, 4])
def test_searches_with_a_cache(model: JointModel, num_beams: int) -> None:
    """A greedy answer is that of a single beam, which is not forced to end."""
    decoding = Decoding(num_beams=num_beams, max_new_tokens=7)
    examples = batch()
    found = model.generate(examples, decoding)[0]
    config = model.backbone.config
    start, end = config.decoder_start_token_id, config.eos_token_id
    forces_end = num_beams > 1 and model.family.beam_forces_eos
    with torch.no_grad():
        states, mask = model.encode(examples)
        model.context.routing.set(torch.zeros(1, dtype=torch.long))
        for number, answer in enumerate(found):
            rows = states[number : number + 1], mask[number : number + 1]
            scores = partial(log_probs, model, rows)
            assert answer == beam_search(scores, start, end, decoding, forces_end)


def test_repeated_ngrams_are_barred(model: JointModel) -> None:
    for beams in (1, 3):
        decoding = Decoding(num_beams=beams, max_new_tokens=12, no_repeat_ngram_size=1)
        for answer in model.generate(batch(), decoding)[0]:
            assert len(set(answer)) == len(answer)


def test_choices(model: JointModel) -> None:
    decoding = Decoding(choices=("w7 w8", "w9"))
    found = model.answer(batch(), decoding)
    with torch.no_grad():
        logits = model.vocabulary_logits(model.first_states(batch()))[:, [7, 9]]
    expected = [[7, 8] if seven > nine else [9] for seven, nine in logits]
    assert model.generate(batch(), decoding)[0] == expected
    assert [answer.text for answer in found] == [
        " ".join(f"w{token}" for token in ids) for ids in expected
    ]
    shares = logits.softmax(-1).amax(-1).tolist()
    assert [answer.confidence for answer in found] == pytest.approx(shares)
    with pytest.raises(ValueError, match="do not differ in their first token"):
        model.generate(batch(), Decoding(choices=("w7 w8", "w7")))


def test_ties_go_to_the_last_choice() -> None:
    """As in VL-Adapter, "true" must score higher than "false" to be chosen."""
    assert best_choice(torch.tensor([[1.0, 1.0], [2.0, 1.0]]), [[0], [1]])[0] == [1, 0]


# Answers from a list: never another answer, and the best by the rules of the search.


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

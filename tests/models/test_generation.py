"""Beam search equals a plain Python version of transformers 4.2's, and greedy decoding equals
decoding without a cache."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.toys.beam_search import beam_search, log_probs
from tests.toys.models import batch
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

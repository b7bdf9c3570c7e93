"""Masked words: which words, what stands in their places, and scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from tests.toys.cross_modal import write_tokenizer
from vlds.models.kinds.text_encoder import CrossModalCollator, masked_words
from vlds.schema import IGNORED_LABEL, Batch, Masking, Row, Sample
from vlds.tasks import MaskedWords

TASK = MaskedWords(share=0.5)
CAPTION = "a picture that is red and nothing but red"
SAMPLE = Sample("0", "toy", "0", "caption", (b"",), (), ({"id": "c0", "caption": CAPTION},))


@pytest.fixture
def collator(tmp_path: Path) -> CrossModalCollator:
    write_tokenizer(tmp_path)
    return CrossModalCollator(AutoTokenizer.from_pretrained(tmp_path), features=False)


def batch_of(collator: CrossModalCollator, rng: np.random.Generator | None, num: int) -> Batch:
    examples = [TASK.example("words", SAMPLE, 0, rng) for _ in range(num)]
    rows = [Row(example, 0, 20, 1, range(1)) for example in examples]
    return collator(rows, torch.zeros(1, 3, 4, 4, dtype=torch.uint8), evaluation=rng is None)


def test_labels_are_the_words_and_evaluation_masks_all(collator: CrossModalCollator) -> None:
    batch = batch_of(collator, None, 1)
    assert batch.labels is not None
    whole = torch.tensor(collator.tokenizer(CAPTION)["input_ids"])
    gaps = batch.labels[0] != IGNORED_LABEL
    assert 0 < gaps.sum() < 9
    assert torch.equal(batch.labels[0][gaps], whole[gaps])
    assert torch.equal(batch.input_ids[0][~gaps], whole[~gaps])
    assert (batch.input_ids[0][gaps] == collator.tokenizer.mask_token_id).all()
    assert torch.equal(batch.input_ids, batch_of(collator, None, 1).input_ids)
    assert not gaps[[0, -1]].any(), "[CLS] and [SEP] are no words"


def test_training_mixes_masks_words_and_the_word_itself(collator: CrossModalCollator) -> None:
    batch = batch_of(collator, np.random.default_rng(0), 600)
    assert batch.labels is not None
    gaps = batch.labels != IGNORED_LABEL
    assert gaps.sum() / (9 * 600) == pytest.approx(0.5, abs=0.03)
    masked = batch.input_ids[gaps] == collator.tokenizer.mask_token_id
    kept = batch.input_ids[gaps] == batch.labels[gaps]
    assert masked.double().mean() == pytest.approx(0.8, abs=0.03)
    assert kept.double().mean() == pytest.approx(0.1, abs=0.03)


def test_at_least_one_word_and_all_of_its_tokens(collator: CrossModalCollator) -> None:
    words = [None, 0, 0, 1, None]
    for seed in range(20):
        chosen = masked_words(words, Masking(1e-9, seed, always_mask=True))
        assert len(chosen) == 1
    assert masked_words([None], Masking(0.5, 0, always_mask=True)) == {}

"""A sentencepiece model of the demo's text, with T5's special tokens; every word is one piece."""

from __future__ import annotations

import io
import re
from pathlib import Path
from random import Random

import sentencepiece

from data_prep.demo_text import word_lines

VOCABULARY = 224
"""Most pieces; the text has words for fewer."""
WORD_SALADS = 500
"""Unigram training takes a word for a piece when it meets it in many surroundings: these."""
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789,'-"
"""Known even where the text has none of them, so that a user's own question can be read."""


def train_tokenizer(out: Path, texts: set[str]) -> None:
    """Write OUT/text.txt and OUT/spiece.model; the same texts give the same model."""
    lines = sorted(texts) + word_lines()
    words = sorted(set(re.findall(r"[a-z0-9]+", " ".join(lines))))
    rng = Random(0)
    lines += [" ".join(rng.sample(words, len(words))) for _ in range(WORD_SALADS)]
    (out / "text.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        # Not from the file: its path would become part of the model.
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="unigram",
        vocab_size=VOCABULARY,
        hard_vocab_limit=False,
        character_coverage=1.0,
        required_chars=CHARACTERS,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    (out / "spiece.model").write_bytes(model.getvalue())

"""`tokenizer`: a small sentencepiece model of data sets' own text, with T5's special tokens.

Every word becomes one piece.
"""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import sentencepiece

from data_prep.command import local_folder, new_command
from data_prep.packed.stats import read_annotations
from data_prep.packing.annotation import TEXT_FIELDS
from vlds.runtime.terminal import tell
from vlds.runtime.whole_file import write_whole

ANSWER_FIELDS = ("answer", "multiple_choice_answer")
WORD_SALADS = 500
"""Lines of shuffled words: unigram training makes a word one piece if it has many contexts."""
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789,'-"
"""Always known, so that the model can read a user's own question."""


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> bytes:
    """The bytes of a unigram model with at most this many pieces; they depend on the texts only.

    Errors: ValueError if sentencepiece cannot train one.
    """
    lines = sorted(set(texts))
    words = sorted(set(re.findall(r"[a-z0-9]+", " ".join(lines).lower())))
    rng = Random(0)
    lines += [" ".join(rng.sample(words, len(words))) for _ in range(WORD_SALADS)]
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            # Not a file: the model would contain its path.
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocabulary_size,
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
    except (RuntimeError, OSError) as error:  # sentencepiece raises either, without a pattern
        raise ValueError(
            f"--vocab-size {vocabulary_size}: sentencepiece cannot make a model of these texts "
            f"({' '.join(str(error).split())}); give another number, or more text"
        ) from None
    return model.getvalue()


def texts_of(folders: Iterable[Path]) -> Iterator[str]:
    """Questions, statements, captions and answers of packed data sets."""
    for annotation in read_annotations(folders):
        yield from (annotation[f] for f in TEXT_FIELDS if f in annotation)
        yield from (str(annotation[f]) for f in ANSWER_FIELDS if f in annotation)
        yield from map(str, annotation.get("answers") or ())
        if "label" in annotation:
            yield from _label_texts(annotation["label"])


def _label_texts(label: object) -> list[str]:
    """The words of a label: answers with soft scores, SNLI-VE's word, or NLVR2's true and false."""
    if isinstance(label, str):
        return [label]
    return [str(key) for key in label] if isinstance(label, dict) else ["true", "false"]


def add_command(commands: Any) -> None:
    """Add `tokenizer`."""
    parser = new_command(
        commands,
        "tokenizer",
        "train a small sentencepiece model on the text of packed data sets",
        "For models without pretrained weights: a sentencepiece model with T5's special tokens, "
        "trained on the questions, statements, captions and answers of one or several data sets.",
        examples=["tokenizer shards/mine --out spiece.model --vocab-size 500"],
    )
    parser.add_argument(
        "folders", type=local_folder, nargs="+", metavar="DIR", help="folders of shards"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.model")
    parser.add_argument("--vocab-size", type=int, default=1000, help="most pieces (default 1000)")

    def run(args: argparse.Namespace) -> None:
        model = train_tokenizer(texts_of(args.folders), args.vocab_size)
        write_whole(args.out, model, stream=True)
        num_pieces = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
        tell(f"wrote {args.out}: {num_pieces:,} pieces, at most {args.vocab_size:,}")

    parser.set_defaults(run=run)

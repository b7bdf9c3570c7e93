"""`tokenizer`, a small sentencepiece model of packed texts or BERT's word pieces of them, and
`answers`, the frequent answers."""

from __future__ import annotations

import argparse
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import sentencepiece

from vlds.data.shards.remote_folder import Folder
from vlds.runtime.files import whole_folder, write_whole
from vlds.runtime.terminal import tell
from vlds.schema import CHOICE_LETTERS

from ..command import any_folder, at_least, new_command
from ..json_rows import clean
from ..packing.pack import TEXT_FIELDS
from .stats import read_annotations

if TYPE_CHECKING:
    from tokenizers import BertWordPieceTokenizer

WORD_SALADS = 500
"""Lines of shuffled words: unigram training makes a word one piece if it has many contexts."""
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789,'-"
"""Always known. A sentencepiece model can so read a user's own question; word pieces know them as
words of one character, and any other new word is unknown."""
BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
OFTEN = 9
"""The usual 3,129 answers of VQA v2 occur nine times or more."""


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> bytes:
    """The bytes of a unigram model with T5's special tokens and at most this many pieces; every
    word becomes one piece. They depend on the texts only.

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
            hard_vocab_limit=False,  # the texts may have fewer pieces
            character_coverage=1.0,
            required_chars=CHARACTERS,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            num_threads=1,  # more would make the bytes depend on their timing
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:  # sentencepiece raises either, without a pattern
        raise ValueError(
            f"--vocab-size {vocabulary_size}: sentencepiece cannot make a model of these texts "
            f"({' '.join(str(error).split())}); give another number, or more text"
        ) from None
    return model.getvalue()


def train_word_pieces(texts: Iterable[str], vocabulary_size: int) -> BertWordPieceTokenizer:
    """BERT's tokenizer with at most this many pieces, in lower case; it depends on the texts only.

    Errors: ValueError if the characters alone are more pieces.
    """
    from tokenizers import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer()
    lines = sorted(set(texts))
    characters = sorted({*CHARACTERS, *"".join(lines).lower()} - {" "})
    # The trainer meets the characters inside words in a random order, by which it also breaks ties
    # between pieces. As the first entries they have one order, and a second tokenizer has the same
    # vocabulary without them as special tokens.
    inside = sorted({f"##{c}" for word in _words(tokenizer, lines) for c in word[1:]})
    tokenizer.train_from_iterator(
        iter(lines), vocabulary_size, min_frequency=1, initial_alphabet=characters,
        special_tokens=[*BERT_TOKENS, *inside], show_progress=False,
    )  # fmt: skip
    tokenizer = BertWordPieceTokenizer(tokenizer.get_vocab())
    if (size := tokenizer.get_vocab_size()) > vocabulary_size:
        raise ValueError(
            f"--vocab-size {vocabulary_size}: the characters alone are {size:,} pieces; give "
            "at least that many"
        )
    return tokenizer


def _words(tokenizer: BertWordPieceTokenizer, lines: Iterable[str]) -> Iterator[str]:
    """What BERT's rules divide the lines into, before they become pieces."""
    for line in lines:
        text = tokenizer.normalize(line)
        yield from (word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))


def texts_of(folders: Iterable[Folder]) -> Iterator[str]:
    """Questions, statements, captions, choices and answers of packed data sets."""
    for annotation in read_annotations(folders):
        yield from (annotation[f] for f in TEXT_FIELDS if f in annotation)
        yield from (
            str(annotation[f]) for f in ("answer", "multiple_choice_answer") if f in annotation
        )
        yield from map(str, annotation.get("answers") or ())
        yield from map(str, annotation.get("choices") or ())
        if "answer_index" in annotation:  # all letters: some may be no right answer in these data
            yield from CHOICE_LETTERS
        match annotation.get("label", {}):
            case str(word):  # SNLI-VE's
                yield word
            case dict(scores):  # VQA's answers
                yield from map(str, scores)
            case _:  # NLVR2's
                yield from ("true", "false")


def best_answer(annotation: Mapping[str, Any]) -> str | None:
    """The official best answer of a question, else the one with the highest score, if any."""
    official = annotation.get("source", {}).get("multiple_choice_answer", annotation.get("answer"))
    if official is not None:
        return str(official).strip().lower()
    label = annotation.get("label")
    if not isinstance(label, dict) or not label:
        return None
    return clean(max(label, key=label.__getitem__)).lower()  # as VQA learns it


def add_command(commands: Any) -> None:
    parser = new_command(
        commands,
        "tokenizer",
        "For models without pretrained weights: a sentencepiece model with T5's special tokens, or "
        "a folder with BERT's word pieces, trained on the questions, statements, captions and "
        "answers of one or several data sets.",
        examples=[
            "tokenizer shards/mine --out spiece.model --vocab-size 500",
            "tokenizer shards/mine --kind bert --out words",
        ],
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.model or FOLDER")
    parser.add_argument(
        "--kind", choices=["t5", "bert"], default="t5",
        help="t5: a sentencepiece model (default); bert: a folder with word pieces",
    )  # fmt: skip
    parser.add_argument("--vocab-size", type=int, default=1000, help="most pieces (default 1000)")
    parser.add_argument(
        "folders", type=any_folder, nargs="+", metavar="DIR", help="folders of shards"
    )
    parser.set_defaults(run=_write_tokenizer)

    parser = new_command(
        commands,
        "answers",
        "Counts the best answer of every question and writes those that occur often, the most "
        "frequent first, as a JSON list: for `vqav2 --vocabulary`, for example.",
        examples=["answers shards/mine --out answers.json --min-count 3"],
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    parser.add_argument(
        "--min-count", type=at_least(1), default=OFTEN, metavar="N", help=f"default: {OFTEN}"
    )
    parser.add_argument(
        "folders", type=any_folder, nargs="+", metavar="DIR", help="folders of shards"
    )
    parser.set_defaults(run=_write_answers)


def _write_tokenizer(args: argparse.Namespace) -> None:
    texts = texts_of(args.folders)
    if args.kind == "bert":
        tokenizer = train_word_pieces(texts, args.vocab_size)
        config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
        with whole_folder(args.out) as partial:
            tokenizer.save_model(str(partial))
            tokenizer.save(str(partial / "tokenizer.json"))
            (partial / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        size = tokenizer.get_vocab_size()
    else:
        model = train_tokenizer(texts, args.vocab_size)
        write_whole(args.out, model, stream=True)
        size = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    tell(f"wrote {args.out}: {size:,} pieces, at most {args.vocab_size:,}")


def _write_answers(args: argparse.Namespace) -> None:
    counts = Counter(filter(None, map(best_answer, read_annotations(args.folders))))
    # most_common keeps the order of first occurrence among equal counts, so the list repeats.
    often = [answer for answer, count in counts.most_common() if count >= args.min_count]
    if not often:
        raise ValueError(
            f"--min-count {args.min_count}: none of {len(counts):,} answers occurs so often; "
            "give a smaller number"
        )
    write_whole(args.out, json.dumps(often, ensure_ascii=False, indent=0), stream=True)
    share = sum(counts[answer] for answer in often) / counts.total()
    tell(f"{len(often):,} of {len(counts):,} answers, to {share:.1%} of the questions")

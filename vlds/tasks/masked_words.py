"""Hidden words of a sentence that a picture helps to restore: masked words, and infilling.

`MaskedWords` fills the gaps in their own places, as in BERT and in METER's pre-training
(https://arxiv.org/abs/2111.02387), which masks whole words. `SpanPrediction` is the pre-training of
VL-T5 and VL-BART (https://arxiv.org/abs/2102.02779): neighbours among the hidden words are hidden
together as a run; T5 writes the hidden words behind the sentinels that stand for their runs, BART
writes the sentence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal
from zlib import crc32

import numpy as np

from vlds.runtime.checks import Count, PositiveShare
from vlds.schema import Decoding, Example, Masking, Sample
from vlds.tasks.answer_task import AnswerTask
from vlds.tasks.base import Task, as_text, labelled, require_label
from vlds.tasks.metrics.plain_scores import matches, mean

SENTINEL = "<extra_id_{}>"
SENTINELS = re.compile(r"<extra_id_\d+>")
MASK = "<mask>"


def hidden_runs(permutation: Sequence[int], share: float) -> list[range]:
    """Runs of hidden words, from left to right: the first words of a permutation of their places
    are hidden."""
    # Neighbours join: of 6 words, the places 4, 1 and 2 -> range(1, 3), range(4, 5).
    runs: list[range] = []
    for place in sorted(permutation[: int(max(share * len(permutation), 1))]):
        if runs and runs[-1].stop == place:
            runs[-1] = range(runs[-1].start, place + 1)
        else:
            runs.append(range(place, place + 1))
    return runs


def corrupted(
    words: Sequence[str], runs: Sequence[range], target: Literal["spans", "sentence"]
) -> tuple[str, str]:
    """The sentence with a mark for each run, and what the model writes: `spans`, the marks, each
    before the words of its run; `sentence`, the whole sentence."""
    # "a b c d" without b and c: "a <extra_id_0> d" and "<extra_id_0> b c", or "a <mask> d" and
    # "a b c d".
    spans = target == "spans"
    marks = [SENTINEL.format(number) if spans else MASK for number in range(len(runs))]
    mark_at = {run.start: mark for run, mark in zip(runs, marks, strict=True)}
    # The mark stands where its run begins; the other hidden words leave nothing.
    hidden = {place for run in runs for place in run}
    shown = [mark_at.get(n, w) for n, w in enumerate(words) if n in mark_at or n not in hidden]
    if not spans:
        return " ".join(shown), " ".join(words)
    # No sentinel closes the list, as in VL-T5 and unlike in T5's own pre-training.
    pairs = zip(marks, runs, strict=True)
    texts = (" ".join([mark, *words[run.start : run.stop]]) for mark, run in pairs)
    return " ".join(shown), " ".join(texts)


def words_of(text: str) -> str:
    """A text as it is scored: without sentinels, which are lost in decoding, and in lower case."""
    # Decoding drops special tokens, so references lose them too before the two are compared.
    return " ".join(SENTINELS.sub(" ", text).lower().split())


@dataclass(frozen=True, kw_only=True)
class MaskedWords(Task):
    """Predict the masked words of captions; scored by the share of captions that are restored.

    Needs a model with a head for it, such as CrossModal with `masked_words`. Scores ignore case and
    white space.
    """

    kinds: ClassVar[tuple[str, ...]] = ("caption",)
    input_field: ClassVar[str | None] = "caption"
    masks_words: ClassVar[bool] = True
    draws_prompt: ClassVar[bool] = True
    reduction: ClassVar[Literal["example_mean", "token_mean"]] = "token_mean"

    share: PositiveShare = 0.15
    """Share of the words that is predicted; of these, four fifths are masked, a tenth is another
    word, a tenth the word itself. In evaluation all are masked."""
    prompt: str = ""
    """Text before the caption, whose words are masked too."""
    max_prompt_tokens: Count = 40
    """Longest caption in tokens, special tokens included; longer ones are cut."""
    max_target_tokens: Count = 1
    """Not used: the answers stand in the caption's own places."""
    decoding: Decoding = field(default_factory=Decoding)
    """Not used: every place gets its most likely word."""

    def example(
        self, name: str, sample: Sample, annotation: int | None, rng: np.random.Generator | None
    ) -> Example:
        """A caption and how it is masked; in evaluation always in the same way."""
        assert annotation is not None
        given = sample.annotations[annotation]
        if rng is None and "caption" not in given:
            return Example(given["id"], name, self.prompt, None)
        text = self.prompt + require_label(given, "caption", sample).strip()
        # In evaluation the id decides: the same words in each run and on each rank.
        seed = crc32(given["id"].encode()) if rng is None else int(rng.integers(1 << 32))
        masking = Masking(self.share, seed, always_mask=rng is None)
        reference = text if rng is None else None
        return Example(given["id"], name, text, text, reference=reference, masking=masking)

    def score(
        self, predictions: Mapping[str, str], references: Mapping[str, Any]
    ) -> dict[str, float]:
        """Share of the captions whose words were all found."""
        values = self.example_scores("restored", predictions, references)
        return {"restored": mean(values)} if values else {}

    def example_scores(
        self, name: str, predictions: Mapping[str, str], references: Mapping[str, Any]
    ) -> Sequence[float]:
        """1 for a caption that was restored."""
        texts, known = labelled(predictions, references)
        return matches(map(closed, texts), [closed(as_text(given)) for given in known])

    def answer_of(self, reference: Any) -> str | None:
        return as_text(reference)

    def correct(self, prediction: str, reference: Any) -> bool | None:
        return closed(prediction) == closed(as_text(reference))


def closed(text: str) -> str:
    """Without white space, which tokenizers put around punctuation, and in lower case."""
    return "".join(text.lower().split())


TEXT_FIELDS = {"caption": "caption", "pair_text": "text"}
"""Kind of samples -> the field of an annotation with its sentence."""


@dataclass(frozen=True, kw_only=True)
class SpanPrediction(AnswerTask):
    """Restore the hidden words of a sentence about a picture; scored by the share of sentences of
    which all hidden words are right, whatever their case.

    Training hides other words of a sentence each time; evaluation always hides the same.
    """

    kinds: ClassVar[tuple[str, ...]] = ("caption", "pair_text")
    input_field: ClassVar[str | None] = "caption"
    draws_prompt: ClassVar[bool] = True
    accuracy_name: ClassVar[str] = "restored"
    class_loss = None

    share: PositiveShare = 0.15
    """Share of the words that is hidden, rounded down, at least one word; VL-BART hides 0.3."""
    target: Literal["spans", "sentence"] = "spans"
    """spans: the hidden words behind their sentinels <extra_id_0>, <extra_id_1>, ... (T5).
    sentence: the whole sentence, whose runs are replaced by <mask> (BART)."""
    prompt: str = "span prediction: "
    """Text before the sentence, trailing space included; VL-BART has "denoise text: "."""
    max_prompt_tokens: Count = 20
    """Longest prompt and sentence in tokens, special tokens included; longer ones are cut."""
    max_target_tokens: Count = 20
    """Longest target in tokens, special tokens included; longer ones are cut."""
    decoding: Decoding = field(default_factory=lambda: Decoding(max_new_tokens=19))
    """How the model's output becomes text; greedy."""

    def example(
        self, name: str, sample: Sample, annotation: int | None, rng: np.random.Generator | None
    ) -> Example:
        """A sentence with hidden words, and what the model writes."""
        assert annotation is not None
        given = sample.annotations[annotation]
        text_field = TEXT_FIELDS[sample.kind]
        if rng is None and text_field not in given:
            return Example(given["id"], name, self.prompt, None)
        words = require_label(given, text_field, sample).split()
        draws = np.random.default_rng(crc32(given["id"].encode())) if rng is None else rng
        runs = hidden_runs(draws.permutation(len(words)).tolist(), self.share)
        source, target = corrupted(words, runs, self.target)
        reference = target if rng is None else None
        return Example(given["id"], name, self.prompt + source, target, reference=reference)

    def correct(self, prediction: str, reference: Any) -> bool | None:
        return words_of(prediction) == words_of(as_text(reference))

    def answer_of(self, reference: Any) -> str | None:
        return as_text(reference)

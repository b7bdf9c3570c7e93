"""Captions: describe a picture in a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np

from vlds.runtime.checks import Count
from vlds.schema import Decoding, Example, Sample
from vlds.tasks.base import Task, labelled, optional_texts, require_label
from vlds.tasks.metrics import caption_scores as metric


@dataclass(frozen=True, kw_only=True)
class Caption(Task):
    """Describe a picture; scored by CIDEr and similar scores against all its captions.

    Each caption is a training example; evaluation writes one caption per picture. The official
    scores need Java and pycocoevalcap. Without them there is `cider_plain_tokens`, which is not
    comparable with CIDEr.
    """

    kinds: ClassVar[tuple[str, ...]] = ("caption",)
    input_field: ClassVar[str | None] = None
    reduction: ClassVar[Literal["example_mean", "token_mean"]] = "token_mean"
    unit: ClassVar[Literal["annotation", "sample"]] = "sample"

    prompt: str = "caption: "
    """The whole input, trailing space included; "" for none."""
    max_prompt_tokens: Count = 40
    """Longest input in tokens, special tokens included; longer ones are cut."""
    max_target_tokens: Count = 40
    """Longest caption to learn in tokens, special tokens included; longer ones are cut."""
    decoding: Decoding = field(default_factory=lambda: Decoding(num_beams=5, max_new_tokens=19))
    """How the model's output becomes a caption; five beams, 20 tokens with the start token."""
    scores: list[str] = field(default_factory=list)
    """CIDEr, BLEU-1 to BLEU-4, METEOR, ROUGE-L, SPICE, cider_plain_tokens, word_f1; the first
    stands for the task. None: CIDEr, word_f1 in training, all but SPICE in `vlds evaluate`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if odd := [name for name in self.scores if name not in metric.NAMES]:
            raise ValueError(f"scores: got {', '.join(odd)}; there are {', '.join(metric.NAMES)}")

    def example(
        self, name: str, sample: Sample, annotation: int | None, rng: np.random.Generator | None
    ) -> Example:
        """One caption in training; in evaluation all captions are the reference."""
        if annotation is not None:
            given = sample.annotations[annotation]
            caption = require_label(given, "caption", sample).strip()
            return Example(given["id"], name, self.input_of(sample), caption, reference=[caption])
        assert rng is None, "training runs over annotations"
        # None instead of an empty list: a test split has no captions, and its pictures no score.
        captions = [given["caption"].strip() for given in sample.annotations if "caption" in given]
        first = captions[0] if captions else None
        return Example(sample.id, name, self.input_of(sample), first, reference=captions or None)

    def input_of(self, sample: Sample) -> str:
        """The text that the model reads with the picture."""
        return self.prompt

    def score(
        self, predictions: Mapping[str, str], references: Mapping[str, Any]
    ) -> dict[str, float]:
        """The scores that the recipe names, or else the quick ones."""
        captions, truth = self.scored_texts(predictions, references)
        names = self.scores or metric.quick_scores()
        return metric.caption_scores(names, captions, truth) if captions else {}

    def example_scores(
        self, name: str, predictions: Mapping[str, str], references: Mapping[str, Any]
    ) -> Sequence[float] | None:
        """CIDEr (with the document frequencies of all pictures), ROUGE-L, cider_plain_tokens and
        word_f1 are means over pictures; BLEU, METEOR and SPICE are not."""
        return metric.picture_values(name, *self.scored_texts(predictions, references))

    def scored_texts(
        self, predictions: Mapping[str, str], references: Mapping[str, Any]
    ) -> tuple[list[str], list[list[str]]]:
        """Predictions and references of the labelled pictures, cleaned for scoring."""
        texts, known = labelled(predictions, references)
        captions = [optional_texts({"captions": given}, "captions") for given in known]
        truth = [[self.scored_text(text) for text in given] for given in captions]
        return [self.scored_text(text) for text in texts], truth

    def scored_text(self, text: str) -> str:
        return text

    def missing_for_scores(self) -> str | None:
        """Java or the package pycocoevalcap."""
        for name in self.scores:
            if (missing := metric.missing_for(name)) is not None:
                return f"scores: {name} was asked for, and {missing}"
        return None

    def left_out(self) -> str | None:
        """The official scores if Java or pycocoevalcap is missing."""
        # `thorough` fills in all that can be computed; the recipe did not ask for these either.
        by_default = self.scores in ([], metric.all_scores())
        if not by_default or (missing := metric.missing_for("CIDEr")) is None:
            return None
        return (
            f"left out are CIDEr, BLEU, METEOR and ROUGE-L: {missing}; cider_plain_tokens is not "
            "comparable with CIDEr"
        )

    def all_scores(self, computed: Sequence[str]) -> Sequence[str]:
        """The official ones too, which need Java or take long."""
        return metric.NAMES if computed else ()

    def notes(self, predictions: Mapping[str, str], references: Mapping[str, Any]) -> list[str]:
        """Scores that are left out, and CIDEr of too few pictures."""
        # Pictures without captions are predicted and do not count.
        known = sum(given is not None for given in references.values())
        few = metric.few_pictures(self.scores or metric.quick_scores(), known)
        return [*super().notes(predictions, references), *few]

    def thorough(self) -> Task:
        """All scores that this machine can compute, unless the recipe names some."""
        return self if self.scores else replace(self, scores=metric.all_scores())

    def answer_of(self, reference: Any) -> str | None:
        """None: many captions are right."""
        return None

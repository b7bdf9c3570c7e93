"""Retrieval: which pictures fit a caption best, and which captions a picture? Every caption of the
data is compared with every picture, as METER is scored on Flickr30k and COCO
(https://arxiv.org/abs/2111.02387).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isnan, nan
from typing import Any, ClassVar, NamedTuple

import numpy as np

from vlds.runtime.checks import Count
from vlds.schema import Decoding, Example, Sample
from vlds.tasks.base import Task, as_text, labelled, require_label
from vlds.tasks.class_output import ClassLoss
from vlds.tasks.matching import MATCH, OTHER, false_captions
from vlds.tasks.metrics.plain_scores import mean, score_values

DEPTHS = (1, 5, 10)
"""How many of the best count as found."""


class Places(NamedTuple):
    """Where a caption and its picture stand: the prediction of a caption, written as JSON."""

    pictures: Sequence[str]
    """The pictures that fit the caption best, the best first; names as in references."""
    caption: int
    """Place of the caption among all of the data, by how well they fit its picture, from 1 on."""

    @property
    def text(self) -> str:
        return json.dumps({"pictures": list(self.pictures), "caption": self.caption})

    @classmethod
    def read(cls, text: str) -> Places:
        """A prediction; one in another form names no picture, and its caption comes last."""
        try:
            given = json.loads(text)
            return cls([as_text(name) for name in given["pictures"]], int(given["caption"]))
        except (ValueError, LookupError, TypeError, ArithmeticError):
            return cls((), 0)

    def of(self, picture: str) -> tuple[float, float]:
        """Places of the picture for the caption and of the caption for the picture, from 1 on."""
        place = self.pictures.index(picture) + 1 if picture in self.pictures else inf
        return place, self.caption if self.caption > 0 else inf


@dataclass(frozen=True, kw_only=True)
class Retrieval(Task):
    """Find the picture of a caption among those of the data, and a picture's captions; scored by
    the shares that are among the best 1, 5 and 10.

    In training, a caption competes with captions of other pictures, drawn at random. The head's
    score of "true" ranks: with the name of a run's task Matching, `start` takes its head over.
    """

    kinds: ClassVar[tuple[str, ...]] = ("caption",)
    input_field: ClassVar[str | None] = "caption"
    ranks: ClassVar[bool] = True
    draws_prompt: ClassVar[bool] = True
    class_loss: ClassVar[ClassLoss | None] = "ranking"
    labels: ClassVar[tuple[str, ...]] = (OTHER, MATCH)

    false_texts: Count = 15
    """Captions of other pictures with which one competes in training."""
    fold: Count | None = None
    """Compare so many pictures at a time with their captions, such as 1000 of COCO's 5,000; scores
    are means over all. Default: all pictures with all captions."""
    prompt: str = ""
    """Text before the caption, trailing space included; "" for none."""
    max_prompt_tokens: Count = 40
    """Longest prompt and caption in tokens, special tokens included; longer ones are cut."""
    max_target_tokens: Count = 1
    """Not used: nothing is written."""
    decoding: Decoding = field(default_factory=Decoding)
    """Not used."""

    def num_others(self, *, evaluation: bool) -> int:
        return 0 if evaluation else self.false_texts

    def example(
        self, name: str, sample: Sample, annotation: int | None, rng: np.random.Generator | None
    ) -> Example:
        """A caption; in training with a false one of each other sample, unless all are its own."""
        assert annotation is not None
        given = sample.annotations[annotation]
        if rng is None and "caption" not in given:
            return Example(given["id"], name, self.prompt, None)
        text = self.prompt + require_label(given, "caption", sample).strip()
        picture, rivals = f"{sample.dataset}/{sample.id}", []
        if rng is not None:
            # A place is drawn for each, so that what follows does not depend on equal captions.
            for other, place in zip(sample.others, rng.random(len(sample.others)), strict=True):
                if texts := false_captions(sample, other):
                    rivals.append(self.prompt + texts[int(place * len(texts))].strip())
        example = Example(
            given["id"],
            name,
            text,
            Places([picture], 1).text,
            reference=picture if rng is None else None,
            rivals=tuple(rivals),
        )
        return self.with_classes(example, {MATCH: 1.0})

    def score(
        self, predictions: Mapping[str, str], references: Mapping[str, Any]
    ) -> dict[str, float]:
        """image_R@K: share of captions whose picture is among the best K; text_R@K: share of
        pictures with a caption among the best K."""
        values = self.values(*labelled(predictions, references))
        known = {n: [v for v in given if not isnan(v)] for n, given in values.items()}
        return {name: mean(given) for name, given in known.items() if given}

    def example_scores(
        self, name: str, predictions: Mapping[str, str], references: Mapping[str, Any]
    ) -> Sequence[float] | None:
        """Those of text_R@K stand at the first caption of each picture."""
        return score_values(name, self.values(*labelled(predictions, references)))

    def values(self, texts: Sequence[str], pictures: Sequence[str]) -> dict[str, list[float]]:
        """Score -> each caption's value."""
        places = [Places.read(t).of(p) for t, p in zip(texts, pictures, strict=True)]
        # Of a picture's captions the best counts, at the place of the first.
        best: dict[str, float] = {}
        for (_, place), picture in zip(places, pictures, strict=True):
            best[picture] = min(place, best.get(picture, inf))
        firsts = [best.pop(picture, nan) for picture in pictures]
        of_images = {f"image_R@{k}": [float(place <= k) for place, _ in places] for k in DEPTHS}
        of_texts = {
            f"text_R@{k}": [nan if isnan(place) else float(place <= k) for place in firsts]
            for k in DEPTHS
        }
        return {**of_images, **of_texts}

    def answer_of(self, reference: Any) -> str | None:
        return as_text(reference)

    def correct(self, prediction: str, reference: Any) -> bool | None:
        """True if the caption's picture comes first."""
        return Places.read(prediction).of(as_text(reference))[0] == 1

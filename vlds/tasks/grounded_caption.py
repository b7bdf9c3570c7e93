"""Grounded captions: name what a visual token shows, as in VL-T5's pre-training
(https://arxiv.org/abs/2102.02779), whose names are the detector's attributes and objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar
from zlib import crc32

import numpy as np

from vlds.metrics.exact_match import matches
from vlds.schema import Decoding, Example, Sample, SkipSample
from vlds.tasks.answer_task import AnswerTask
from vlds.tasks.base import as_text, optional_texts, require_label
from vlds.tasks.hidden_words import SENTINEL, words_of
from vlds.tasks.refer import POINTERS


@dataclass(frozen=True, kw_only=True)
class GroundedCaption(AnswerTask):
    """Name the region that a visual token stands for; scored by the share of right names.

    An annotation has `regions`: a name for each visual token, "" where there is nothing to name.
    Training draws a region each time; evaluation always asks about the same one.
    """

    kinds: ClassVar[tuple[str, ...]] = ("regions",)
    label_field: ClassVar[str] = "regions"
    input_field: ClassVar[str | None] = "pointer"
    draws_prompt: ClassVar[bool] = True
    class_loss = None

    num_regions: int = 1
    """Regions of a picture that one example names; of several, each has a sentinel. VL-T5 has 4 in
    its second stage, on VCR."""
    prompt: str = "caption region: "
    """Text before the visual token, trailing space included; "" for none."""
    max_prompt_tokens: int = 20
    """Longest input in tokens, special tokens included; longer ones are cut."""
    max_target_tokens: int = 20
    """Longest name in tokens, special tokens included; longer ones are cut."""
    decoding: Decoding = field(default_factory=lambda: Decoding(max_new_tokens=19))
    """How the model's output becomes a name; greedy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.num_regions <= len(POINTERS):
            raise ValueError(f"num_regions: got {self.num_regions}; give 1 to {len(POINTERS)}")

    def example(
        self, name: str, sample: Sample, annotation: int | None, rng: np.random.Generator | None
    ) -> Example:
        """A visual token and the name of its region."""
        assert annotation is not None
        given = sample.annotations[annotation]
        if rng is None and self.label_field not in given:
            return Example(given["id"], name, self.prompt + given.get("pointer", ""), None)
        names, chosen = drawn_regions(sample, given, self.num_regions, rng)
        answer = names_of(names, chosen)
        reference = answer if rng is None else None
        return Example(
            given["id"], name, self.prompt + pointers_to(chosen), answer, reference=reference
        )

    def example_values(self, texts: list[str], known: list[Any]) -> dict[str, list[float]]:
        """1 for a right name, whatever its case."""
        return {"accuracy": matches(map(words_of, texts), [words_of(as_text(t)) for t in known])}

    def answer_of(self, reference: Any) -> str | None:
        return as_text(reference)

    def correct(self, prediction: str, reference: Any) -> bool | None:
        return words_of(prediction) == words_of(as_text(reference))


def drawn_regions(
    sample: Sample,
    given: Mapping[str, Any],
    num_regions: int,
    rng: np.random.Generator | None,
) -> tuple[list[str], list[int]]:
    """The names of an annotation's regions, and those that an example is about, in random order;
    without `rng` always the same.

    Errors: SkipSample if no region has a name.
    """
    require_label(given, "regions", sample)
    names = optional_texts(given, "regions")[: len(POINTERS)]
    named = [number for number, text in enumerate(names) if text]
    if not named:
        raise SkipSample(f"sample {sample.key}: none of its regions has a name")
    draws = np.random.default_rng(crc32(given["id"].encode())) if rng is None else rng
    return names, draws.permutation(named)[:num_regions].tolist()


def pointers_to(regions: Sequence[int]) -> str:
    """The visual tokens of regions."""
    return " ".join(POINTERS[number] for number in regions)


def names_of(names: Sequence[str], regions: Sequence[int]) -> str:
    """The name of one region; of several, each name behind a sentinel."""
    if len(regions) == 1:
        return names[regions[0]]
    return " ".join(f"{SENTINEL.format(n)} {names[region]}" for n, region in enumerate(regions))

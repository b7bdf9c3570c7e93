"""What tasks about named regions of a picture have in common (VL-T5's pre-training,
https://arxiv.org/abs/2102.02779)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar
from zlib import crc32

import numpy as np

from vlds.runtime.checks import Limits
from vlds.schema import Sample, SkipSample
from vlds.tasks.answer_task import AnswerTask
from vlds.tasks.base import optional_texts, require_label
from vlds.tasks.hidden_words import SENTINEL
from vlds.tasks.refer import POINTERS


@dataclass(frozen=True, kw_only=True)
class RegionTask(AnswerTask):
    """A task whose annotations have `regions`: a name for each visual token, "" where there is
    nothing to name. Training draws a region each time; evaluation always asks about the same one.
    """

    kinds: ClassVar[tuple[str, ...]] = ("regions",)
    label_field: ClassVar[str] = "regions"
    draws_prompt: ClassVar[bool] = True
    class_loss = None

    num_regions: Annotated[int, Limits(1, len(POINTERS))] = 1
    """Regions of a picture that one example is about; of several, each name stands behind a
    sentinel. VL-T5 has 4 in its second stage, on VCR."""


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

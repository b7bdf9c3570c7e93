"""Descriptions of a clip with its subtitles: TVC, YC2C."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from vlds.schema import Decoding, Sample
from vlds.tasks.caption import Caption
from vlds.tasks.clip_text import subtitles, with_prompt


@dataclass(frozen=True, kw_only=True)
class VideoCaption(Caption):
    """Describe a clip; scored as captions of pictures are, behind VALUE's own clean-up.

    The input is that of VL-Adapter (https://arxiv.org/abs/2112.06825) for TVC and YC2C: subtitles,
    and where the sample has a `span`, the seconds to describe.
    """

    kinds: ClassVar[tuple[str, ...]] = ("video_caption",)
    reduction: ClassVar[Literal["example_mean", "token_mean"]] = "example_mean"

    prompt: str = ""
    """Text after the input; "" for none. It is what gets lost where the input is cut."""
    max_prompt_tokens: int = 600
    """Longest input in tokens, special tokens included; longer ones are cut at the end."""
    max_target_tokens: int = 20
    """Longest description to learn in tokens, special tokens included; longer ones are cut."""
    decoding: Decoding = field(default_factory=lambda: Decoding(num_beams=5, max_new_tokens=19))
    """How the model's output becomes a description; five beams."""

    def input_of(self, sample: Sample) -> str:
        """`[Subs] .. [TS] (..)`, then the prompt."""
        span = sample.extra.get("span")
        # The original code prints the list as Python does.
        seconds = "" if span is None else f" [TS] ({list(span)})"
        return with_prompt(f"[Subs] {subtitles(sample)}{seconds}", self.prompt)

    def scored_text(self, text: str) -> str:
        """Each character that is not ASCII becomes a blank, as in the evaluation of VALUE
        (https://github.com/VALUE-Leaderboard/EvaluationTools)."""
        return "".join(character if character.isascii() else " " for character in text)

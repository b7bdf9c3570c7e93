"""Clips with their subtitles: questions with choices (TVQA, How2QA), descriptions (TVC, YC2C).

The inputs are those of VL-Adapter (https://arxiv.org/abs/2112.06825). For clips the prompt comes
last; for pictures it comes first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar, Literal

from vlds.runtime.checks import Count
from vlds.schema import Decoding, Sample
from vlds.tasks.answer_task import AnswerTask
from vlds.tasks.base import as_text
from vlds.tasks.caption import Caption


@dataclass(frozen=True, kw_only=True)
class VideoQA(AnswerTask):
    """Choose the answer to a question about a clip; scored by accuracy.

    The input is that of VL-Adapter for TVQA and How2QA: subtitles, question, the seconds that it is
    about, and the choices; the model writes the choice's name, "a0" to "a4".
    """

    kinds: ClassVar[tuple[str, ...]] = ("video_qa",)
    label_field: ClassVar[str] = "answer_index"

    prompt: str = ""
    """Text after the input; "" for none. It is lost if the input is cut."""
    max_prompt_tokens: Count = 600
    """Longest input in tokens, special tokens included; longer ones are cut at the end."""
    max_target_tokens: Count = 20
    """Longest target in tokens; the name of a choice is never cut."""
    decoding: Decoding = field(default_factory=lambda: Decoding(num_beams=5, max_new_tokens=19))
    """How the model's output becomes the name of a choice; five beams."""

    def question(self, sample: Sample, given: Mapping[str, Any]) -> str:
        """`[Subs] .. [Q] .. [TS] (..) [Choices] a0: .. a1: ..`, then the prompt. Each choice ends
        in one full stop."""
        # A choice may end in a full stop already.
        stated = (choice.strip(". ") for choice in given["choices"])
        choices = " ".join(f"a{index}: {choice}." for index, choice in enumerate(stated))
        text = (
            f"[Subs] {subtitles(sample)} [Q] {given['question']} [TS] ({given['span']}) "
            f"[Choices] {choices}"
        )
        return f"{text} {self.prompt}" if self.prompt else text

    def answer_text(self, label: Any) -> str:
        return f"a{label}"

    def answer_of(self, reference: Any) -> str | None:
        return as_text(reference)


def subtitles(sample: Sample) -> str:
    """A clip's subtitles as one text; "" if it has none."""
    return " ".join(line["text"].strip() for line in sample.extra.get("subtitles") or ())


@dataclass(frozen=True, kw_only=True)
class VideoCaption(Caption):
    """Describe a clip; scored like captions of pictures, after VALUE's own clean-up.

    The input is that of VL-Adapter for TVC and YC2C: subtitles, and the seconds to describe if the
    sample has a `span`.
    """

    kinds: ClassVar[tuple[str, ...]] = ("video_caption",)
    reduction: ClassVar[Literal["example_mean", "token_mean"]] = "example_mean"

    prompt: str = ""
    """Text after the input; "" for none. It is lost if the input is cut."""
    max_prompt_tokens: Count = 600
    """Longest input in tokens, special tokens included; longer ones are cut at the end."""
    max_target_tokens: Count = 20
    """Longest description to learn in tokens, special tokens included; longer ones are cut."""
    decoding: Decoding = field(default_factory=lambda: Decoding(num_beams=5, max_new_tokens=19))
    """How the model's output becomes a description; five beams."""
    score_each: Literal["clip", "description"] = "clip"
    """What the scores are means over. clip: all descriptions of a clip are the references of its
    one prediction, as in VALUE's evaluation. description: each description is the only reference of
    its clip's prediction, as in VL-Adapter's validation."""

    def input_of(self, sample: Sample) -> str:
        """`[Subs] .. [TS] (..)`, then the prompt."""
        span = sample.extra.get("span")
        # The original code prints the list as Python does.
        seconds = "" if span is None else f" [TS] ({list(span)})"
        text = f"[Subs] {subtitles(sample)}{seconds}"
        return f"{text} {self.prompt}" if self.prompt else text

    def scored_text(self, text: str) -> str:
        """Each character that is not ASCII becomes a blank, as in the evaluation of VALUE
        (https://github.com/VALUE-Leaderboard/EvaluationTools)."""
        return "".join(character if character.isascii() else " " for character in text)

    def scored_texts(
        self, predictions: Mapping[str, str], references: Mapping[str, Any]
    ) -> tuple[list[str], list[list[str]]]:
        """Predictions and references, one pair per clip or one per description."""
        texts, truth = super().scored_texts(predictions, references)
        if self.score_each == "clip":
            return texts, truth
        pairs = zip(texts, truth, strict=True)
        # One clip with two descriptions becomes two pairs, each with the clip's one prediction.
        repeated = [(text, [description]) for text, given in pairs for description in given]
        return [text for text, _ in repeated], [given for _, given in repeated]

    def example_scores(
        self, name: str, predictions: Mapping[str, str], references: Mapping[str, Any]
    ) -> Sequence[float] | None:
        """With `description`, a clip's value is the sum of its descriptions' values, scaled so that
        the mean over clips equals the mean over descriptions."""
        values = super().example_scores(name, predictions, references)
        if values is None or self.score_each == "clip":
            return values
        counts = [len(given) for given in references.values() if given is not None]
        # Values come in the order of the clips, as many for each as it has descriptions.
        scale, rest = len(counts) / len(values), iter(values)
        return [scale * sum(islice(rest, count)) for count in counts]

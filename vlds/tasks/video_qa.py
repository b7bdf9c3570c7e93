"""Questions about a clip with its subtitles and a few answers to choose from: TVQA, How2QA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from vlds.runtime.checks import Count
from vlds.schema import Decoding, Sample
from vlds.tasks.answer_task import AnswerTask
from vlds.tasks.base import as_text


@dataclass(frozen=True, kw_only=True)
class VideoQA(AnswerTask):
    """Choose the answer to a question about a clip; scored by accuracy.

    The input is that of VL-Adapter (https://arxiv.org/abs/2112.06825) for TVQA and How2QA:
    subtitles, question, the seconds that it is about, and the choices; the model writes the
    choice's name, "a0" to "a4".
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
        stated = (choice.strip(". ") for choice in given["choices"])
        choices = " ".join(f"a{index}: {choice}." for index, choice in enumerate(stated))
        text = (
            f"[Subs] {subtitles(sample)} [Q] {given['question']} [TS] ({given['span']}) "
            f"[Choices] {choices}"
        )
        return with_prompt(text, self.prompt)

    def answer_text(self, label: Any) -> str:
        return f"a{label}"

    def answer_of(self, reference: Any) -> str | None:
        return as_text(reference)


def subtitles(sample: Sample) -> str:
    """A clip's subtitles as one text; "" if it has none."""
    return " ".join(line["text"].strip() for line in sample.extra.get("subtitles") or ())


def with_prompt(text: str, prompt: str) -> str:
    """The whole input. For clips the prompt comes last; for pictures it comes first."""
    return f"{text} {prompt}" if prompt else text

"""Questions about a clip with its subtitles and a few answers to choose from: TVQA, How2QA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from vlds.metrics.exact_match import exact_match, matches
from vlds.schema import Decoding, Example, Sample
from vlds.tasks.base import Task, as_text, labelled, require_label
from vlds.tasks.clip_text import subtitles, with_prompt


@dataclass(frozen=True, kw_only=True)
class VideoQA(Task):
    """Choose the answer to a question about a clip; scored by accuracy.

    The input is that of VL-Adapter (https://arxiv.org/abs/2112.06825) for TVQA and How2QA:
    subtitles, question, the seconds that it is about, and the choices; the model writes the
    choice's name, "a0" to "a4".
    """

    kinds: ClassVar[tuple[str, ...]] = ("video_qa",)

    prompt: str = ""
    """Text after the input; "" for none. It is what gets lost where the input is cut."""
    max_prompt_tokens: int = 600
    """Longest input in tokens, special tokens included; longer ones are cut at the end."""
    max_target_tokens: int = 20
    """Longest target in tokens; the name of a choice is never cut."""
    decoding: Decoding = field(default_factory=lambda: Decoding(num_beams=5, max_new_tokens=19))
    """How the model's output becomes the name of a choice; five beams."""

    def example(
        self,
        name: str,
        sample: Sample,
        annotation: int | None,
        rng: np.random.Generator | None,
    ) -> Example:
        """Subtitles, question, span and choices; the name of the right choice."""
        assert annotation is not None
        given = sample.annotations[annotation]
        number = given.get("answer_index")
        if rng is not None:
            number = require_label(given, "answer_index", sample)
        answer = None if number is None else f"a{number}"
        question = with_prompt(question_text(sample, given), self.prompt)
        return Example(given["id"], name, question, answer, reference=answer)

    def score(
        self, predictions: Mapping[str, str], references: Mapping[str, Any]
    ) -> dict[str, float]:
        """Share of the questions whose choice is the right one."""
        texts, known = labelled(predictions, references)
        return {"accuracy": exact_match(texts, known)} if known else {}

    def example_scores(
        self, name: str, predictions: Mapping[str, str], references: Mapping[str, Any]
    ) -> Sequence[float] | None:
        """Accuracy is a mean over questions."""
        return matches(*labelled(predictions, references)) if name == "accuracy" else None

    def answer_of(self, reference: Any) -> str | None:
        """The name of the right choice."""
        return as_text(reference)


def question_text(sample: Sample, given: Mapping[str, Any]) -> str:
    """`[Subs] .. [Q] .. [TS] (..) [Choices] a0: .. a1: ..`, each choice ending in one full stop."""
    stated = (choice.strip(". ") for choice in given["choices"])
    choices = " ".join(f"a{number}: {choice}." for number, choice in enumerate(stated))
    return (
        f"[Subs] {subtitles(sample)} [Q] {given['question']} [TS] ({given['span']}) "
        f"[Choices] {choices}"
    )

"""Questions about a picture with a few answers to choose from: A-OKVQA, ScienceQA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from vlds.runtime.checks import Count
from vlds.schema import CHOICE_LETTERS as LETTERS
from vlds.schema import Decoding, Sample
from vlds.tasks.answer_task import AnswerTask
from vlds.tasks.base import as_text, optional_text


@dataclass(frozen=True, kw_only=True)
class MultipleChoice(AnswerTask):
    """Choose the answer to a question; scored by accuracy, in all and by the data's own groups.

    The input is `choose: QUESTION context: HINT options: (A) CHOICE (B) CHOICE ...`, the parts of
    ScienceQA's baselines in the order question, context, choices. The model learns to write the
    letter; to answer, it compares the letters. A letter without a choice is wrong.
    """

    kinds: ClassVar[tuple[str, ...]] = ("multiple_choice",)
    label_field: ClassVar[str] = "answer_index"

    prompt: str = "choose: "
    """Text before the question, trailing space included; "" for none."""
    max_prompt_tokens: Count = 400
    """Longest input in tokens, special tokens included; longer ones are cut at the end."""
    max_target_tokens: Count = 5
    """Longest target in tokens; a letter is never cut."""
    decoding: Decoding = field(default_factory=lambda: Decoding(max_new_tokens=5, choices=LETTERS))
    """How the model's output becomes a letter; the best of five."""

    def question(self, sample: Sample, given: Mapping[str, Any]) -> str:
        """The whole input; without a hint there is no context."""
        text = super().question(sample, given)
        if hint := optional_text(given, "hint"):
            text += f" context: {hint}"
        choices = (f"({LETTERS[n]}) {choice}" for n, choice in enumerate(given["choices"]))
        return f"{text} options: {' '.join(choices)}"

    def answer_text(self, label: Any) -> str:
        return LETTERS[label]

    def reference(self, given: Mapping[str, Any], answer: str) -> Any:
        """The letter, and the question's group in each table."""
        return {"answer": answer, "groups": dict(given.get("groups") or {})}

    def tables_of(self, known: list[Any]) -> Sequence[str]:
        """The data's groupings, in the order of the first question that has them."""
        return list(dict.fromkeys(by for reference in known for by in reference["groups"]))

    def groups(self, known: list[Any], by: str) -> list[Any]:
        return [reference["groups"].get(by) for reference in known]

    def answer_of(self, reference: Any) -> str | None:
        return as_text(reference["answer"])

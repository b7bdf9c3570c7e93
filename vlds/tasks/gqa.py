"""GQA: questions that need several steps of reasoning about a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from vlds.runtime.checks import Count, SourcePath
from vlds.runtime.files import read_file
from vlds.runtime.json_files import parse_record
from vlds.schema import Decoding
from vlds.tasks.answer_task import AnswerTask
from vlds.tasks.base import as_text, labelled, optional_text, optional_texts
from vlds.tasks.metrics.gqa_scores import (
    CHOICES,
    Question,
    counted,
    gqa_scores,
    gqa_values,
    group_of,
    reasoning_steps,
)


@dataclass(frozen=True, kw_only=True)
class GQA(AnswerTask):
    """Answer a compositional question; scored by exact match on the balanced questions.

    The scores are `accuracy` with its tables, `distribution`, `consistency` if entailed questions
    are evaluated too (the *_all files), and with `choices` `validity` and `plausibility`.
    """

    kinds: ClassVar[tuple[str, ...]] = ("gqa",)
    label_field: ClassVar[str] = "answer"
    lower_is_better: ClassVar[tuple[str, ...]] = ("distribution",)

    prompt: str = "gqa: "
    """Text before the question, trailing space included; "" for none."""
    max_prompt_tokens: Count = 20
    """Longest prompt and question in tokens, special tokens included; longer ones are cut."""
    max_target_tokens: Count = 512
    """Longest answer to learn in tokens, special tokens included; the paper does not cut them."""
    decoding: Decoding = field(default_factory=lambda: Decoding(max_new_tokens=19))
    """How the model's output becomes an answer; greedy, 20 tokens with the start token."""
    choices: SourcePath | None = None
    """GQA's own file of valid and plausible answers (val_choices.json), or the folder of its parts;
    default: no validity and plausibility."""

    def reference(self, given: Mapping[str, Any], answer: str) -> Any:
        """The fields of a `Question` that the annotation has."""
        types = given.get("types") or {}
        program = given.get("source", {}).get("semantic") or None
        # Lengths are counted here: a report has the references, but not the annotations.
        return {
            "answer": answer,
            "balanced": given.get("balanced", True),
            **{name: optional_text(types, name) for name in ("structural", "semantic", "detailed")},
            "group": optional_text(given.get("groups") or {}, "global"),
            "entailed": optional_texts(given, "entailed"),
            "words": len(given["question"].split()),
            "steps": None if program is None else reasoning_steps(program),
        }

    def score(
        self, predictions: Mapping[str, str], references: Mapping[str, Any]
    ) -> dict[str, float]:
        """The official scores, accuracy first, over the balanced questions."""
        # Questions that are not balanced count through consistency alone.
        asked = counted(predictions, references)
        _, known = labelled(predictions, asked)
        if not known:
            return {}
        questions = {key: Question(**given) for key, given in asked.items() if given}
        if not any(question.balanced for question in questions.values()):
            raise ValueError(
                f"balanced: none of the {len(known)} questions is; GQA counts balanced questions "
                'only: prepare a "balanced" file, or keep some in your subset'
            )
        return gqa_scores(predictions, questions, self.read_choices(questions))

    def example_scores(
        self, name: str, predictions: Mapping[str, str], references: Mapping[str, Any]
    ) -> Sequence[float] | None:
        """As `score`; only validity and plausibility read the choices, a large file."""
        # All questions, so that each has a value (NaN if it does not count), in their order.
        questions = {key: Question(**given) for key, given in references.items() if given}
        choices = self.read_choices(questions) if name in CHOICES else None
        return gqa_values(name, predictions, questions, choices)

    def num_scored(self, references: Mapping[str, Any]) -> int:
        """The balanced questions; others count for consistency alone."""
        return sum(bool(given and given.get("balanced", True)) for given in references.values())

    def groups(self, known: list[Any], by: str) -> list[Any]:
        return [group_of(Question(**given), by) for given in known]

    def read_choices(self, questions: Mapping[str, Question]) -> Choices | None:
        """The choices of the balanced questions; None if the recipe names no file."""
        balanced = [key for key, question in questions.items() if question.balanced]
        return None if self.choices is None else read_choices(self.choices, balanced)

    def notes(self, predictions: Mapping[str, str], references: Mapping[str, Any]) -> list[str]:
        """How many questions without a prediction do not count."""
        out = len(references) - len(counted(predictions, references))
        note = f"{out:,} questions have no prediction: not balanced, left out; no consistency"
        return [note] if out else []

    def missing_for_scores(self) -> str | None:
        """A missing or invalid file of choices."""
        try:
            if self.choices is not None:
                read_choices(self.choices, ids=())
        except ValueError as error:
            return str(error)
        return None

    def answer_of(self, reference: Any) -> str | None:
        return as_text(reference["answer"])


CURE = "name eval/val_choices.json or eval/train_choices of GQA's evaluation files"
KINDS = {"valid", "plausible"}
Choices = dict[str, dict[str, list[str]]]
"""Question -> kind -> answers."""


def load_choices(path: Path) -> Choices:
    """The content of one file.

    Errors: ValueError that names the file, and the question with invalid choices.
    """
    try:
        choices = parse_record(Choices, read_file(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"choices: {path}: {error}; {CURE}") from None
    # Here, not when a question needs it: after hours of decoding that would be too late.
    for key, entry in choices.items():
        if missing := sorted(KINDS - entry.keys()):
            raise ValueError(f'choices: {path}: question {key} has no list "{missing[0]}"; {CURE}')
    return choices


def read_choices(place: str, ids: Sequence[str]) -> Choices:
    """The "valid" and "plausible" answers of each question, from GQA's file or the files of a
    folder (train_choices/).

    Errors: ValueError if there are none, for a question that they lack, and as for `load_choices`.
    """
    choices: Choices = {}
    path = Path(place).expanduser()
    paths = [path] if path.is_file() else sorted(path.glob("*.json"))
    if not paths:
        raise ValueError(
            f"choices: {place} is neither a file of choices nor a folder of them; {CURE}"
        )
    # The parts are large: of each one, only the questions that are asked stay in memory.
    wanted = set(ids)
    for path in paths:
        given = load_choices(path)
        choices |= {key: given[key] for key in wanted & given.keys()}
    if unknown := [key for key in ids if key not in choices]:
        raise ValueError(
            f"choices: {place} knows nothing of {len(unknown)} of {len(ids)} questions, such as "
            f"{unknown[0]}; name the file of the split that is evaluated"
        )
    return choices

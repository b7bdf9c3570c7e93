"""What A-OKVQA and ScienceQA share: the choices of a question, and the right one."""

from __future__ import annotations

from data_prep.json_rows import JsonRow, clean, shown
from data_prep.packing.source import Annotation
from vlds.schema import CHOICE_LETTERS


def read_choices(row: JsonRow, answer_field: str) -> Annotation:
    """The `choices` of a question, and `answer_index` if the split has answers.

    Errors: ValueError if there are fewer than two or more than five choices, or the answer is none
    of them.
    """
    choices = [clean(choice) for choice in row.texts("choices")]
    if not 2 <= len(choices) <= len(CHOICE_LETTERS):
        raise ValueError(
            f"{row.place}: 'choices' has {len(choices)} entries; expected 2 to "
            f"{len(CHOICE_LETTERS)}. Is it the official file?"
        )
    if answer_field not in row:
        return {"choices": choices}
    answer = row.whole(answer_field)
    if not 0 <= answer < len(choices):
        raise ValueError(
            f"{row.place}: {answer_field!r} is {answer}, and 'choices' is {shown(choices)}; "
            f"expected a number from 0 to {len(choices) - 1}"
        )
    return {"choices": choices, "answer_index": answer}

"""Fields and faults of annotations of all kinds, and the soft label of a VQA question."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from data_prep.json_rows import clean, shown
from vlds.schema import LONGEST_TEXT

TEXT_FIELDS = ("question", "sentence", "caption", "hypothesis", "expression", "text")
"""Fields of the text; an annotation has one of them."""
REQUIRED: Mapping[str, str] = {
    "entailment": "hypothesis",
    "gqa": "question",
    "multiple_choice": "question",
    "nlvr2": "sentence",
    "refer": "expression",
    "video_qa": "question",
    "vqa": "question",
}
"""Kind -> field that each of its annotations has, with labels or without."""
NUM_ANNOTATORS = 10
SOFT_SCORES = (0.0, 0.3, 0.6, 0.9, 1.0)
"""Score by the number of people with that answer: the mean official leave-one-out accuracy."""


def soft_label(answers: Sequence[str]) -> dict[str, float]:
    """Answer -> score. Fewer than ten answers cannot be weighed: each counts in full."""
    counts = Counter(text for answer in answers if (text := clean(answer).lower()))
    if len(answers) < NUM_ANNOTATORS:
        return dict.fromkeys(counts, 1.0)
    return {text: SOFT_SCORES[min(count, 4)] for text, count in counts.most_common()}


def fault_of(annotation: Any, kind: str = "") -> str:
    """What makes an annotation unusable for all tasks, or for those of a kind; "" if it is fine."""
    if not isinstance(annotation, dict):
        return f"{shown(annotation)}, an object expected"
    for name in TEXT_FIELDS:
        if not isinstance(annotation.get(name, ""), str):
            return f"{name} is {shown(annotation[name])}, text expected"
    if kind in REQUIRED and REQUIRED[kind] not in annotation:
        return f"no {REQUIRED[kind]}"
    if fault := _too_long(annotation):
        return fault
    label = annotation.get("label")
    if isinstance(label, dict) and not all(isinstance(s, (int, float)) for s in label.values()):
        return f"label is {shown(label)}, a number for each answer expected"
    return ""


def text_fault(annotation: Mapping[str, Any]) -> str:
    """Why the texts cannot be packed; "" if they can."""
    try:
        json.dumps(annotation, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "half of a character in a text"  # JSON can write one as \ud800, UTF-8 cannot
    return _too_long(annotation)


def _too_long(annotation: Mapping[str, Any]) -> str:
    """Which text is longer than a run accepts; "" if none is."""
    for name, value in annotation.items():
        for text in value if isinstance(value, (list, dict)) else [value]:
            if isinstance(text, str) and len(text) > LONGEST_TEXT:
                return f"{name} of more than {LONGEST_TEXT:,} characters"
    return ""

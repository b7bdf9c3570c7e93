"""What annotations of all kinds have in common."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from data_prep.json_rows import shown
from vlds.schema import LONGEST_TEXT

TEXT_FIELDS = ("question", "sentence", "caption", "hypothesis", "text")
"""The one of these that an annotation has is what is asked or said."""


ASKED = {
    "entailment": "hypothesis",
    "gqa": "question",
    "nlvr2": "sentence",
    "video_qa": "question",
    "vqa": "question",
}
"""Kind -> field that each of its annotations has, with labels or without."""


def fault_of(annotation: Any, kind: str = "") -> str:
    """What no task can read, or no task of a kind; empty where all is well."""
    if not isinstance(annotation, dict):
        return f"{shown(annotation)}, an object expected"
    for name in TEXT_FIELDS:
        if not isinstance(annotation.get(name, ""), str):
            return f"{name} is {shown(annotation[name])}, text expected"
    if kind in ASKED and ASKED[kind] not in annotation:
        return f"no {ASKED[kind]}"
    if fault := too_long(annotation):
        return fault
    label = annotation.get("label")
    if isinstance(label, dict) and not all(isinstance(s, (int, float)) for s in label.values()):
        return f"label is {shown(label)}, a number for each answer expected"
    return ""


def text_fault(annotation: Mapping[str, Any]) -> str:
    """Which text cannot be packed; empty where all can."""
    try:
        json.dumps(annotation, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "half of a character in a text"  # JSON can write one as \ud800, UTF-8 cannot
    return too_long(annotation)


def too_long(annotation: Mapping[str, Any]) -> str:
    """Which text is longer than any that a run reads; empty where none is."""
    for name, value in annotation.items():
        for text in value if isinstance(value, (list, dict)) else [value]:
            if isinstance(text, str) and len(text) > LONGEST_TEXT:
                return f"{name} of more than {LONGEST_TEXT:,} characters"
    return ""

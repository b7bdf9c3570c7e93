"""What annotations of all kinds have in common."""

from __future__ import annotations

import json
from typing import Any

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
        return f"{json.dumps(annotation)}, an object expected"
    for name in TEXT_FIELDS:
        if not isinstance(annotation.get(name, ""), str):
            return f"{name} is {json.dumps(annotation[name])}, text expected"
    if kind in ASKED and ASKED[kind] not in annotation:
        return f"no {ASKED[kind]}"
    label = annotation.get("label")
    if isinstance(label, dict) and not all(isinstance(s, (int, float)) for s in label.values()):
        return f"label is {json.dumps(label)}, a number for each answer expected"
    return ""

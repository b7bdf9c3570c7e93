"""Foreign samples: those that img2dataset, webdataset's writer or others have written.

`fields` of dataset.json says which member holds which field of an annotation: `txt` for a whole
text, `json:caption` for a key of a JSON member. Each sample has one annotation, whose id is the
sample's key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlds.runtime.json_file import parse_member

PICTURES = ("jpg", "jpeg", "png", "webp", "avif", "gif", "bmp", "tif", "tiff", "ppm")
"""Extensions of members that are pictures."""
KNOWN = {
    "caption": ("caption",),
    "pair_text": ("text",),
    "vqa": ("question", "answer"),
}
"""Kind -> fields that an annotation may take from a member; the first is required."""


def check_fields(kind: str, fields: Mapping[str, str]) -> None:
    """Errors: ValueError for fields that the kind does not have, or a missing one."""
    if kind not in KNOWN:
        raise ValueError(f"samples of others can be of kind {', '.join(KNOWN)}, not {kind}")
    known = KNOWN[kind]
    if known[0] not in fields or set(fields) - set(known):
        raise ValueError(
            f"got {', '.join(fields)}; {kind} takes {' and '.join(known)}, as in "
            f"{known[0]}=txt or {known[0]}=json:{known[0]}"
        )


def foreign_json(
    key: str, content: Mapping[str, memoryview], fields: Mapping[str, str]
) -> dict[str, Any]:
    """The json that the sample would have in our own format.

    Errors: ValueError or KeyError for a missing member or key.
    """
    annotation: dict[str, Any] = {"id": key}
    for field, place in fields.items():
        if (value := _value(content, place)) is not None:
            annotation[field] = value
    if "answer" in annotation:
        answer = annotation.pop("answer")
        given = answer if isinstance(answer, list) else [answer]
        if None in given:
            raise ValueError(f"one of its answers is null: {given}")
        answers = [str(text).strip().lower() for text in given]
        annotation |= {"answers": answers, "label": dict.fromkeys(answers, 1.0)}
    pictures = [name for name in content if is_picture(name)]
    return {"id": key, "images": pictures, "annotations": [annotation]}


def is_picture(extension: str) -> bool:
    """True for the extension of a picture."""
    return extension.rpartition(".")[2] in PICTURES


def _value(content: Mapping[str, memoryview], place: str) -> Any:
    member, is_json, name = place.partition(":")
    if member not in content:
        raise ValueError(
            f"no member {member!r}; it has {', '.join(content)} (a name's extension begins at its "
            "first dot, so keys must have none)"
        )
    data = bytes(content[member])
    if not is_json:
        return data.decode("utf-8").strip()
    value = parse_member(data)[name]
    return value.strip() if isinstance(value, str) else value

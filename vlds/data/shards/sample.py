"""A sample from its members: json, pictures, and stored features as .npy files of (tokens, dim).

Foreign samples are those that img2dataset, webdataset's writer or others have written. `fields` of
dataset.json says which of their members holds which field of an annotation: `txt` for a whole text,
`json:caption` for a key of a JSON member. Each has one annotation, whose id is the sample's key.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from vlds.runtime.json_files import parse_literal, parse_member
from vlds.schema import Group, Sample, SkipSample

UNUSABLE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
"""What `parse_sample` raises for members that are not what they should be."""
PICTURES = ("jpg", "jpeg", "png", "webp", "avif", "gif", "bmp", "tif", "tiff", "ppm")
"""Extensions of members that are pictures."""
FOREIGN_FIELDS = {
    "caption": ("caption",),
    "pair_text": ("text",),
    "vqa": ("question", "answer"),
}
"""Kind -> fields that an annotation may take from a member; the first is required."""
FEATURES = "features.npy"
"""End of the extensions of stored features."""
FEATURE_TYPE = np.dtype("<f2")
NPY_MAGIC = b"\x93NUMPY"
UNFIT = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\ud800-\\udfff]")
"""Control characters, line breaks and surrogates: an id must fit on one line of a file."""
MOST_SHOWN = 60
"""Characters of an id that a message shows."""


class UnfitId(ValueError):
    """An id that is missing or not one line of text."""


def parse_sample(
    key: str,
    content: Mapping[str, memoryview],
    dataset: str,
    kind: str,
    fields: Mapping[str, str] | None,
) -> Sample:
    """Parse the members of a sample. `fields` map members of foreign samples to an annotation.

    Errors: UNUSABLE for members that are not what they should be.
    """
    about = parse_member(content["json"]) if fields is None else foreign_json(key, content, fields)
    check_ids(about)
    # By name: left.features.npy comes before right.features.npy.
    features = sorted(member for member in content if member.endswith(FEATURES))
    # What is left after these is the task's own: sizes, subtitles, proposals, ...
    sample_id = about.pop("id")
    annotations = tuple(about.pop("annotations"))
    return Sample(
        key=key,
        dataset=dataset,
        id=sample_id,
        kind=kind,
        images=tuple([content[member] for member in about.pop("images", ())]),
        features=tuple([parse_features(content[member]) for member in features]),
        annotations=annotations,
        extra=about,
    )


def groups_of(sample: Sample) -> tuple[Group, ...]:
    """What a sample's json says under "groups": pairs of a field and a name.

    Errors: SkipSample for something else.
    """
    pairs = sample.extra.get("groups") or []
    try:
        groups = tuple(Group(*pair) for pair in pairs)
        fits = all(isinstance(text, str) for group in groups for text in group)
    except TypeError:
        fits = False
    if not fits:
        raise SkipSample(
            f"sample {sample.key}: groups is {json.dumps(pairs)[:MOST_SHOWN]}; expected pairs of a "
            'field and a name, such as [["patient", "p1"]]'
        )
    return groups


def joined(keys: Sequence[Iterable[Hashable]]) -> list[int]:
    """For each entry, the number of the first one that it belongs with: entries that share a key
    belong together, and so do those that share one with a third. `keys`: of each entry."""
    # Union-find: each entry leads to an earlier one of its set.
    above = list(range(len(keys)))

    def top(number: int) -> int:
        while above[number] != number:
            above[number] = number = above[above[number]]
        return number

    owners: dict[Hashable, int] = {}
    for number, of_entry in enumerate(keys):
        for key in of_entry:
            first, second = sorted((top(number), top(owners.setdefault(key, number))))
            above[second] = first
    return [top(number) for number in range(len(keys))]


def check_ids(fields: object) -> None:
    """Errors: UnfitId that shows the first missing or unfit id in a sample's json."""
    if not isinstance(fields, dict):
        raise UnfitId(f"its json is {json.dumps(fields)[:MOST_SHOWN]}, an object expected")
    if fault := id_fault(fields.get("id")):
        raise UnfitId(f"the sample's id is {fault}")
    if not isinstance(annotations := fields.get("annotations"), list):
        raise UnfitId(f"its annotations are {json.dumps(annotations)[:MOST_SHOWN]}, list expected")
    for index, annotation in enumerate(annotations):
        if not isinstance(annotation, dict):
            raise UnfitId(
                f"annotation {index} is {json.dumps(annotation)[:MOST_SHOWN]}, an object expected"
            )
        if fault := id_fault(annotation.get("id")):
            raise UnfitId(f"the id of annotation {index} is {fault}")


def id_fault(value: Any) -> str:
    """An id and what is wrong with it; "" for a good one."""
    if not isinstance(value, str) or not value:
        return f"{json.dumps(value)[:MOST_SHOWN]}, text expected"
    if UNFIT.search(value):
        return f"{json.dumps(value)[:MOST_SHOWN]}, with a control character or a line break in it"
    return ""


def check_fields(kind: str, fields: Mapping[str, str]) -> None:
    """Errors: ValueError for fields that the kind does not have, or a missing one."""
    if kind not in FOREIGN_FIELDS:
        raise ValueError(f"kind: got {kind}; shards of others can hold {', '.join(FOREIGN_FIELDS)}")
    known = FOREIGN_FIELDS[kind]
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
    for field, member_spec in fields.items():
        member, is_json, name = member_spec.partition(":")
        if member not in content:
            raise ValueError(
                f"no member {member!r}; it has {', '.join(content)} (a name's extension begins at "
                "its first dot, so keys must have none)"
            )
        data = bytes(content[member])
        value = parse_member(data)[name] if is_json else data.decode("utf-8")
        value = value.strip() if isinstance(value, str) else value
        if value is not None:
            annotation[field] = value
    # One answer or a list; each scores fully, as there are no counts to weigh them by.
    if "answer" in annotation:
        answer = annotation.pop("answer")
        given = answer if isinstance(answer, list) else [answer]
        if None in given:
            raise ValueError(f"one of its answers is null: {given}")
        answers = [str(text).strip() for text in given]
        annotation |= {"answers": answers, "label": dict.fromkeys(answers, 1.0)}
    pictures = [name for name in content if is_picture(name)]
    return {"id": key, "images": pictures, "annotations": [annotation]}


def is_picture(extension: str) -> bool:
    """True for the extension of a picture."""
    return extension.rpartition(".")[2] in PICTURES


def feature_bytes(array: np.ndarray) -> bytes:
    """Features (tokens, dim) as the member that `parse_features` reads."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array, FEATURE_TYPE))
    return buffer.getvalue()


def parse_features(data: memoryview) -> np.ndarray:
    """A .npy file as float16 without a copy (np.load costs five times as much).

    Errors: ValueError for a file that is something else, or cut.
    """
    if data[:6] != NPY_MAGIC or data[6] not in (1, 2):
        raise ValueError("not a .npy file")
    # Version 1 has two bytes for the length of its header, version 2 four.
    width = 2 if data[6] == 1 else 4
    start = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    shape, dtype = _shape_and_type(bytes(data[8 + width : start]))
    features = np.frombuffer(data[start:], dtype).reshape(shape)
    return features.astype(FEATURE_TYPE, copy=False)


@lru_cache(maxsize=256)
def _shape_and_type(text: bytes) -> tuple[tuple[int, int], np.dtype[Any]]:
    try:
        fields = parse_literal(text.decode("latin1"))
        turned, dtype, shape = fields["fortran_order"], np.dtype(fields["descr"]), fields["shape"]
        plain = all(isinstance(size, int) and size >= 0 for size in shape)
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"the header of the .npy file is damaged ({error!r})") from None
    if turned or dtype.kind != "f":
        raise ValueError("features must be a row-major array of floats")
    if len(shape) != 2 or not plain:
        raise ValueError(f"features of shape {shape}, (tokens, dim) expected")
    return shape, dtype

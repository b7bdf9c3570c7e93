"""A sample from its members: json, pictures, and stored features as .npy files of (tokens, dim)."""

from __future__ import annotations

import io
import json
import re
from ast import literal_eval
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from vlds.data.shards.foreign import foreign_json
from vlds.runtime.json_file import parse_member
from vlds.schema import Sample

UNUSABLE = (ValueError, LookupError, TypeError, AttributeError)
"""What `parse_sample` raises for members that are not what they should be."""
FEATURES = "features.npy"
"""End of the extensions of stored features."""
FEATURE_TYPE = np.dtype("<f2")
NPY_MAGIC = b"\x93NUMPY"
UNFIT = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\ud800-\\udfff]")
"""Control characters, line breaks and surrogates: an id must fit on one line of a file."""
MOST_SHOWN = 60
"""Characters of an id that a message shows."""


class UnfitId(ValueError):
    """An id that is not one line of text."""


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
    features = sorted(member for member in content if member.endswith(FEATURES))
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


def check_ids(fields: Mapping[str, Any]) -> None:
    """Check the ids in a sample's json.

    Errors: UnfitId that shows the first unfit one; KeyError or TypeError for a missing one.
    """
    if fault := id_fault(fields["id"]):
        raise UnfitId(f"the sample's id is {fault}")
    for index, annotation in enumerate(fields["annotations"]):
        if fault := id_fault(annotation["id"]):
            raise UnfitId(f"the id of annotation {index} is {fault}")


def id_fault(value: Any) -> str:
    """An id and what is wrong with it; "" for a good one."""
    if not isinstance(value, str) or not value:
        return f"{json.dumps(value)[:MOST_SHOWN]}, text expected"
    if UNFIT.search(value):
        return f"{json.dumps(value)[:MOST_SHOWN]}, with a control character or a line break in it"
    return ""


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
    width = 2 if data[6] == 1 else 4
    start = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    shape, dtype = _shape_and_type(bytes(data[8 + width : start]))
    features = np.frombuffer(data[start:], dtype).reshape(shape)
    return features.astype(FEATURE_TYPE, copy=False)


@lru_cache(maxsize=256)
def _shape_and_type(text: bytes) -> tuple[tuple[int, int], np.dtype[Any]]:
    try:
        fields = literal_eval(text.decode("latin1"))
        turned, dtype, shape = fields["fortran_order"], np.dtype(fields["descr"]), fields["shape"]
        plain = all(isinstance(size, int) and size >= 0 for size in shape)
    except (SyntaxError, ValueError, KeyError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"the header of the .npy file is damaged ({error!r})") from None
    if turned or dtype.kind != "f":
        raise ValueError("features must be a row-major array of floats")
    if len(shape) != 2 or not plain:
        raise ValueError(f"features of shape {shape}, (tokens, dim) expected")
    return shape, dtype

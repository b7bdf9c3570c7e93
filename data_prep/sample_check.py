"""Everything that can be wrong with one sample: its members, json, pictures, features."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_prep.annotation import fault_of
from data_prep.finding import Finding
from data_prep.strict_picture import picture_fault
from vlds.data.errors import ShardError
from vlds.data.features import FEATURE_TYPE, FEATURES
from vlds.data.foreign import foreign_json
from vlds.data.tar import members, split_name
from vlds.runtime.json_file import parse_member

Members = dict[str, bytes]
"""Extension -> bytes."""


@dataclass
class CheckedSample:
    """What the checks of a whole data set need to know about a sample."""

    key: str = ""
    id: str = ""
    has_json: bool = False
    annotations: list[str] = field(default_factory=list)
    """Ids."""
    shapes: tuple[tuple[int, ...], ...] = ()
    """Of its features, in the order of their names."""
    findings: list[Finding] = field(default_factory=list)


def check_sample(
    data: bytes, begin: int, end: int, fields: Mapping[str, str] | None = None
) -> CheckedSample:
    """Check the sample between two offsets of its shard; `data` is what could be read of it, and
    `fields` those of dataset.json, where others have written the shard."""
    sample = CheckedSample()
    try:
        content = _members(sample, data, begin)
        if len(data) < end - begin:
            raise ShardError(f"its bytes from {begin + len(data)} to {end} are not there")
    except ValueError as error:
        sample.findings.append(Finding("sample smashed or cut off", str(error)))
        return sample
    if fields is not None:
        sample.findings += _as_ours(sample.key, content, fields)
    sample.has_json = "json" in content
    sample.findings += _check_json(sample, content)
    sample.findings += _check_features(sample, content)
    return sample


def _members(sample: CheckedSample, data: bytes, begin: int) -> Members:
    """Split a sample into its members.

    Errors: ShardError where a header cannot be read; ValueError where an extension header cannot.
    """
    view = memoryview(data)
    content: Members = {}
    for member in members(lambda o, n: view[o - begin : o - begin + n], begin, begin + len(data)):
        key, extension = split_name(member.name)
        sample.key = sample.key or key
        if key != sample.key:
            raise ShardError(f"a member of sample {key} stands inside it")
        if extension in content:
            sample.findings.append(Finding("member twice", extension))
        start = member.start - begin
        content[extension] = bytes(view[start : start + member.size])
    return content


def _as_ours(key: str, content: Members, fields: Mapping[str, str]) -> Iterator[Finding]:
    """Put the json in its place that a run reads."""
    views = {name: memoryview(data) for name, data in content.items()}
    content.pop("json", None)
    try:
        content["json"] = json.dumps(foreign_json(key, views, fields)).encode()
    except (ValueError, KeyError, TypeError) as error:
        yield Finding("fields cannot be read", repr(error))


def _check_json(sample: CheckedSample, content: Members) -> Iterator[Finding]:
    """Ids, and the pictures that it names."""
    if "json" not in content:
        yield Finding("no json", f"it has {', '.join(sorted(content)) or 'nothing'}")
        return
    try:
        fields = parse_member(content["json"])
    except ValueError as error:
        yield Finding("json cannot be read", str(error))
        return
    if not isinstance(fields, dict):
        yield Finding("json cannot be read", f"it is {type(fields).__name__}, no object")
        return
    if isinstance(fields.get("id"), str) and fields["id"]:
        sample.id = fields["id"]
    else:
        yield Finding("no sample id", f'"id" is {json.dumps(fields.get("id"))}, text expected')
    yield from _check_annotations(sample, fields.get("annotations"))
    images = fields.get("images")
    if not isinstance(images, list):
        yield Finding("no list of images", f'"images" is {json.dumps(images)}')
        return
    for name in images:
        if not isinstance(name, str) or name not in content:
            yield Finding("image missing", f"{name} is not among its members")
        elif fault := picture_fault(content[name]):
            yield Finding("image damaged", f"{name}: {fault}")


def _check_annotations(sample: CheckedSample, annotations: Any) -> Iterator[Finding]:
    if not isinstance(annotations, list):
        yield Finding("no list of annotations", f'"annotations" is {json.dumps(annotations)}')
        return
    for number, annotation in enumerate(annotations):
        found = annotation.get("id") if isinstance(annotation, dict) else None
        if isinstance(found, str) and found:
            sample.annotations.append(found)
        else:
            yield Finding("no annotation id", f"annotation {number}: {json.dumps(found)}")
        if isinstance(annotation, dict) and (fault := fault_of(annotation)):
            yield Finding("annotation unusable", f"annotation {number}: {fault}")


def _check_features(sample: CheckedSample, content: Mapping[str, bytes]) -> Iterator[Finding]:
    shapes = []
    for name in sorted(name for name in content if name.endswith(FEATURES)):
        try:
            array = np.lib.format.read_array(io.BytesIO(content[name]), allow_pickle=False)
        except (ValueError, EOFError, MemoryError) as error:
            yield Finding("features cannot be read", f"{name}: {error}")
            continue
        shapes.append(array.shape)
        if array.dtype != FEATURE_TYPE:
            yield Finding("features not float16", f"{name}: {array.dtype}")
        elif array.ndim != 2 or not array.size or not array.flags.c_contiguous:
            detail = f"{name}: shape {array.shape}, (tokens, dim) row by row expected"
            yield Finding("features no matrix", detail)
        elif not (finite := np.isfinite(array)).all():
            detail = f"{name}: {int((~finite).sum())} of {array.size} numbers"
            yield Finding("features not finite", detail)
    sample.shapes = tuple(shapes)

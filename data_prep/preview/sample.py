"""What a preview shows of a sample of any kind."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data_prep.packing.annotation import TEXT_FIELDS
from vlds.data.errors import ShardError
from vlds.data.shards.class_numbers import KIND
from vlds.data.shards.open_picture import upright_size
from vlds.data.shards.sample import UNUSABLE
from vlds.data.shards.store import Dataset
from vlds.runtime.shown import visible
from vlds.schema import Encoded, Sample, SkipSample

MOST_ANNOTATIONS = 6
"""Shown of each sample, unless it is the only one."""
MOST_ANSWERS = 4
NOTHING_SAID = "(nothing is said: a test split)"
"""What decoders raise for bytes that are not a picture."""


@dataclass(frozen=True)
class SampleView:
    """One sample, ready to be shown; control characters in its texts are escaped."""

    place: str
    """SHARD:NUMBER, as `preview` takes it."""
    id: str = ""
    facts: str = ""
    """Sizes and counts."""
    pictures: tuple[Encoded, ...] = ()
    features: tuple[str, ...] = ()
    """Shape of each array that is stored instead of a picture."""
    annotations: tuple[tuple[str, str], ...] = ()
    """(question, caption or sentence; answer, which may be empty)."""
    num_left_out: int = 0
    """Annotations that are not shown."""
    trouble: str = ""
    """Why the sample cannot be read."""


def view_sample(dataset: Dataset, number: int, most: int | None = MOST_ANNOTATIONS) -> SampleView:
    """Read a sample; one that is damaged says so. `most` None shows all its annotations."""
    place = place_of(dataset, number)
    try:
        return _view(place, dataset.read(number), most)
    except (SkipSample, ShardError) as error:
        return SampleView(place, trouble=visible(error))
    except UNUSABLE as error:
        return SampleView(place, trouble=visible(f"not what it should be: {error!r}"))


def _view(place: str, sample: Sample, most: int | None) -> SampleView:
    features = tuple(shape_text(array.shape) for array in sample.features)
    count = len(sample.annotations)
    facts = [size_text(data) for data in sample.images] + [f"features {f}" for f in features]
    facts.append(f"{count} annotation{'' if count == 1 else 's'}")
    if lines := sample.extra.get("subtitles"):
        facts.append(f"{len(lines)} line{'' if len(lines) == 1 else 's'} of subtitles")
    shown = sample.annotations[:most]
    return SampleView(
        place,
        visible(sample.id),
        ", ".join(facts),
        sample.images,
        features,
        tuple((visible(text_of(entry)), visible(answer_of(entry))) for entry in shown)
        if sample.kind != KIND
        else tuple((visible(entry.get("label", NOTHING_SAID)), "") for entry in shown),
        count - len(shown),
    )


def place_of(dataset: Dataset, number: int) -> str:
    """Shard and number in it."""
    for shard in dataset.info.shards:
        if number < shard.samples:
            return visible(f"{shard.name}:{number}")
        number -= shard.samples
    raise IndexError(number)


def text_of(annotation: Mapping[str, Any]) -> str:
    """What is asked or said; all of an annotation of an unknown kind."""
    known = next((str(annotation[name]) for name in TEXT_FIELDS if name in annotation), None)
    if known is not None:
        return known
    rest = {key: value for key, value in annotation.items() if key != "id"}
    return json.dumps(rest, ensure_ascii=False) if rest else NOTHING_SAID


def answer_of(annotation: Mapping[str, Any]) -> str:
    """The answer in a few words; empty where there is none."""
    if choices := annotation.get("choices"):
        return _choice(list(map(str, choices)), annotation.get("answer_index"))
    if answers := annotation.get("answers"):
        counts = Counter(map(str, answers)).most_common()
        if len(answers) == 1:
            return counts[0][0]
        return _first([f"{answer} ({count})" for answer, count in counts])
    label = annotation.get("label", annotation.get("answer", ""))
    if isinstance(label, Mapping):
        best = sorted(label.items(), key=lambda entry: -entry[1])
        return _first([f"{answer} ({score:g})" for answer, score in best])
    text = str(label).lower() if isinstance(label, bool) else str(label)
    whole = annotation.get("full_answer")
    return f"{text} ({whole})" if whole else text


def _choice(choices: list[str], right: int | None) -> str:
    if right is None:
        return f"one of: {' / '.join(choices)}"
    others = choices[:right] + choices[right + 1 :]
    return f"{choices[right]} (not: {' / '.join(others)})"


def _first(parts: list[str]) -> str:
    return ", ".join(parts[:MOST_ANSWERS]) + (", ..." if len(parts) > MOST_ANSWERS else "")


def shape_text(shape: tuple[int, ...]) -> str:
    """Such as 49x2048."""
    return "x".join(map(str, shape))


def size_text(data: Encoded) -> str:
    """Width and height of a picture, from its head alone."""
    try:
        return shape_text(upright_size(data))
    except ValueError:
        return "not a picture"

"""Small data sets: healthy ones, ones that our writer would refuse, and what is in them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.packing.source import Dropped
from data_prep.packing.writer import SampleRecord, write_dataset
from tests.toys.files import read_lines
from tests.toys.pictures import jpeg
from vlds.data.shards.info import SCHEMA, DatasetInfo
from vlds.data.shards.shard_index import Counts, ShardIndex, load_index, tar_checksums
from vlds.data.shards.store import open_dataset
from vlds.data.shards.tar import members, split_name
from vlds.data.shards.writing import describe_shard, index_folder
from vlds.schema import Sample

Check = Callable[..., tuple[int, dict[str, int]]]
FIRST = "vqav2-train-00000.tar"


def annotation(number: int | str) -> dict[str, Any]:
    return {"id": str(number), "question": "why?", "answers": ["yes"]}


def record(number: int, picture: bytes | None = None, **fields: Any) -> SampleRecord:
    """A sample with the annotations 10 * number and 10 * number + 1."""
    content = {"annotations": [annotation(10 * number), annotation(10 * number + 1)], **fields}
    return SampleRecord(id=f"image{number}", members=[("jpg", picture or jpeg())], json=content)


def features(number: int, array: np.ndarray) -> SampleRecord:
    buffer = io.BytesIO()
    np.save(buffer, array)
    content = {"images": [], "annotations": [annotation(number)]}
    return SampleRecord(
        id=f"clip{number}", members=[("features.npy", buffer.getvalue())], json=content
    )


def write_shards(out: Path, records: Sequence[SampleRecord | Dropped]) -> Path:
    write_dataset(
        out, name="vqav2", kind="vqa", split="train", records=records, shard_samples=3
    )  # fmt: skip
    return out


def by_hand(out: Path, shards: Sequence[Sequence[tuple[str, Any]]], indexed: bool = True) -> Path:
    """Write shards that our writer would refuse: (name, bytes or JSON) of each member."""
    out.mkdir()
    infos = []
    for number, content in enumerate(shards):
        path = out / f"vqav2-train-{number:05d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for name, value in content:
                data = value if isinstance(value, bytes) else json.dumps(value).encode()
                header = tarfile.TarInfo(name)
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
        data = path.read_bytes()
        entries = list(members(lambda o, n, data=data: data[o : o + n], 0, None))
        groups = [list(g) for _, g in groupby(entries, lambda member: split_name(member.name)[0])]
        offsets = [group[0].header for group in groups] + [entries[-1].end]
        counts = [Counts(1, sum(m.name.endswith("jpg") for m in group)) for group in groups]
        index = ShardIndex.of(offsets, counts, tar_checksums(path, offsets))
        infos.append(describe_shard(path, index))
    if indexed:
        index_folder(out, name="vqav2", kind="vqa", split="train")
        return out
    samples = sum(info.samples for info in infos)
    DatasetInfo(
        schema=SCHEMA, name="vqav2", kind="vqa", split="train", shards=tuple(infos),
        samples=samples, annotations=samples,
    ).save(out)  # fmt: skip
    return out


def content(number: int, **fields: Any) -> dict[str, Any]:
    return {"id": f"i{number}", "images": ["jpg"], "annotations": [annotation(number)], **fields}


def quarantined(folder: Path) -> list[dict[str, Any]]:
    return read_lines(folder / "quarantine.jsonl")


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def flip(path: Path, offset: int) -> None:
    overwrite(path, offset, bytes([path.read_bytes()[offset] ^ 1]))


def offsets(folder: Path, shard: int = 0) -> list[int]:
    index = load_index(folder, DatasetInfo.load(folder).shards[shard])
    positions: list[int] = index.offsets.tolist()
    return positions


def grid(**options: Any) -> np.ndarray:
    return np.ones((4, 3), **{"dtype": np.float16, **options})


def packed(folder: Path) -> dict[str, Sample]:
    """Id -> sample of a packed data set, read as a run reads it."""
    dataset = open_dataset(folder)
    samples = [dataset.read(number) for number in range(dataset.num_samples)]
    assert len({sample.id for sample in samples}) == len(samples)
    return {sample.id: sample for sample in samples}


def find_annotation(samples: Mapping[str, Sample], wanted: str) -> Mapping[str, Any]:
    """The annotation with that id, whichever sample it belongs to."""
    return next(a for sample in samples.values() for a in sample.annotations if a["id"] == wanted)

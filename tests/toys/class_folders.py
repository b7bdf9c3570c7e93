"""Pictures of classes: as their publishers lay them out, and as shards."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.cli import main
from data_prep.packing.writer import SampleRecord, write_dataset
from tests.toys.files import write
from tests.toys.pictures import jpeg, noise
from vlds.data.shards.info import DatasetInfo
from vlds.data.shards.store import open_dataset

CLASSES = ("zebra", "ant", "cat")
LABELS = ("ant", "cat", "zebra", "ant", "cat")


def write_classes(
    out: Path, labels: Sequence[Any] = LABELS, classes: Sequence[str] | None = CLASSES
) -> Path:
    """A sample of each label, three to a shard; None is a sample without one."""
    records = [
        SampleRecord(
            id=f"{number}.jpg",
            members=[("jpg", jpeg())],
            json={"annotations": [{"id": f"{number}.jpg"} | ({"label": label} if label else {})]},
        )
        for number, label in enumerate(labels)
    ]
    write_dataset(
        out, name="toy", kind="image_class", split="train", records=records, shard_samples=3,
        classes=classes,
    )  # fmt: skip
    return out


def change_info(folder: Path, **fields: Any) -> None:
    """Change fields of dataset.json."""
    path = folder / "dataset.json"
    content = json.loads(path.read_text("utf-8")) | fields
    path.write_text(json.dumps(content), "utf-8")


def photo(seed: int) -> bytes:
    """A JPEG that differs from those of other seeds."""
    return noise(seed, form="JPEG")


def folders(root: Path, counts: Mapping[str, int], start: int = 0) -> Path:
    """A folder for each class, with as many JPEGs as it counts."""
    for number, (name, count) in enumerate(counts.items()):
        for index in range(count):
            write(root / name / f"{index}.jpg", photo(start + 100 * number + index))
    return root


def pack_folders(root: Path, out: Path, *more: str, command: str = "imagefolder") -> int:
    return main([command, "--images", str(root), "--out", str(out), "--workers", "1", *more])


def classes(folder: Path) -> tuple[str, ...]:
    """The list in dataset.json."""
    return DatasetInfo.load(folder).classes or ()


def labels(folder: Path) -> dict[str, str]:
    """Id -> label of each sample, which its one annotation and the index must agree on."""
    dataset = open_dataset(folder)
    numbers = dataset.class_numbers().tolist()
    found = {}
    for index, number in enumerate(numbers):
        sample = dataset.read(index)
        (annotation,) = sample.annotations
        assert annotation["id"] == sample.id
        assert annotation["label"] == classes(folder)[number]
        found[sample.id] = annotation["label"]
    return found


def cifar10(root: Path, names: Sequence[str], batches: Mapping[str, Sequence[int]]) -> np.ndarray:
    """The binary version: classes of the pictures of each batch; returns the pixels of all, in the
    batches' order, (n, 3, 32, 32)."""
    write(root / "batches.meta.txt", "".join(f"{name}\n" for name in names) + "\n")
    rng = np.random.default_rng(0)
    pixels = []
    for name, numbers in batches.items():
        planes = rng.integers(0, 256, (len(numbers), 3, 32, 32), np.uint8)
        rows = zip(numbers, planes, strict=True)
        write(root / name, b"".join(bytes([number]) + plane.tobytes() for number, plane in rows))
        pixels.append(planes)
    return np.concatenate(pixels)

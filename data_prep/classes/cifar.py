"""CIFAR-10 and CIFAR-100 in their binary version: batches of 32 x 32 pictures and their classes.

Format (cs.toronto.edu/~kriz/cifar.html): for each picture a byte with its class (in CIFAR-100 two:
superclass and class), then 1,024 bytes of red, of green and of blue, row by row. The Python version
consists of pickles, which can run any program when they are opened: it is not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.classes.class_set import ClassSource, Shown
from data_prep.json_rows import open_text
from data_prep.packing.raw_picture import CHANNELS, RawPicture
from data_prep.packing.source import SourceSample
from vlds.runtime.regular_file import read_file

SIDE = 32
PIXELS = CHANNELS * SIDE * SIDE
DIGITS = 5


@dataclass(frozen=True)
class Version:
    """One of the two data sets."""

    names: str
    """File of the classes' names, one a line."""
    superclasses: str | None = None
    """CIFAR-100's file of coarse classes."""

    @property
    def record(self) -> int:
        """Bytes of a picture with its classes."""
        return PIXELS + (1 if self.superclasses is None else 2)


VERSIONS = (
    Version("batches.meta.txt"),
    Version("fine_label_names.txt", "coarse_label_names.txt"),
)
PICKLES = ("batches.meta", "meta")
"""Files of the Python version."""


def find_version(root: Path) -> Version | None:
    """Which of the two lies in a folder; None for other folders.

    Errors: ValueError for the Python version.
    """
    for version in VERSIONS:
        if (root / version.names).is_file():
            return version
    batches = any((root / name).is_file() for name in ("data_batch_1", "test_batch", "test"))
    if batches and any((root / name).is_file() for name in PICKLES):
        raise ValueError(
            f"--images {root} is CIFAR's Python version, whose pickles can run any program when "
            "they are opened; download the binary version (cifar-10-binary.tar.gz or "
            "cifar-100-binary.tar.gz) and give its folder"
        )
    return None


def read_cifar(root: Path, version: Version) -> ClassSource:
    """The pictures of all batches; files called test... are the split test, the others train.

    Errors: ValueError that names the file, and the cure.
    """
    names = _names(root / version.names)
    coarse = [] if version.superclasses is None else _names(root / version.superclasses)
    batches = sorted(root.glob("*.bin"))
    if not batches:
        raise ValueError(f"--images {root}: {version.names} and no *.bin; copy the batches there")
    pictures: list[Shown] = []
    counts = {"train": 0, "test": 0}
    for path in batches:
        split = "test" if path.name.startswith("test") else "train"
        for offset, numbers in _records(path, version, (names, coarse)):
            raw = RawPicture(path, offset, SIDE, SIDE)
            sample_id = f"{split}-{counts[split]:0{DIGITS}d}"
            source = {"superclass": coarse[numbers[0]]} if coarse else {}
            sample = SourceSample(sample_id, (), [], source, raw=(raw,))
            pictures.append(Shown(split, f"{numbers[-1]:03d}", sample))
            counts[split] += 1
    labels = {f"{number:03d}": name for number, name in enumerate(names)}
    files = [root / version.names, *batches]
    if version.superclasses:
        files.append(root / version.superclasses)
    return ClassSource(pictures, tuple(files), labels)


def _names(path: Path) -> list[str]:
    if not path.is_file():
        raise ValueError(f"{path} does not exist; copy it from the binary version")
    with open_text(path) as file:
        return [line.strip() for line in file if line.strip()]


def _records(
    path: Path, version: Version, names: tuple[Sequence[str], Sequence[str]]
) -> Iterator[tuple[int, bytes]]:
    """Where the pixels of each picture begin, and the bytes of its classes."""
    data = read_file(path)
    size = version.record
    if not data or len(data) % size:
        raise ValueError(
            f"{path}: {len(data):,} bytes, a multiple of {size:,} expected; download it again"
        )
    fine, coarse = names
    for begin in range(0, len(data), size):
        numbers = data[begin : begin + size - PIXELS]
        if numbers[-1] >= len(fine) or (coarse and numbers[0] >= len(coarse)):
            raise ValueError(
                f"{path}, picture {begin // size}: no class has the number "
                f"{' or '.join(map(str, numbers))}, the names are {len(fine)}; download it again"
            )
        yield begin + len(numbers), numbers

"""`verify` and a run agree: what a run cannot use, `verify` names; where all is well, a run reads
every sample."""

from __future__ import annotations

import random
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from data_prep.checking.verify import verify
from data_prep.packing.writer import SampleRecord, write_dataset
from tests.toys.pictures import noise
from tests.toys.shards import annotation
from tests.toys.streams import COLLATOR
from vlds.data.errors import ErrorPolicy, ShardError
from vlds.data.shards.sample import feature_bytes
from vlds.data.shards.store import Dataset, open_dataset
from vlds.data.shards.writing import index_folder
from vlds.data.streams.assemble import ImageStack, OpenBatch, StreamSetup
from vlds.data.streams.source import Source
from vlds.data.streams.stream import IndexedReader
from vlds.schema import ImageSpec, SkipSample
from vlds.tasks import VQA
from vlds.tasks.base import ask

SPEC = ImageSpec(height=8, width=8)
NUM, PER_SHARD = 6, 3
FORMATS = ("BMP", "PNG", "JPEG")
NAMES = ("toy-train-00000.tar", "toy-train-00001.tar")
BLOCK = 512
Bad = set[tuple[str, int | None]]


def record(number: int, features: bool) -> SampleRecord:
    asked = [{**annotation(10 * number + n), "label": {"yes": 1.0}} for n in range(1 + number % 2)]
    grid = np.full((4, 3), number, np.float16)
    picture = noise(number, (9, 9), FORMATS[number % len(FORMATS)])
    member = ("features.npy", feature_bytes(grid)) if features else ("img", picture)
    return SampleRecord(id=f"id{number}", members=[member], json={"annotations": asked})


@pytest.fixture(scope="module", params=["pictures", "features"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set that nothing is wrong with."""
    folder = tmp_path_factory.mktemp("agree") / str(request.param)
    write_dataset(
        folder, name="toy", kind="vqa", split="train", shard_samples=PER_SHARD,
        records=(record(n, request.param == "features") for n in range(NUM)),
    )  # fmt: skip
    return folder


def spoilt_by_a_run(folder: Path, image: ImageSpec | None) -> Bad | None:
    """Shard and number of each sample that a run cannot use; None where it does not even begin."""
    try:
        dataset = open_dataset(folder)
    except ValueError:
        return None
    source = Source("vqa", VQA(), [dataset])
    return {place(dataset, n) for n in range(dataset.num_samples) if not usable(source, n, image)}


def place(dataset: Dataset, number: int) -> tuple[str, int]:
    return dataset.shard_of(number), number % PER_SHARD


def usable(source: Source, number: int, image: ImageSpec | None) -> bool:
    """Read, decoded and asked about."""
    setup = StreamSetup(collator=COLLATOR, image=image, picture_cache_bytes=0)
    reader = IndexedReader([source], ErrorPolicy(), setup)
    try:
        found = next(reader.candidates(0, (0, number, 0), OpenBatch(ImageStack(1)))).opened
        if found.fault is not None or found.sample is None:
            return False
        for n in range(int(source.counts[number])):
            ask(source.task, "vqa", found.sample, n, None)
    except (SkipSample, ValueError):
        return False
    return True


def flip(data: bytes, draw: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 3))):
        if out:
            out[draw.randrange(len(out))] ^= 1 << draw.randrange(8)
    return bytes(out)


def headers(data: bytes) -> list[int]:
    """Offsets of the members' headers, as far as these are whole."""
    found, at = [], 0
    while data[at : at + BLOCK].strip(b"\0"):
        found.append(at)
        at = end_of(data, at)
    return found


def end_of(data: bytes, header: int) -> int:
    """Offset behind a member; behind all where its size is damaged."""
    digits = data[header + 124 : header + 135]
    size = int(digits, 8) if digits.isdigit() and max(digits) < ord("8") else len(data)
    return header + BLOCK + -(-size // BLOCK) * BLOCK


def with_checksum(header: bytes) -> bytes:
    blank = header[:148] + b" " * 8 + header[156:]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


def change_header(data: bytes, draw: random.Random) -> bytes:
    """One field of one header is another, and the header's checksum is right again."""
    at = draw.choice(headers(data) or [0])
    header = bytearray(data[at : at + BLOCK])
    if len(header) < BLOCK:
        return data
    field = draw.choice(("name", "size", "size", "type", "magic", "prefix"))
    if field == "name":
        header[draw.randrange(20)] = draw.choice(b"0123456789abj.n/\0")
    elif field == "size":
        size = end_of(data, at) - at - BLOCK + draw.choice((-1112, -512, -1, 0, 2, 100, 512, 4096))
        header[124:135] = b"%011o" % max(0, size)
    elif field == "type":
        header[156] = draw.choice(b"0123567xgLK\0")
    elif field == "magic":
        header[257:263] = draw.choice((b"ustar ", b"\0\0\0\0\0\0", b"nustar"))
    else:
        header[345:349] = draw.choice((b"abc\0", b"0\0\0\0", b"a/b\0"))
    return data[:at] + with_checksum(bytes(header)) + data[at + BLOCK :]


def change_members(data: bytes, draw: random.Random) -> bytes:
    """Members are missing, stand twice, or in another order."""
    starts = headers(data)
    if not starts:
        return data[BLOCK:]
    ends = [*starts[1:], end_of(data, starts[-1])]
    parts = [data[begin:end] for begin, end in zip(starts, ends, strict=True)]
    one, other = draw.randrange(len(parts)), draw.randrange(len(parts))
    kind = draw.choice(("remove", "double", "swap", "move"))
    if kind == "remove":
        del parts[one]
    elif kind == "double":
        parts.insert(other, parts[one])
    elif kind == "swap":
        parts[one], parts[other] = parts[other], parts[one]
    else:
        parts.insert(other, parts.pop(one))
    return b"".join(parts) + data[ends[-1] :]


def damage(folder: Path, draw: random.Random) -> str:
    """Damage one file; what it was."""
    tar = folder / draw.choice(NAMES)
    change = draw.choice((flip, change_header, change_header, change_members))
    path = tar
    if draw.random() < 0.3:
        change, path = flip, tar.with_name(tar.name + draw.choice((".idx", ".cnt", ".crc")))
    path.write_bytes(change(path.read_bytes(), draw))
    return f"{change.__name__} of {path.name}"


@pytest.mark.slow
@pytest.mark.sampled(2)
@pytest.mark.parametrize("rounds", [90, pytest.param(4000, marks=pytest.mark.slow)])
def test_what_a_run_cannot_use_verify_names(
    whole: Path, tmp_path: Path, rounds: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify([whole]) == []
    again = Path(shutil.copytree(whole, tmp_path / "again"))
    (again / "stray.tar").touch()
    (finding,) = verify([whole, again, again])
    assert finding.file.endswith("again/stray.tar")
    image = None if whole.name == "features" else SPEC
    assert spoilt_by_a_run(whole, image) == set()
    spoilt = refused = harmless = 0
    for seed in range(rounds):
        draw = random.Random(f"{whole.name} {seed}")
        folder = Path(shutil.copytree(whole, tmp_path / "damaged"))
        told = [damage(folder, draw) for _ in range(draw.choice((1, 1, 2)))]
        if draw.random() < 0.5:  # someone indexes the damaged shards
            with suppress(ShardError):
                index_folder(folder, name="toy", kind="vqa", split="train")
                told.append("indexed")
        bad = spoilt_by_a_run(folder, image)
        findings = verify([folder])
        named: Bad = {(finding.file, finding.i) for finding in findings}
        if bad is None:
            assert findings, (seed, told)
        else:
            assert bad <= named, (seed, told, bad - named, findings)
        refused += bad is None
        spoilt += bool(bad)
        harmless += not findings
        shutil.rmtree(folder)
        capsys.readouterr()
    assert min(spoilt, refused, harmless) > rounds // 50, (spoilt, refused, harmless)

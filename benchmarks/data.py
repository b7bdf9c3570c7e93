"""Compares vlds' reader with other loaders: CPU time per sample, on JPEGs and on stored features.

    pip install mosaicml-streaming
    python benchmarks/data.py --out runs/data

The program makes its own samples: JPEGs of 640 x 480 pixels with the spectrum of photographs, and
float16 features of 36 x 2048. Each reader reads them in one process with one thread, in batches of
64, shuffled as its own docs advise; the rounds of all readers alternate. Tables go to stdout.

    same decoder      the reader decodes with vlds' decoder
    same work         it also draws the answer, makes prompt and target, and collates them, as vlds
                      always does
    own docs          as its documentation sets it up
    limit             the decoder alone, on bytes in memory
    limit of reading  the same with bytes from the page cache
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import webdataset
from PIL import Image
from torchvision import transforms

from data_prep.packing.writer import SampleRecord, write_dataset
from vlds.data.config import DataConfig
from vlds.data.shards import store
from vlds.data.shards.pictures import decode_image
from vlds.data.shards.sample import feature_bytes, parse_features
from vlds.data.shards.shard_index import Indexes
from vlds.data.shards.store import Dataset, open_dataset
from vlds.data.streams.assemble import StreamSetup
from vlds.data.streams.source import Source
from vlds.data.streams.stream import TrainStream
from vlds.models.collate import JointCollator
from vlds.schema import Encoded, ImageSpec, Sample
from vlds.tasks import VQA

SIDE, BATCH = 224, 64
NUM_JPEGS, NUM_FEATURES = 512, 512
TOKENS, DIM = 36, 2048
SHARD = 128
SPEC = ImageSpec(SIDE, SIDE)
BICUBIC = transforms.InterpolationMode.BICUBIC
AS_DOCS = transforms.Compose(
    [transforms.Resize((SIDE, SIDE), interpolation=BICUBIC), transforms.ToTensor()]
)

TASK = VQA()

Read = Callable[[], Iterator[Any]]
"""Gives endless batches."""
Decode = Callable[[bytes], Any]


@dataclass(frozen=True)
class Peer:
    """What another reader does with a sample: it decodes the data and parses the JSON."""

    decode: Decode
    work: bool = False
    """True if it does all that vlds does."""

    def __call__(self, data: bytes, text: bytes) -> Any:
        fields = json.loads(text)
        decoded = self.decode(data)
        return (decoded, *example_of(fields)) if self.work else (decoded, fields)


class Words:
    """A tokenizer that costs almost nothing, because the other readers do not tokenize."""

    pad_token_id = 0

    def __call__(self, texts: list[str], **options: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[5, 1] for _ in texts]}


DRAW, WORDS = np.random.default_rng(0), Words()


def jpeg(seed: int) -> bytes:
    """A JPEG of noise whose amplitude falls with frequency, as in photographs."""
    rng = np.random.default_rng(seed)
    height, width = 480, 640
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    radius[0, 0] = 1
    planes = []
    for _ in range(3):
        plane = np.fft.ifft2(np.fft.fft2(rng.normal(size=(height, width))) / radius).real
        planes.append((plane - plane.mean()) / plane.std() * 50 + 128)
    pixels = np.stack(planes, -1).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def features(seed: int) -> np.ndarray:
    """Stored features of a picture."""
    return np.random.default_rng(seed).normal(size=(TOKENS, DIM)).astype(np.float16)


def questions_about(number: int, questions: int = 1) -> list[dict[str, Any]]:
    """Questions about a picture."""
    return [
        {"id": f"{number}-{n}", "question": "what is it?", "label": {"noise": 1.0}}
        for n in range(questions)
    ]


def write_small(folder: Path, samples: int, shard_samples: int) -> None:
    """Write a data set whose samples are as small as can be: a feature, and a question about it."""
    data = feature_bytes(np.zeros((1, 8), np.float16))
    records = [
        SampleRecord(
            id=str(n),
            members=[("features.npy", data)],
            json={"annotations": questions_about(n)},
        )
        for n in range(samples)
    ]
    write_dataset(
        folder, name="many", kind="vqa", split="train", records=records,
        shard_samples=shard_samples,
    )  # fmt: skip


def example_of(fields: dict[str, Any]) -> tuple[str, torch.Tensor, torch.Tensor, float]:
    """Id, prompt, target and weight of a sample's question, for torch to collate."""
    sample = Sample("", "", fields["id"], "vqa", (), (), tuple(fields["annotations"]))
    example = TASK.example("vqa", sample, 0, DRAW)
    prompt, target = WORDS([example.prompt, example.target or ""])["input_ids"]
    return example.id, torch.tensor(prompt), torch.tensor(target), example.weight


def make(out: Path) -> None:
    """Write the same samples as shards, loose files and MDS folders, if they are missing."""
    for name, count in (("jpeg", NUM_JPEGS), ("features", NUM_FEATURES)):
        folder = out / name
        if (folder / "dataset.json").exists():
            continue
        print(f"making {count} samples of {name}", file=sys.stderr)
        member = "jpg" if name == "jpeg" else "features.npy"
        data = [jpeg(n) if name == "jpeg" else feature_bytes(features(n)) for n in range(count)]
        write_shards(folder, member, data)
        loose = out / f"{name}-files"
        shutil.rmtree(loose, ignore_errors=True)
        loose.mkdir()
        for n, d in enumerate(data):
            (loose / f"{n}.{member}").write_bytes(d)
            (loose / f"{n}.json").write_bytes(text_of(n))
        make_mds(out / f"{name}-mds", data)


def write_shards(folder: Path, member: str, data: list[bytes], questions: int = 1) -> None:
    """Write a data set with `data` as its pictures or features."""
    records = [
        SampleRecord(
            id=str(n), members=[(member, d)], json={"annotations": questions_about(n, questions)}
        )
        for n, d in enumerate(data)
    ]
    write_dataset(
        folder, name=folder.name, kind="vqa", split="train", records=records, shard_samples=SHARD
    )


def text_of(number: int) -> bytes:
    """A sample's JSON, for the other readers."""
    return json.dumps({"id": str(number), "annotations": questions_about(number)}).encode()


def make_mds(folder: Path, data: list[bytes]) -> None:
    """Write the samples in MosaicML's format, if its package is installed."""
    try:
        from streaming import MDSWriter
    except ImportError:
        return
    shutil.rmtree(folder, ignore_errors=True)
    columns = {"data": "bytes", "json": "bytes"}
    with MDSWriter(out=str(folder), columns=columns, size_limit=1 << 25) as writer:
        for number, item in enumerate(data):
            writer.write({"data": item, "json": text_of(number)})


def ours(folder: Path, image: ImageSpec | None, group: int = 1) -> Read:
    """vlds' stream, without its cache of decoded pictures."""
    return lambda: stream_of(open_dataset(folder), image, group)


def stream_of(dataset: Dataset, image: ImageSpec | None, group: int = 1) -> Iterator[Any]:
    """Endless batches of a data set."""
    config = DataConfig(global_batch_size=BATCH, group=group)
    setup = StreamSetup(
        collator=JointCollator(WORDS, features=False), image=image, seed=0, picture_cache_bytes=0
    )
    return iter(TrainStream([Source("vqa", TASK, [dataset])], config, setup))


def unchecked(folder: Path, image: ImageSpec | None) -> Read:
    """vlds' stream without the checksums of samples, which no run can switch off."""
    dataset = open_dataset(folder)
    stored = dataset._indexes
    dataset._indexes = Indexes(
        lambda n: replace(stored[n], checksums=np.zeros_like(stored[n].checksums)), len(stored)
    )

    def read() -> Iterator[Any]:
        batches: Iterator[Any] | None = None
        while True:
            with patch.object(store, "crc32", lambda data: 0):
                batches = batches or stream_of(dataset, image)
                batch = next(batches)
            yield batch

    return read


def same_decoder(data: Encoded) -> torch.Tensor:
    """vlds' decoder, uint8."""
    return torch.from_numpy(decode_image(data, SPEC))


def same_features(data: bytes) -> torch.Tensor:
    """vlds' reader of .npy."""
    return torch.from_numpy(parse_features(memoryview(data)).copy())


def as_docs_jpeg(data: bytes) -> Any:
    """Pillow and torchvision's transforms."""
    return AS_DOCS(Image.open(io.BytesIO(data)).convert("RGB"))


def as_docs_features(data: bytes) -> torch.Tensor:
    """NumPy's reader."""
    return torch.from_numpy(np.load(io.BytesIO(data)))


def through_webdataset(folder: Path, member: str, peer: Peer) -> Read:
    """webdataset's pipeline with its shuffle buffer."""
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]

    def read() -> Iterator[Any]:
        pipeline = webdataset.WebDataset(urls, shardshuffle=100, seed=0).repeat().shuffle(1000)
        batches = pipeline.to_tuple(member, "json").map(lambda parts: peer(*parts))
        return iter(batches.batched(BATCH, collation_fn=torch.utils.data.default_collate))

    return read


class Files(torch.utils.data.Dataset[Any]):
    """Loose files; their JSON is read only for the same work."""

    def __init__(self, folder: Path, member: str, peer: Peer) -> None:
        self.paths = sorted(folder.glob(f"*.{member}"))
        self.texts = [folder / (path.name.split(".")[0] + ".json") for path in self.paths]
        self.peer = peer

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Any:
        data = self.paths[number].read_bytes()
        if self.peer.work:
            return self.peer(data, self.texts[number].read_bytes())
        return self.peer.decode(data)


def through_files(folder: Path, member: str, peer: Peer) -> Read:
    """torch's DataLoader over a folder of files."""

    def read() -> Iterator[Any]:
        loader: Any = torch.utils.data.DataLoader(Files(folder, member, peer), BATCH, shuffle=True)
        while True:
            yield from loader

    return read


def through_streaming(folder: Path, peer: Peer) -> Read:
    """MosaicML's StreamingDataset."""
    from streaming import StreamingDataset

    class Decoded(StreamingDataset):
        def __getitem__(self, index: int) -> Any:
            sample = super().__getitem__(index)
            return peer(sample["data"], sample["json"])

    def read() -> Iterator[Any]:
        dataset = Decoded(local=str(folder), shuffle=True, batch_size=BATCH)
        loader: Any = torch.utils.data.DataLoader(dataset, BATCH)
        while True:
            yield from loader

    return read


def limit(data: list[bytes], decode: Decode) -> Read:
    """The decoder alone: bytes in memory, stacked to batches."""

    def read() -> Iterator[Any]:
        endless = cycle(data)
        while True:
            yield torch.stack([decode(item) for item in islice(endless, BATCH)])

    return read


def limit_of_reading(folder: Path, name: str) -> Read:
    """The least work on bytes in the page cache: one read per sample, of a JPEG into memory for the
    decoder, of features into the batch."""
    tars = sorted(folder.glob("*.tar"))
    files = [os.open(tar, os.O_RDONLY) for tar in tars]
    offsets = np.stack([np.fromfile(f"{tar}.idx", "<u8").astype(np.int64) for tar in tars])

    def read() -> Iterator[Any]:
        rng = np.random.default_rng(0)
        while True:
            shards, rows = rng.integers(0, len(files), BATCH), rng.integers(0, SHARD, BATCH)
            places = zip(shards, offsets[shards, rows], offsets[shards, rows + 1], strict=True)
            # A tar header of 512 bytes precedes the data; a .npy file starts with 128 of its own.
            if name == "jpeg":
                bytes_read = [os.pread(files[n], end - begin, begin) for n, begin, end in places]
                yield torch.stack([same_decoder(memoryview(b)[512:]) for b in bytes_read])
                continue
            batch = np.empty((BATCH, TOKENS, DIM), np.float16)
            for values, (n, begin, _) in zip(batch, places, strict=True):
                os.preadv(files[n], [values.data], begin + 640)
            yield torch.from_numpy(batch)

    return read


def peers(out: Path, name: str) -> dict[str, Read]:
    """All readers of one kind of samples, by the name of their row."""
    folder, loose, mds = out / name, out / f"{name}-files", out / f"{name}-mds"
    member = "jpg" if name == "jpeg" else "features.npy"
    same, own = (
        (same_decoder, as_docs_jpeg) if name == "jpeg" else (same_features, as_docs_features)
    )
    data = [path.read_bytes() for path in sorted(loose.glob(f"*.{member}"))]
    image = SPEC if name == "jpeg" else None
    readers = {
        "limit": limit(data, same),
        "limit of reading": limit_of_reading(folder, name),
        "vlds": ours(folder, image),
        "vlds, without checksums": unchecked(folder, image),
    }
    setups = {
        "same decoder": Peer(same),
        "same work": Peer(same, work=True),
        "own docs": Peer(own),
    }
    for setup, peer in setups.items():
        readers[f"webdataset, {setup}"] = through_webdataset(folder, member, peer)
        readers[f"DataLoader over files, {setup}"] = through_files(loose, member, peer)
        if mds.exists():
            readers[f"mosaicml-streaming, {setup}"] = through_streaming(mds, peer)
    return readers


def measure(readers: dict[str, Read], rounds: int, batches: int) -> dict[str, list[float]]:
    """CPU milliseconds per sample, round by round; the first batch of each is not counted."""
    running = {name: read() for name, read in readers.items()}
    for reader in running.values():
        next(reader)
    times: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(rounds):
        for name, reader in running.items():
            begin = time.process_time()
            for _ in islice(reader, batches):
                pass
            times[name].append(1000 * (time.process_time() - begin) / (batches * BATCH))
    return times


def table(title: str, times: dict[str, list[float]]) -> str:
    """Medians with their range, compared with the limit and with vlds."""
    middle = {name: statistics.median(values) for name, values in times.items()}
    lines = [
        f"{title}\n",
        "| | ms per sample | range | over the limit | vlds is faster by |",
        "|---" * 5 + "|",
    ]
    for name, value in middle.items():
        spread = f"{min(times[name]):.3f} to {max(times[name]):.3f}"
        over = f"{value / middle['limit'] - 1:+.1%}" if name != "limit" else ""
        faster = f"{value / middle['vlds']:.2f}" if "limit" not in name and name != "vlds" else ""
        lines.append(f"| {name} | {value:.3f} | {spread} | {over} | {faster} |")
    return "\n".join(lines)


def once(out: Path) -> str:
    """Measure once: the first batch, a far seek, pictures decoded with `group`."""
    begin = time.perf_counter()
    next(ours(out / "jpeg", SPEC)())
    first = time.perf_counter() - begin
    source = Source("vqa", TASK, [open_dataset(out / "jpeg")])
    setup = StreamSetup(collator=JointCollator(WORDS, features=False), image=SPEC, seed=0)
    stream = TrainStream([source], DataConfig(global_batch_size=BATCH), setup)
    begin = time.perf_counter()
    stream.order.at(np.arange(10**9, 10**9 + BATCH))
    seek = time.perf_counter() - begin
    folder = out / "grouped"
    if not (folder / "dataset.json").exists():
        write_shards(folder, "jpg", [jpeg(n) for n in range(SHARD)], questions=4)
    pictures = [
        statistics.mean(len(batch.images) for batch in islice(ours(folder, SPEC, group)(), 8))
        for group in (1, 4)
    ]
    return (
        f"first batch {first:.2f} s; seek to position 10^9 {1000 * seek:.1f} ms; for {BATCH} "
        f"questions, four per picture, pictures decoded: {pictures[0]:.0f}, with group 4 "
        f"{pictures[1]:.0f}"
    )


def main() -> None:
    """Make the samples, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the samples")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--only",
        default="",
        metavar="NAME",
        help="measure the limits and readers whose names start so",
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    make(options.out)
    print(once(options.out) + "\n")
    for name, title, batches in (("jpeg", "JPEGs of 640 x 480", 4), ("features", "Features", 16)):
        readers = {
            name: read
            for name, read in peers(options.out, name).items()
            if name.startswith(("limit", options.only))
        }
        print(table(title, measure(readers, options.rounds, batches)) + "\n")


if __name__ == "__main__":
    main()

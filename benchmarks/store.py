"""Compares how loaders read from an object store: seconds to the first batch, samples a second.

    pip install 'vlds[s3]' mosaicml-streaming megatron-energon
    python benchmarks/store.py --out runs/store

The program serves a folder by the part of S3's protocol that loaders use, each answer 30 ms late,
as from a store in the same region; a server in Python that does more would be slower than any
loader. The same samples (features of 36 x 2048 float16, so that no decoder counts) are there as
vlds' shards and as MosaicML's. Each loader reads one epoch with an empty cache and a second one
with what it kept, with two worker processes, shuffled as its docs advise. Each is a process of its
own; the rounds of all alternate. Tables go to stdout.

    limit         boto3 gets whole shards in four threads and throws them away
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

import numpy as np
import psutil
import torch
from data import BATCH, TASK, WORDS, features, text_of

from data_prep.packing.writer import SampleRecord, write_dataset
from vlds.data.config import DataConfig
from vlds.data.shards.cache import ShardCache
from vlds.data.shards.sample import feature_bytes, parse_features
from vlds.data.shards.store import open_dataset
from vlds.data.streams.assemble import StreamSetup
from vlds.data.streams.source import Source
from vlds.data.streams.stream import TrainStream
from vlds.models.collate import JointCollator

BUCKET, NAME, SHARD, WORKERS = "bench", "features", 64, 2
Epochs = Iterator[Iterator[Any]]
"""Gives the batches of two epochs."""


class Store(BaseHTTPRequestHandler):
    """S3's GET, HEAD and list of the files below `root`, whose answers come late."""

    # Each connection has one answer. The workers of mosaicml-streaming 0.13 inherit the connection
    # of the process that they are forked from, and would read each other's answers on it.
    protocol_version = "HTTP/1.0"
    root, latency = Path(), 0.0
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        time.sleep(self.latency)
        path, _, query = self.path.partition("?")
        if "list-type=2" in query or path.count("/") < 2:
            self._list(unquote(dict(parse_qsl(query)).get("prefix", "")))
            return
        file = self.root / unquote(path).strip("/").partition("/")[2]
        if not file.is_file():
            self._answer(404, {"Content-Type": "application/xml"}, MISSING)
            return
        size = file.stat().st_size
        begin, end = 0, size
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            begin, end = int(asked[1]), min(int(asked[2] or size) + 1, size)
        about = {
            "ETag": f'"{size:x}"', "Last-Modified": "Tue, 01 Dec 2026 00:00:00 GMT",
            "Accept-Ranges": "bytes",
        }  # fmt: skip
        if asked:
            about["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        self._answer(206 if asked else 200, about | {"Content-Length": str(end - begin)})
        if self.command == "HEAD":
            return
        self.wfile.flush()
        with open(file, "rb") as opened:
            while begin < end:
                begin += os.sendfile(self.connection.fileno(), opened.fileno(), begin, end - begin)

    do_HEAD = do_GET

    def _list(self, prefix: str) -> None:
        paths = [path for path in sorted(self.root.rglob("*")) if path.is_file()]
        names = {str(path.relative_to(self.root)): path.stat().st_size for path in paths}
        rows = "".join(
            f"<Contents><Key>{name}</Key><LastModified>2026-12-01T00:00:00.000Z</LastModified>"
            f'<ETag>"{size:x}"</ETag><Size>{size}</Size></Contents>'
            for name, size in names.items()
            if name.startswith(prefix)
        )
        body = (
            f"<ListBucketResult><Name>{BUCKET}</Name><Prefix>{prefix}</Prefix>"
            f"<KeyCount>{rows.count('<Key>')}</KeyCount><MaxKeys>100000</MaxKeys>"
            f"<IsTruncated>false</IsTruncated>{rows}</ListBucketResult>"
        )
        self._answer(200, {"Content-Type": "application/xml"}, body.encode())

    def _answer(self, status: int, about: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | about).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


MISSING = b"<Error><Code>NoSuchKey</Code><Message>The key does not exist</Message></Error>"


def serve(root: Path, latency: float) -> None:
    """Print the port, and serve until the process is ended."""
    Store.root, Store.latency = root, latency
    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()


def make(out: Path, count: int) -> None:
    """Write the samples as vlds' shards, with Energon's records beside them, and as MosaicML's."""
    if (out / NAME / "dataset.json").exists():
        return
    data = [feature_bytes(features(number)) for number in range(count)]
    records = [
        SampleRecord(
            id=str(number),
            members=[("features.npy", item)],
            json={"annotations": json.loads(text_of(number))["annotations"]},
        )
        for number, item in enumerate(data)
    ]
    with suppress(ImportError):
        from streaming import MDSWriter

        shutil.rmtree(out / "mds", ignore_errors=True)
        columns, most = {"data": "bytes", "json": "bytes"}, SHARD * len(data[0])
        with MDSWriter(out=str(out / "mds"), columns=columns, size_limit=most) as writer:
            for number, item in enumerate(data):
                writer.write({"data": item, "json": text_of(number)})
    write_dataset(
        out / NAME, name=NAME, kind="vqa", split="train", records=records, shard_samples=SHARD
    )
    prepare_energon(out / NAME)


def prepare_energon(folder: Path) -> None:
    """Energon's records of the shards, if its package is installed."""
    script = Path(sys.executable).with_name("energon")
    if not script.exists():
        return
    words = ["prepare", str(folder), "--non-interactive", "--split-ratio", "1,0,0"]
    words += ["--force-overwrite", "--num-workers", "2", "--dataset-yaml-name", "dataset.yaml"]
    done = subprocess.run([str(script), *words], capture_output=True, text=True)
    if done.returncode:
        print(f"energon prepare: {done.stdout[-500:]}{done.stderr[-1500:]}", file=sys.stderr)
    (folder / ".nv-meta" / "dataset.yaml").write_text(
        "__module__: megatron.energon\n__class__: CrudeWebdataset\n"
    )


def vlds(out: Path, cache: Path) -> Epochs:
    """vlds' stream, with the default window."""
    dataset = open_dataset(f"s3://{BUCKET}/{NAME}", ShardCache(cache))
    setup = StreamSetup(collator=JointCollator(WORDS, features=True), image=None, seed=0)
    config = DataConfig(global_batch_size=BATCH, num_workers=WORKERS)
    batches = iter(TrainStream([Source("vqa", TASK, [dataset])], config, setup))
    for _ in range(2):
        yield islice(batches, dataset.num_samples // BATCH)


def webdataset(out: Path, cache: Path) -> Epochs:
    """webdataset's pipeline over curl, with its cache and its shuffle buffer."""
    import webdataset as wds

    place = f"{os.environ['AWS_ENDPOINT_URL']}/{BUCKET}/{NAME}"
    urls = [f"pipe:curl -sf {place}/{tar.name}" for tar in sorted((out / NAME).glob("*.tar"))]
    cache.mkdir(parents=True)
    pipeline = (
        wds.WebDataset(urls, shardshuffle=100, seed=0, cache_dir=str(cache))
        .shuffle(1000)
        .to_tuple("features.npy", "json")
        .map(lambda parts: (decoded(parts[0]), parts[1]))
        .batched(BATCH)
    )
    loader = wds.WebLoader(pipeline, batch_size=None, num_workers=WORKERS, persistent_workers=True)
    for _ in range(2):
        yield iter(loader)


def mosaicml(out: Path, cache: Path) -> Epochs:
    """MosaicML's StreamingDataset, with its default shuffle."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()

    class Decoded(StreamingDataset):
        def __getitem__(self, index: int) -> Any:
            sample = super().__getitem__(index)
            return decoded(sample["data"]), sample["json"]

    dataset = Decoded(remote=f"s3://{BUCKET}/mds", local=str(cache), shuffle=True, batch_size=BATCH)
    loader: Any = torch.utils.data.DataLoader(
        dataset, BATCH, num_workers=WORKERS, persistent_workers=True
    )
    for _ in range(2):
        yield iter(loader)


def energon(out: Path, cache: Path) -> Epochs:
    """Megatron-Energon over MSC, with its shuffle buffer. It keeps no copies."""
    from megatron.energon import (
        Cooker,
        CrudeSample,
        DefaultTaskEncoder,
        WorkerConfig,
        get_loader,
        get_train_dataset,
        stateless,
    )

    def cook(sample: Any) -> Any:
        kept = {name: sample[name] for name in ("__key__", "__restore_key__")}
        data = torch.from_numpy(sample["features.npy"])
        return CrudeSample({**kept, "__subflavors__": None, "data": data})

    def batch(self: Any, samples: list[Any]) -> Any:
        return torch.stack([sample["data"] for sample in samples])

    about = {"cookers": [Cooker(stateless(cook))], "batch": stateless(batch)}
    encoder = type("Encoder", (DefaultTaskEncoder,), about)
    config = cache.parent / f"{cache.name}.yaml"
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    options = {"base_path": BUCKET, "region_name": "us-east-1", "endpoint_url": endpoint}
    provider = {"type": "s3", "options": options}
    config.write_text(json.dumps({"profiles": {"bench": {"storage_provider": provider}}}))
    os.environ["MSC_CONFIG"] = str(config)
    dataset = get_train_dataset(
        f"msc://bench/{NAME}",
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=WORKERS),
        batch_size=BATCH,
        shuffle_buffer_size=1000,
        max_samples_per_sequence=100,
        task_encoder=encoder(),
        repeat=True,
    )
    batches = iter(get_loader(dataset))
    count = len(list((out / NAME).glob("*.tar"))) * SHARD // BATCH
    for _ in range(2):
        yield islice(batches, count)


def limit(out: Path, cache: Path) -> Epochs:
    """Whole shards, thrown away."""
    import boto3

    client = boto3.client("s3")
    names = [tar.name for tar in sorted((out / NAME).glob("*.tar"))]

    def get(name: str) -> list[int]:
        body = client.get_object(Bucket=BUCKET, Key=f"{NAME}/{name}")["Body"].read()
        return [len(body)] * (SHARD // BATCH)

    for _ in range(2):
        with ThreadPoolExecutor(4) as pool:
            yield (size for sizes in pool.map(get, names) for size in sizes)


def decoded(data: bytes) -> torch.Tensor:
    """vlds' reader of .npy, for all: no loader is faster for its decoder."""
    return torch.from_numpy(parse_features(memoryview(data)).copy())


FORMS = {
    "first": "{:.1f}", "cold": "{:,.0f}", "cold_ms": "{:.1f}", "warm": "{:,.0f}",
    "warm_ms": "{:.1f}",
}  # fmt: skip
READERS: dict[str, Callable[[Path, Path], Epochs]] = {
    "limit": limit,
    "vlds": vlds,
    "mosaicml-streaming": mosaicml,
    "webdataset": webdataset,
    "megatron-energon": energon,
}


def read(name: str, out: Path, cache: Path) -> None:
    """Read two epochs in this process, and print seconds to the first batch, and wall and processor
    time of each epoch."""
    torch.set_num_threads(1)
    begin = time.perf_counter()
    first, ends, counts, work = 0.0, [begin], [], [0.0]
    for epoch in READERS[name](out, cache):
        count = 0
        for _ in epoch:
            first = first or time.perf_counter() - begin
            count += 1
        counts.append(count)
        ends.append(time.perf_counter())
        work.append(processor_time())
    cold, warm = (BATCH * n / s for n, s in zip(counts, np.diff(ends), strict=True))
    cold_ms, warm_ms = (1000 * s / (BATCH * n) for n, s in zip(counts, np.diff(work), strict=True))
    times = {"first": first, "cold": cold, "cold_ms": cold_ms, "warm": warm, "warm_ms": warm_ms}
    print(json.dumps(times))
    sys.stdout.flush()
    os._exit(0)  # some loaders take seconds to end their workers


def processor_time() -> float:
    """Seconds of this process and its workers, their start included."""
    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    ended = me.cpu_times()
    return sum(t.user + t.system for t in times) + ended.children_user + ended.children_system


def table(rounds: dict[str, list[dict[str, float]]]) -> str:
    """Medians with their range, and how many times as fast vlds is."""
    lines = [
        "| | first batch, s | first epoch, samples/s | vlds is faster by | processor ms/sample "
        "| second, samples/s | processor ms/sample |",
        "|---" * 7 + "|",
    ]
    middle = {n: statistics.median(r["cold"] for r in results) for n, results in rounds.items()}
    for name, results in rounds.items():
        cells = []
        for key, form in FORMS.items():
            values = sorted(result[key] for result in results)
            low, high = form.format(values[0]), form.format(values[-1])
            cells.append(f"{form.format(statistics.median(values))} ({low} to {high})")
        is_other = "vlds" in middle and name not in ("vlds", "limit")
        cells.insert(2, f"{middle['vlds'] / middle[name]:.2f}" if is_other else "")
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def main() -> None:
    """Make the samples, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for samples and caches")
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--latency", type=float, default=0.03, help="seconds (default 0.03)")
    parser.add_argument("--only", nargs="+", choices=READERS, default=list(READERS))
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--read", choices=READERS, help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.out, options.latency)
    if options.read:
        read(options.read, options.out, options.cache)
    make(options.out, options.samples)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in options.only}
    words = [sys.executable, __file__, "--out", str(options.out), "--serve"]
    words += ["--latency", str(options.latency)]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout is not None
    place = f"http://127.0.0.1:{server.stdout.readline().strip()}"
    environment = os.environ | {
        "AWS_ENDPOINT_URL": place,
        "S3_ENDPOINT_URL": place,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }
    for number in range(options.rounds):
        for name in options.only:
            cache = options.out / "caches" / f"{name}-{number}"
            shutil.rmtree(cache, ignore_errors=True)
            cache.parent.mkdir(exist_ok=True)
            words = ["--out", str(options.out), "--read", name, "--cache", str(cache)]
            done = subprocess.run(
                [sys.executable, __file__, *words],
                capture_output=True, text=True, timeout=600, env=environment,
            )  # fmt: skip
            shutil.rmtree(cache, ignore_errors=True)
            if done.returncode:
                print(f"{name}: {done.stderr[-2000:]}", file=sys.stderr)
                continue
            rounds[name].append(json.loads(done.stdout.strip().splitlines()[-1]))
            print(name, done.stdout.strip().splitlines()[-1], file=sys.stderr)
    server.kill()
    print(table({name: results for name, results in rounds.items() if results}))


if __name__ == "__main__":
    main()

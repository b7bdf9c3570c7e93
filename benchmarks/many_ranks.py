"""What starting, agreeing, reading and saving takes on many ranks, without a model.

    export TORCH_CPP_LOG_LEVEL=ERROR
    python benchmarks/many_ranks.py --out runs/many_ranks --ranks 64 256 1024

All ranks run on this machine, as eight on each of many hosts, whose names a SLURM list says: forks
of a process that has imported everything. They do what `vlds train` does, by its code. All at once
they meet: the roll call, the process group (gloo), the comparison of what they run, the lock of the
output, a sum, a tree of messages to the first rank, and a claim of a sweep's part for each host.
Then they read, at most 256 at once, as no rank's reading needs another: batches from a web server
through one cache for each host, and the state; half as many ranks then go on from it. The program
checks that every batch has the examples that one process reads. Last, with the most ranks, one host
does not come, one comes late, one has another torch, and one stops in mid-run: what the first rank
says about it, and after how many seconds. Tables go to stdout.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import os
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager, suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import aiohttp  # noqa: F401  # as the web server's client does; forks share it
import fsspec.implementations.http  # noqa: F401
import psutil
import torch
from data import TASK, WORDS, write_small
from filelock import FileLock

import vlds.data.shards.cache
from vlds.cli.sweep_work import claim
from vlds.data.config import DataConfig
from vlds.data.order.mixed_order import BatchCut
from vlds.data.shards.cache import ShardCache
from vlds.data.shards.store import open_dataset
from vlds.data.streams.assemble import StreamSetup
from vlds.data.streams.source import Source
from vlds.data.streams.stream import TrainStream
from vlds.models.collate import JointCollator
from vlds.runtime import roll_call
from vlds.runtime.cluster import software
from vlds.runtime.deepspeed_start import import_muon, start_ranks
from vlds.runtime.folders import FolderInUse
from vlds.runtime.rank_environment import RankPlace, free_port
from vlds.runtime.ranks import hold_folder, rank_from_environment
from vlds.training.agreement import compare

PER_HOST, SHARDS, SAMPLES, STEPS = 8, 64, 64, 3
AT_ONCE = 256
"""Ranks that read at once: what each has for itself would fill this machine's memory."""
NICE, LOOK_S = 10, 1.0
"""What one machine has in place of many: the web server goes first, and ranks that wait for a file
of their host's cache look less often than twenty times a second."""
FACTS = {f"key {n}": f"value {n}" for n in range(400)}
"""About as much as a recipe with its files, libraries and data sets."""
FAULTS = ("lost", "late", "another torch", "stopped")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ranks", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--faults", nargs="*", choices=FAULTS, default=FAULTS)
    parser.add_argument("--only-faults", action="store_true", help="with the last --ranks")
    parser.add_argument("--late", type=float, default=40.0, help="seconds")
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    write_small(args.out / "data" / "many", SHARDS * SAMPLES, SAMPLES)
    os.environ |= {"DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    # What forks do not share, each has for itself: imports, first uses, hashes of the sources.
    software()
    import_muon()
    list(islice(stream_of(args.out / "data" / "many", None).steps(), 1))
    vlds.data.shards.cache.FileLock = functools.partial(FileLock, poll_interval=LOOK_S)  # type: ignore
    gc.collect()
    gc.freeze()  # else each fork copies what the collector marks
    print("| ranks | hosts | " + " | ".join(PARTS) + " |")
    print("|---|" * 1 + "---|" * (len(PARTS) + 1), flush=True)
    for number in () if args.only_faults else args.ranks:
        with web_server(args.out / "data") as address:
            url, run = f"http://127.0.0.1:{address}/many", args.out / str(number)
            took = run_all(run, number, functools.partial(meet, run))
            check_claims(run, number)
            took |= run_all(run, number, functools.partial(read, run, url, 0, number), AT_ONCE)
            check(run, args.out / "data" / "many", range(STEPS), number)
            half = functools.partial(read, run, url, STEPS, number // 2)
            run_all(run, number // 2, half, AT_ONCE)
            check(run, args.out / "data" / "many", range(STEPS, 2 * STEPS), number // 2)
        cells = " | ".join(f"{took[part]:,.4g}" for part in PARTS)
        print(f"| {number:,} | {number // PER_HOST} | {cells} |", flush=True)
    for fault in args.faults:
        number = args.ranks[-1]
        run = args.out / fault.replace(" ", "_")
        said = run_all(run, number, functools.partial(faulty, fault, args.late), fault=fault)
        print(f"\n{fault}, {number:,} ranks:")
        for line, seconds in said.items():
            print(f"  after {seconds:.1f} s: {line}", flush=True)


PARTS = (
    "roll call, s", "group, s", "agree, s", "output, s", "sum, s", "gather, s", "MB of a rank",
    "data set, s", "first batch, s", "batch, s", "state, bytes", "MB of a reader",
)  # fmt: skip


def run_all(
    run: Path,
    number: int,
    job: Callable[[int], dict[str, float]],
    at_once: int | None = None,
    fault: str = "",
) -> dict[str, float]:
    """Fork the ranks, all or some at once, and wait for them; what the first one has found."""
    run.mkdir(parents=True, exist_ok=True)
    port = free_port()
    for start in range(0, number, at_once or number):
        pids = [
            fork(run, rank, number, port, job)
            for rank in range(start, min(number, start + (at_once or number)))
            if fault != "lost" or rank // PER_HOST != 1
        ]
        try:
            codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        except KeyboardInterrupt:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            raise
        if not fault and any(codes):
            sys.exit(f"{sum(map(bool, codes))} of {len(pids)} ranks have failed")
    found: dict[str, float] = json.loads((run / "found.json").read_text())
    return found


def fork(
    run: Path, rank: int, number: int, port: int, job: Callable[[int], dict[str, float]]
) -> int:
    """Start a rank; its process id."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.nice(NICE)
        os.environ |= environment(rank, number, port)
        name = f"node{rank // PER_HOST:03d}"
        setattr(socket, "gethostname", lambda: name)  # noqa: B010
        result = job(rank)
        if rank == 0:
            (run / "found.json").write_text(json.dumps(result))
        code = 0
    except SystemExit as end:
        code = int(bool(end.code))
    except BaseException:  # whatever it is, a fork must not go on with its parent's work
        traceback.print_exc()
    finally:
        os._exit(code)


def environment(rank: int, number: int, port: int) -> dict[str, str]:
    """What SLURM and torchrun would set."""
    numbers = {"RANK": rank, "WORLD_SIZE": number, "LOCAL_RANK": rank % PER_HOST}
    numbers |= {"LOCAL_WORLD_SIZE": PER_HOST, "LOCAL_SIZE": PER_HOST, "MASTER_PORT": port}
    names = {"SLURM_JOB_NODELIST": f"node[000-{number // PER_HOST - 1:03d}]"}
    return {"MASTER_ADDR": "127.0.0.1", **names, **{k: str(v) for k, v in numbers.items()}}


class Laps:
    """Seconds of each part of a rank's work."""

    def __init__(self) -> None:
        self.took: dict[str, float] = {}
        self._begin = time.monotonic()

    def end(self, part: str) -> None:
        """A part ends, and the next begins."""
        now = time.monotonic()
        self.took[part], self._begin = now - self._begin, now


def meet(run: Path, rank: int) -> dict[str, float]:
    """What needs all ranks at once."""
    laps, call_roll = Laps(), roll_call.call_roll

    def timed(place: RankPlace, timeout_s: float) -> None:
        call_roll(place, timeout_s)
        laps.end("roll call, s")

    sys.modules["vlds.runtime.deepspeed_start"].call_roll = timed  # type: ignore[attr-defined]
    ranks = start_ranks(600)
    ranks.barrier()
    laps.end("group, s")
    compare(ranks, FACTS)
    laps.end("agree, s")
    with hold_folder(ranks, run / "output"):
        laps.end("output, s")
        ranks.any(False)
        laps.end("sum, s")
        gathered = ranks.gather([rank, "x" * 1000])
        laps.end("gather, s")
        if gathered is not None:
            assert [number for number, _ in gathered] == list(range(ranks.world_size))
        if ranks.local_rank == 0:
            claim_one(run, ranks.global_rank // PER_HOST)
        ranks.barrier()
    return laps.took | {"MB of a rank": psutil.Process().memory_full_info().uss / 1e6}


def read(run: Path, url: str, first_step: int, number: int, rank: int) -> dict[str, float]:
    """What a rank does without the others."""
    laps = Laps()
    stream = stream_of(url, ShardCache(run / "caches" / socket.gethostname()), rank, number)
    if first_step:
        stream.load_state(json.loads((run / "state.json").read_text()))
    laps.end("data set, s")
    ids = []
    for step, batches in enumerate(islice(stream.steps(), STEPS)):
        ids.append([id for batch in batches for id in batch.ids])
        laps.end("batch, s" if step else "first batch, s")
    (run / f"{rank}.ids").write_text(json.dumps(ids))
    state = json.dumps(stream.state())
    if rank == 0:
        (run / "new_state.json").write_text(state)
    memory = psutil.Process().memory_full_info().uss / 1e6
    return laps.took | {"state, bytes": len(state), "MB of a reader": memory}


def stream_of(
    folder: str | Path, cache: ShardCache | None, rank: int = 0, number: int = 1
) -> TrainStream:
    """The batches of a rank, or of one process that has them alone."""
    setup = StreamSetup(
        collator=JointCollator(WORDS, features=True),
        image=None,
        cut=BatchCut(number),
        global_rank=rank,
    )
    config = DataConfig(global_batch_size=2 * 1024, lanes=SHARDS, window=4)
    return TrainStream([Source("vqa", TASK, [open_dataset(folder, cache)])], config, setup)


def claim_one(run: Path, host: int) -> None:
    """Claim one of as many parts as there are hosts; nobody else does it meanwhile or later."""
    (run / "done").mkdir(exist_ok=True)
    for part in range(10_000):
        if (run / "done" / str(part)).exists():
            continue
        with suppress(FolderInUse), claim(run / "claims" / str(part)):
            if (run / "done" / str(part)).exists():
                continue
            with (run / "done" / str(part)).open("x") as file:
                file.write(str(host))
            return


def check_claims(run: Path, number: int) -> None:
    """Each host has done one part."""
    hosts = sorted(int(file.read_text()) for file in (run / "done").iterdir())
    assert hosts == list(range(number // PER_HOST)), hosts


def check(run: Path, folder: Path, steps: range, number: int) -> None:
    """All ranks together have read what one process reads."""
    expected = [
        [id for batch in batches for id in batch.ids]
        for batches in islice(stream_of(folder, None).steps(), steps.stop)
    ]
    files = [run / f"{rank}.ids" for rank in range(number)]
    read_ids = [json.loads(file.read_text()) for file in files]
    for step in range(len(steps)):
        found = [id for ids in read_ids for id in ids[step]]
        assert found == expected[steps.start + step], f"step {steps.start + step}"
    for file in files:
        file.unlink()
    (run / "new_state.json").replace(run / "state.json")


def faulty(fault: str, late: float, rank: int) -> dict[str, float]:
    """What a rank does with one bad host; the first one returns its lines, and when they came."""
    said: dict[str, float] = {}
    begin = time.monotonic()
    roll_call.tell = lambda line, **_: said.setdefault(line, time.monotonic() - begin)  # type: ignore
    is_odd = rank // PER_HOST == 1
    if fault == "late" and is_odd:
        time.sleep(late)
    if fault == "another torch" and is_odd:
        own = {**software(), "torch": "2.9.0"}
        setattr(roll_call, "software", lambda: own)  # noqa: B010
    timeout = late if fault == "lost" else 600
    ranks = rank_from_environment()
    try:
        roll_call.call_roll(ranks, timeout)
    except SystemExit:
        if rank:
            raise
        return said
    if fault == "stopped":
        begin = time.monotonic()
        if is_odd:
            os.kill(os.getpid(), signal.SIGSTOP)
        if rank == 0:
            while not said:
                time.sleep(0.1)
            # It comes back, and that is said too.
            for process in psutil.Process(os.getppid()).children():
                with suppress(psutil.Error):
                    process.send_signal(signal.SIGCONT)
            while len(said) < 2:
                time.sleep(0.1)
        else:
            time.sleep(120)  # the first one ends the run
    return said


class Quiet(SimpleHTTPRequestHandler):
    """Serves files, and logs nothing."""

    def log_message(self, *_: object) -> None:
        pass


def _serve(folder: Path, connection: object) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    server.socket.listen(1024)
    connection.send(server.server_port)  # type: ignore[attr-defined]
    server.serve_forever()


@contextmanager
def web_server(folder: Path):  # type: ignore[no-untyped-def]
    """The port of a web server, in a process of its own: the one that forks has no threads."""
    ours, theirs = get_context("fork").Pipe()
    process = get_context("fork").Process(target=_serve, args=(folder, theirs), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.kill()
        process.join()


if __name__ == "__main__":
    main()

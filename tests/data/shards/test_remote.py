"""Data sets at a URL: the same samples and batches as from the folder, whatever the line does."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from pathlib import Path
from typing import Any

import fsspec
import pytest

import vlds.data.shards.download
from tests.toys.streams import (
    cached_shards,
    epoch_rows,
    wait_for_copies,
)
from tests.toys.web import Web
from vlds.data.errors import ErrorPolicy, ShardError
from vlds.data.shards.cache import ShardCache
from vlds.data.shards.store import open_dataset
from vlds.evaluation.sources import open_datasets
from vlds.runtime.terminal import Away, complain
from vlds.tasks import VQA

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hardly any pause between tries, and half a second of patience."""
    monkeypatch.setattr(vlds.data.shards.download, "PAUSE_S", 0.01)
    monkeypatch.setattr(vlds.data.shards.download, "AWAY_S", 0.5)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("reference://::file://evil.json", "a chain of addresses"),
        ("dask://127.0.0.1:1/x", "and not dask; to allow it, set VLDS_SCHEMES=dask"),
        ("FILE://x", "and not FILE"),
        ("nowhere://x", r"data set nowhere://x: Protocol not known.*; give an"),
    ],
)
def test_addresses_are_of_known_schemes(
    cache: ShardCache, monkeypatch: pytest.MonkeyPatch, url: str, message: str
) -> None:
    monkeypatch.setenv("VLDS_SCHEMES", "nowhere")
    with pytest.raises(ValueError, match=message):
        open_dataset(url, cache)


def test_samples_are_those_of_the_folder(
    web: Web, folders: dict[str, Path], cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLDS_SCHEMES", "memory")
    memory = fsspec.filesystem("memory")
    memory.put(str(folders["big"]), "/shards/big", recursive=True)
    local = open_dataset(folders["big"])
    for place in (
        web.url("big"),
        web.url("big/"),
        f"file://{folders['big']}",
        "memory://shards/big",
    ):
        remote = pickle.loads(pickle.dumps(open_dataset(place, cache)))
        assert remote.info == local.info
        assert remote.fingerprint() == local.fingerprint()
        for number in range(local.num_samples):
            assert remote.read(number) == local.read(number)
    assert set(web.requests.values()) == {1}
    assert len(web.requests) == 1 + 4 * 6
    wait_for_copies(cache, 3 * 6)


def read_all(url: str, cache: ShardCache, start: Any, answers: Any) -> None:
    start.wait()
    dataset = open_dataset(url, cache)
    answers.put([dataset.read(number).id for number in range(dataset.num_samples)])


def test_what_a_killed_process_leaves_harms_nobody(web: Web, cache: ShardCache) -> None:
    name = "small-train-00000.tar"
    web.held[name] = threading.Event()
    start, answers = FORK.Barrier(1), FORK.Queue()
    child = FORK.Process(
        target=read_all, args=(web.url("small"), cache, start, answers), daemon=True
    )
    child.start()
    assert web.half_sent.wait(20)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert cached_shards(cache) == []
    web.held.pop(name).set()
    assert open_dataset(web.url("small"), cache).read(0).id == "small-0"
    assert web.requests[name] == 2
    assert not list(cache.folder.glob(".*.partial"))


@pytest.mark.parametrize("name", ["dataset.json", "big-train-00000.tar.idx", "big-train-00000.tar"])
def test_a_line_that_breaks_is_tried_again(
    web: Web, cache: ShardCache, hasty: None, name: str
) -> None:
    web.breaks[name] = 3
    assert open_dataset(web.url("big"), cache).read(0).id == "big-0"
    assert web.requests[name] == 4


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_store_that_is_away_is_no_damage(
    web: Web, cache: ShardCache, hasty: None, num_workers: int
) -> None:
    """Nothing is put in the place of its samples, and the run may be restarted."""
    web.status["big-train-00002.tar"] = 503
    lenient = ErrorPolicy(max_bad_fraction=1.0, max_in_a_row=50, on_bad_shard="substitute")
    with pytest.raises(Away, match=r"00002\.tar: away for 0.5 s") as error:
        epoch_rows(web.url("big"), cache, errors=lenient, num_workers=num_workers)
    # Nor does the library's error go along, which pickle cannot take where Dask is loaded.
    assert error.value.__context__ is None
    assert complain("vlds train", error.value) == 1
    del web.status["big-train-00002.tar"]
    assert open_dataset(web.url("big"), cache).read(20).id == "big-20"


def test_wrong_bytes_are_never_used(web: Web, cache: ShardCache) -> None:
    web.wrong = {"big-train-00000.tar": 1, "big-train-00001.tar": 2}
    dataset = open_dataset(web.url("big"), cache)
    assert dataset.read(0).id == "big-0"
    for _ in range(2):
        said = r"big-train-00001\.tar: came with sha256 .*not the file that"
        with pytest.raises(ShardError, match=said):
            dataset.read(10)
    assert web.requests["big-train-00001.tar"] == 2
    assert len(cached_shards(cache)) == 1


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("dataset.json", 404, r"/big/dataset\.json: there is no such file \(404\); check the addr"),
        ("dataset.json", 403, r"/big/dataset\.json: access is refused \(403\).* credentials"),
        ("dataset.json", 410, r"no such file"),
        ("dataset.json", 400, r"the server refuses it .*400"),
        ("big-train-00003.tar.cnt", 404, r"/big/big-train-00003\.tar\.cnt: there is no such file"),
    ],
)
def test_refusals_come_before_the_run(
    web: Web, cache: ShardCache, name: str, status: int, message: str
) -> None:
    web.status[name] = status
    with pytest.raises(ValueError, match=f"^tasks.red: http://.*{message}"):
        open_datasets("tasks.red", VQA(), [web.url("big")], cache)
    assert web.requests[name] == 1
    del web.status[name]  # mended at once
    assert open_dataset(web.url("big"), cache).num_samples == 60


def test_a_shard_that_cannot_be_had_is_a_bad_shard(
    web: Web, cache: ShardCache, tmp_path: Path
) -> None:
    web.status["big-train-00002.tar"] = 404
    with pytest.raises(ShardError, match=r"^http://.*/big-train-00002\.tar: there is no such file"):
        epoch_rows(web.url("big"), cache)
    lenient = ErrorPolicy(max_bad_fraction=1.0, max_in_a_row=50, on_bad_shard="substitute")
    ledger = tmp_path / "ledger"
    rows = epoch_rows(web.url("big"), cache, errors=lenient, ledger=ledger)
    ids = {id for batch in rows for id, *_ in batch}
    assert not any(id.startswith(f"big-{n}-") for n in range(20, 30) for id in ids)
    assert "no such file (404)" in ledger.read_text()
    assert web.requests["big-train-00002.tar"] == 2  # once by each stream

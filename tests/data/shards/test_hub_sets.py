"""Data sets on the Hugging Face hub, as its own library asks a stand-in for them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data_prep.packing.writer import write_dataset
from tests.toys.files import ROOT
from tests.toys.hub import TOKEN, Hub, running_hub
from tests.toys.streams import records

URL = "hf://datasets/me/shards/vqa/train"
READ = f"""
from pathlib import Path
from vlds.data.shards.cache import ShardCache
from vlds.data.shards.store import open_dataset
dataset = open_dataset("{URL}", ShardCache(Path("copies")))
print(*(dataset.read(number).id for number in range(24)))
"""
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = tmp_path / "repository" / "vqa" / "train"
    write_dataset(
        folder, name="many", kind="vqa", split="train", records=records("many", 24),
        shard_samples=6,
    )  # fmt: skip
    with running_hub() as hub:
        hub.published["datasets/me/shards"] = tmp_path / "repository"
        yield hub


@pytest.fixture
def run(hub: Hub, tmp_path: Path) -> Run:
    """Python in a process of its own: the hub's library reads the environment once."""
    variables = {**os.environ, **hub.environment(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    variables["XDG_CACHE_HOME"] = str(tmp_path / "cache")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words], env=variables, cwd=tmp_path, text=True, capture_output=True
        )

    return run


def test_samples_come_from_the_hub(hub: Hub, run: Run) -> None:
    read = run("-c", READ)
    assert read.stdout.split() == [f"many-{number}" for number in range(24)], read.stderr
    # The hub refuses who asks its interface too often; files are another matter.
    assert sum("/api/" in request for request in hub.requests) <= 4


def test_data_sets_on_the_hub_are_verified(hub: Hub, run: Run) -> None:
    right = run("-m", "vlds", "data", "verify", URL)
    assert right.returncode == 0, right.stderr
    assert "24 samples" in right.stdout
    assert TOKEN not in right.stdout + right.stderr
    assert sum("/api/" in request for request in hub.requests) <= 8
    shard = hub.published["datasets/me/shards"] / "vqa" / "train" / "many-train-00002.tar"
    damaged = bytearray(shard.read_bytes())
    damaged[700] ^= 1
    shard.write_bytes(damaged)
    wrong = run("-m", "vlds", "data", "verify", URL)
    assert wrong.returncode == 1
    assert "many-train-00002.tar" in wrong.stdout + wrong.stderr
    assert "many-train-00002" in shard.with_name("quarantine.jsonl").read_text()

"""Fixtures for all tests: folders, and processes for distributed code."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from unittest import mock
from zlib import crc32

import pytest

from tests.toys.files import ROOT
from tests.toys.rank_pool import RankPool


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", default="1/1", metavar="K/N", help="run the K-th of N parts alone")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of `--part`. Of those marked `sampled(n)`, all but each n-th become slow."""
    part, parts = map(int, config.getoption("--part").split("/"))
    if not 1 <= part <= parts:
        raise pytest.UsageError(f"--part {part}/{parts}: the first number is from 1 to the second")
    kept: list[pytest.Item] = []
    others: list[pytest.Item] = []
    for item in items:
        test = item.nodeid.partition("[")[0]
        (kept if crc32(test.encode()) % parts == part - 1 else others).append(item)
    config.hook.pytest_deselected(items=others)
    items[:] = kept
    seen: Counter[str] = Counter()
    for item in items:
        marker = item.get_closest_marker("sampled")
        if marker is None or item.get_closest_marker("slow"):
            continue
        test = item.nodeid.partition("[")[0]
        if seen[test] % marker.args[0]:
            item.add_marker(pytest.mark.slow)
        seen[test] += 1


def pytest_collection_finish() -> None:
    """Spare each later garbage collection the million objects that imports have left."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def working_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An empty one: in the checkout, a relative name would find what its runs have left there."""
    with chdir(tmp_path_factory.mktemp("working_directory")):
        yield


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """The environment as it was, also after a command that has made this process a rank."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(scope="session")
def root() -> Path:
    """Top folder of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of data too large for the repository: $VLDS_SHARED, by default next to it."""
    folder = Path(os.environ.get("VLDS_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: set VLDS_SHARED to run the tests on real data")
    return folder


@pytest.fixture(scope="session")
def ranks1() -> Iterator[RankPool]:
    """One gloo process, like ranks2."""
    pool = RankPool(1)
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def ranks2() -> Iterator[RankPool]:
    """Two gloo processes: ranks2.run(function, *args, timeout=60) -> one result per process."""
    pool = RankPool(2)
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def ranks4() -> Iterator[RankPool]:
    """Four gloo processes, like ranks2."""
    pool = RankPool(4)
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a tiny real run (tests/toys/world.py); copy them before changing them."""
    from tests.toys.world import write_world

    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    return folder

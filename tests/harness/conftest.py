"""Two made benchmarks and a run that answers them, for both harnesses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.toys.benchmarks import made_run, write_benchmarks
from tests.toys.world import write_world


@pytest.fixture(scope="session")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    write_benchmarks(folder)
    return folder


@pytest.fixture(scope="session")
def made(benchmarks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = tmp_path_factory.mktemp("world")
    write_world(world)
    return made_run(benchmarks, world)

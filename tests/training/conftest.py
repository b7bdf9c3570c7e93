"""The files of a tiny real run, written once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.world import write_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data sets, tokenizer and sizes (tests.training.world); not to be changed."""
    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    return folder

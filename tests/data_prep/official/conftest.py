"""Publishers' splits as a run reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.cli import main
from tests.toys.shards import packed
from vlds.schema import Sample


@pytest.fixture
def pack_split(tmp_path: Path) -> Callable[..., dict[str, Sample]]:
    """Run a command on the files in `src`, with OUT below the test's folder: the samples there."""

    def pack(command: str, src: Path, *more: object, out: str = "out") -> dict[str, Sample]:
        words = [*command.split(), "--src", str(src), *map(str, more)]
        assert main([*words, "--out", str(tmp_path / out)]) == 0
        return packed(tmp_path / out)

    return pack

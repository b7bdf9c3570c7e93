"""A server on a tiny, untrained run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from tests.toys.trained_runs import talkative_run
from tests.toys.world import world_recipe
from vlds.evaluation.serve import Server, bound, open_run


@pytest.fixture(scope="session")
def talkative(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the tasks vqa and caption, whose name a page must escape."""
    return talkative_run(world_recipe(world, tmp_path_factory.mktemp("serve") / "a <b>run"))


@pytest.fixture(scope="session")
def server(talkative: Path) -> Iterator[Server]:
    """A server on a free port."""
    with bound(0) as made:
        made.opened, made.name = open_run(talkative, []), talkative.name
        thread = Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()

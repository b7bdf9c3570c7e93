"""The page in a real browser: it is quiet, fetches nothing, and fits a phone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.toys.browser import PROGRAM, visit
from tests.toys.scored_runs import Runs
from vlds.report.page import write_report
from vlds.report.read import read_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium or Chrome on PATH"),
]
WIDTH = "document.scrollingElement.scrollWidth"
OPEN_ALL = "document.querySelectorAll('details').forEach(fold => { fold.open = true })"
HEADING = "document.querySelector('h1').textContent"
PICTURES = "[...document.images].filter(image => image.naturalWidth > 0).length"


@pytest.mark.parametrize("width", [390, 1280])
def test_it_is_quiet_fetches_nothing_and_fits(
    runs: Runs, run: Path, evil: Path, tmp_path: Path, width: int
) -> None:
    long_name = shutil.copytree(runs.second, tmp_path / ("a_name_without_a_blank_" * 5))
    sweep = [shutil.copytree(runs.first, tmp_path / f"run-{n}") for n in range(9)]
    for folders in ([run], [evil], [runs.first, runs.second, run, evil, long_name, *sweep]):
        page = write_report([read_run(folder) for folder in folders], tmp_path / "out")
        seen = visit(page.as_uri(), HEADING, WIDTH, OPEN_ALL, WIDTH, PICTURES, width=width)
        heading, folded, _, unfolded, pictures = seen.values
        assert heading == (folders[0].name if len(folders) == 1 else "14 runs")
        assert seen.logged == []
        assert seen.requested == [page.as_uri()]
        assert (folded, unfolded) == (width, width)
        assert pictures >= 5

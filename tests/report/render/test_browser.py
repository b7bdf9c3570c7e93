"""The page in a real browser: it is quiet, fetches nothing, fits a phone, and shows its colours."""

from __future__ import annotations

import shutil
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

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


@pytest.mark.parametrize("dark", [False, True])
def test_it_shows_pictures_and_curves_in_light_and_dark(
    run: Path, tmp_path: Path, dark: bool
) -> None:
    page = write_report([read_run(run)], tmp_path)
    seen = visit(page.as_uri(), width=1200, dark=dark)
    with Image.open(BytesIO(seen.screenshot)) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24) or []}
    assert {(200, 10, 20), (10, 200, 20), (10, 20, 200), (250, 250, 0)} <= colours
    ground, curve = ((20, 23, 27), (130, 177, 255)) if dark else ((252, 252, 251), (31, 95, 191))
    assert {ground, curve} <= colours


IS_SHOWN = "getComputedStyle(document.querySelector('{}')).display !== 'none'"


def test_all_but_the_filters_is_there_without_script(sure: Path, tmp_path: Path) -> None:
    page = write_report([read_run(sure)], tmp_path)
    shown = [IS_SHOWN.format(part) for part in (".linear", ".log", "#explorer", "noscript")]
    switch = "document.getElementById('loss-log').checked = true"
    seen = visit(page.as_uri(), *shown, switch, *shown[:2], HEADING, PICTURES, scripts=False)
    assert seen.values == [True, False, False, True, True, False, True, "sure", 12 + 16 + 10]

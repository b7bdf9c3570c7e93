"""The report as a picture."""

from __future__ import annotations

import shutil
from pathlib import Path

from PIL import Image

from tests.report.scored_run import Runs
from tests.report.toy_run import make_run
from vlds.report.render.write import write_report


def colours_of(path: Path) -> set[tuple[int, ...]]:
    with Image.open(path) as image:
        assert image.width == 1200
        return {colour for _, colour in image.convert("RGB").getcolors(1 << 24) or []}  # type: ignore[misc]


def test_picture_shows_samples_and_bars(tmp_path: Path) -> None:
    page, picture = write_report([make_run(tmp_path / "run")], tmp_path / "out")
    assert page.stat().st_size > 10_000
    colours = colours_of(picture)
    assert {(200, 10, 20), (10, 200, 20), (10, 20, 200), (250, 250, 0)} <= colours
    assert (31, 79, 159) in colours, "no bar in the colour of the last column"


def test_a_run_of_which_only_the_loss_is_known(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    _, picture = write_report([run], run)
    with Image.open(picture) as image:
        assert image.height < 400


def test_several_runs_share_their_panels(runs: Runs, tmp_path: Path) -> None:
    """The picture grows by a bar a run."""
    heights = []
    for count in (2, 6):
        copies = [
            Path(shutil.copytree(runs.first, tmp_path / f"{count}-{n}")) for n in range(count)
        ]
        _, picture = write_report(copies, tmp_path / "out")
        colours = colours_of(picture)
        assert {(31, 95, 191), (194, 81, 12)} <= colours
        assert ((163, 38, 138) in colours) == (count == 6)
        with Image.open(picture) as image:
            heights.append(image.height)
    assert 0 < heights[1] - heights[0] < 4 * 50

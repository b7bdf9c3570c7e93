"""The report as a picture."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from tests.report.toy_run import make_run
from vlds.report import write_report


def test_picture_shows_samples_and_bars(tmp_path: Path) -> None:
    page, picture = write_report([make_run(tmp_path / "run")], tmp_path / "out")
    assert page.stat().st_size > 10_000
    with Image.open(picture) as image:
        assert image.width == 1200
        colors = {color for _, color in image.convert("RGB").getcolors(1 << 24) or []}
    assert {(200, 10, 20), (10, 200, 20), (10, 20, 200), (250, 250, 0)} <= colors
    assert (31, 79, 159) in colors, "no bar in the colour of the last column"


def test_a_run_of_which_only_the_loss_is_known(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    _, picture = write_report([run], run)
    with Image.open(picture) as image:
        assert image.height < 400

"""The page: all is on it, nothing is fetched or unescaped; seen in a browser where there is one."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from tests.report.toy_run import COLUMNS, NASTY, TASKS, make_run
from vlds.report import write_report
from vlds.report.page import build_report

BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome")
                if (path := shutil.which(name))), None)  # fmt: skip
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on PATH")

VOID = {"meta", "img", "br", "line", "circle", "polyline", "link", "input", "hr"}


class Reader(HTMLParser):
    """Collects tags and text, and checks that what opens also closes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "adapters-<1>")


def test_everything_is_on_the_page(run: Path) -> None:
    page = Reader(build_report([run]))
    for expected in (
        run.name, *TASKS, *COLUMNS, "0.800", "1,234 examples", "vqa_accuracy / part / yes / no",
        "69,000 of 930,000 (7.42 %)", "860.0 kB", "731", NASTY, "output: <runs>", "(nothing)",
        "caption 4",
    ):  # fmt: skip
        assert expected in page.text
    assert "caption 5" not in page.text
    charts = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    assert len(charts) == 1 + 2 * len(TASKS)
    assert sum(tag == "img" for tag, _ in page.tags) == 5


def test_right_and_wrong_are_words(run: Path) -> None:
    page = build_report([run])
    assert (page.count("&#10003; right"), page.count("&#10007; wrong")) == (2, 1)


def test_nothing_is_fetched_and_no_script_runs(run: Path) -> None:
    page = Reader(build_report([run]))
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "base"}
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "data"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert "url(" not in page.text


def test_the_best_of_a_row_is_marked(run: Path) -> None:
    page = build_report([run])
    assert page.count('<td class="number best">0.800') == 2 * len(TASKS)


def test_parts_that_are_missing_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n')
    page = Reader(build_report([tmp_path])).text
    for heading in ("Scores", "Samples", "Size and speed", "Score during training"):
        assert heading not in page


def test_a_lost_picture_leaves_a_word(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "gallery" / "0000-0.png").unlink()
    assert "0000-0.png is missing" in build_report([folder])


def test_runs_stand_side_by_side_even_under_one_name(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / seed / "run") for seed in ("1", "2")]
    page = Reader(build_report(folders)).text
    assert "Side by side" in page
    assert all(str(folder) in page for folder in folders)


def browse(*arguments: str, profile: Path) -> str:
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
               "--disable-background-networking", "--hide-scrollbars",
               f"--user-data-dir={profile}", *arguments]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


@needs_browser
def test_a_browser_shows_curves_and_pictures(run: Path, tmp_path: Path) -> None:
    page, _ = write_report([run], tmp_path)
    shot = tmp_path / "shot.png"
    browse("--window-size=1200,4000", f"--screenshot={shot}", page.as_uri(), profile=tmp_path / "p")
    with Image.open(shot) as image:
        colors = {color for _, color in image.convert("RGB").getcolors(1 << 24) or []}
    assert {(200, 10, 20), (10, 200, 20), (10, 20, 200), (250, 250, 0)} <= colors
    assert {(31, 95, 191), (130, 177, 255)} & colors, "no curve in the accent colour"


@needs_browser
@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_never_scrolls_sideways(run: Path, tmp_path: Path, width: int) -> None:
    frame = tmp_path / "frame.html"
    inner = html.escape(build_report([run, run]), quote=True)
    frame.write_text(
        f'<iframe id="f" style="width:{width}px;height:900px;border:0" srcdoc="{inner}"></iframe>'
        "<p></p><script>f.onload = () => { document.querySelector('p').textContent = 'width ' +"
        " f.contentDocument.documentElement.scrollWidth }</script>",
        "utf-8",
    )
    dom = browse("--dump-dom", "--virtual-time-budget=5000", frame.as_uri(), profile=tmp_path / "p")
    measured = re.search(r"<p>width (\d+)</p>", dom)
    assert measured, dom[-300:]
    assert int(measured[1]) == width

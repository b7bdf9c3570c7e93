"""The page: all is on it, nothing is fetched or unescaped."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest

from tests.toys.files import write_lines
from tests.toys.html_reader import Reader
from tests.toys.report_run import COLUMNS, NASTY, TASKS, write_report_run
from tests.toys.scored_runs import Runs
from vlds.report.collect import collect
from vlds.report.page import build_page


def page_of(*folders: Path, pictures: bool = False) -> str:
    return build_page(collect(folders, pictures=pictures))


def test_everything_is_on_the_page(run: Path) -> None:
    text = page_of(run)
    assert (text.count("\u2713 right"), text.count("\u2717 wrong")) == (2, 1), "words too"
    page = Reader(text)
    for expected in (
        run.name, *TASKS, *COLUMNS, "0.800", "1,234 examples", "vqa_accuracy by part", "yes/no",
        "69,000 of 930,000 (7.42 %)", "860.0 kB", "731", NASTY, "output: <runs>", "(nothing)",
        "caption 4", "93 % sure",
    ):  # fmt: skip
        assert expected in page.text, expected
    assert "caption 5" not in page.text
    assert page.text.count("% sure") == 1
    charts = [attributes["aria-label"] for attributes in page.attributes("svg")]
    assert len(charts) == 2 * (1 + len(TASKS)) + len(TASKS)
    assert len(page.attributes("img")) == 5


@pytest.mark.sampled(2)
@pytest.mark.parametrize("several", [False, True])
def test_nothing_is_fetched_and_one_script_runs(runs: Runs, evil: Path, several: bool) -> None:
    folders = [evil, runs.first] if several else [evil]
    text = page_of(*folders, pictures=True)
    page = Reader(text)
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "object", "base", "form"}
    assert len(page.attributes("style")) == 1
    assert len(page.attributes("img")) > 12, "samples and mistakes"
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "data"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))
    style = re.search("<style>(.*?)</style>", text, re.DOTALL)
    assert style
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    policy = page.attributes("meta")[2]
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert str(policy["content"]).startswith("default-src 'none';")
    (data, _), (bare, script) = page.scripts
    assert (data["type"], bare) == ("application/json", {})
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = re.findall(r"script-src (.*?)(?:;|$)", str(policy["content"]))
    assert allowed == [f"'sha256-{digest}'"]


def test_texts_do_not_leave_the_data_of_the_script(evil: Path) -> None:
    page = Reader(page_of(evil))
    (_, text), _ = page.scripts
    assert not set("<>&") & set(text)
    told = {said[0][0] for *_, said, _ in json.loads(text)["rows"]}
    assert "<script>alert(1)</script>" in told
    assert "is \\u202ereversed\\x1b[2J" in told


def test_names_of_folders_are_text_too(runs: Runs, tmp_path: Path) -> None:
    folder = shutil.copytree(runs.first, tmp_path / "is \u202ereversed\x1b[2J")
    for folders in ([folder], [folder, runs.second]):
        page = page_of(*folders)
        assert not {"\u202e", "\x1b"} & set(page)
        assert f"{tmp_path}/is \\u202ereversed\\x1b[2J" in page


def test_parts_that_are_missing_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n')
    page = Reader(page_of(tmp_path)).text
    for heading in ("Scores", "Samples", "size and speed", "Score during training", "Brackets"):
        assert heading not in page


def test_examples_without_pictures_are_shown_as_text(tmp_path: Path) -> None:
    """As those of stored features."""
    folder = write_report_run(tmp_path / "run")
    file = folder / "gallery" / "samples.json"
    entries = json.loads(file.read_text())
    file.write_text(json.dumps([e | {"images": []} for e in entries]))
    page = Reader(page_of(folder))
    assert page.attributes("img") == []
    assert "(nothing)" in page.text
    assert "missing" not in page.text


def test_the_same_example_of_several_runs_is_one_card(runs: Runs, evil: Path) -> None:
    text = page_of(runs.first, evil, pictures=True)
    samples = text[text.index('<section id="samples"') : text.index('<section id="runs"')]
    assert samples.count('class="sample"') == 12
    page = Reader(text)
    assert [name for name in (runs.first.name, evil.name) if page.text.count(name) < 12] == []


def test_a_run_without_a_task_keeps_its_colour(runs: Runs, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    write_lines(bare / "metrics.jsonl", [{"step": n, "loss": 1.0} for n in range(1, 4)])
    page = page_of(runs.first, bare, runs.second)
    for vqa in (charts := re.findall(r'aria-label="vqa, .*?</svg>', page, re.DOTALL)):
        assert re.findall(r'class="curve (c\d)', vqa) == ["c0", "c2"]
    assert len(charts) == 2

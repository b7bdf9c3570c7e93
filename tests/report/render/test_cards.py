"""Mistakes with their pictures, where two runs differ, and thumbnails of all."""

from __future__ import annotations

import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.packing.writer import SampleRecord, write_dataset
from tests.toys.films import COLORS
from tests.toys.html_reader import Reader
from tests.toys.pictures import jpeg
from tests.toys.scored_runs import Runs, write_scored_run
from tests.toys.world import world_recipe
from vlds.report.cards import FOLDER, Pictures, differing, mistakes
from vlds.report.clips import Frames, digest_of, small_picture
from vlds.report.collect import collect
from vlds.report.examples import answers_of
from vlds.report.page import build_page, write_report
from vlds.report.read import read_run
from vlds.tasks import VQA


def test_the_surest_mistakes_come_first_one_of_each_picture(sure: Path) -> None:
    answers = answers_of(collect([sure], resamples=0).only)
    pick = mistakes({"sure": answers})["vqa"]
    assert pick.text.startswith("16 of 48 are wrong, 6 with a confidence of at least 80 %.")
    shown = [answers["vqa"].examples[key] for key in pick.ids]
    assert not any(entry.correct for entry in shown)
    right = answers["vqa"]._replace(examples={
        key: entry for key, entry in answers["vqa"].examples.items() if entry.correct
    })  # fmt: skip
    assert mistakes({"a": {"vqa": right}, "b": answers})["vqa"].text == (
        "None of 32 is wrong in all runs."
    )
    confidences = [entry.confidence or 0 for entry in shown]
    assert confidences == sorted(confidences, reverse=True)
    assert confidences[0] == 0.95
    assert len({entry.sample for entry in shown}) == len(shown)


def test_two_runs_have_cards_where_one_scores_more(runs: Runs) -> None:
    report = collect([runs.first, runs.second], resamples=10)
    answers = {name: answers_of(run) for name, run in report.runs.items()}
    first, second = differing(report, answers)["vqa"]
    assert first.text.startswith("first scores more on ")
    for pick, better, worse in ((first, "first", "second"), (second, "second", "first")):
        assert pick.ids
        for key in pick.ids:
            assert answers[better]["vqa"].examples[key].correct
            assert not answers[worse]["vqa"].examples[key].correct
    page = build_page(report)
    both = page[page.index('id="mistakes"') :]
    assert "are wrong in all runs" in both


def section(page: str, name: str) -> Reader:
    part = page[page.index(f'<section id="{name}"') :]
    return Reader(part[: part.index("</section>") + len("</section>")])


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A run on six samples, of which one has a damaged picture, and one has six pictures."""
    data = tmp_path / "data"
    records = []
    for number in range(6):
        pictures = [jpeg() for _ in range(6 if number == 5 else 1)]
        pictures[0] = b"\xff\xd8\xff no picture" if number == 0 else pictures[0]
        members = [(f"{at:03d}.jpg", picture) for at, picture in enumerate(pictures)]
        about = [
            {"id": f"q{number}", "question": "what ?", "answers": ["red"], "label": {"red": 1.0}}
        ]
        records.append(SampleRecord(id=f"s{number}", members=members, json={"annotations": about}))
    write_dataset(data, name="d", kind="vqa", split="val", records=records)
    task = VQA(train=[str(data)], evaluate=[str(data)])
    recipe = replace(world_recipe(tmp_path, tmp_path / "run"), tasks={"vqa": task})
    reference = {"answer": "red", "answers": ["red"], "label": {"red": 1.0},
                 "answer_type": None, "question_type": None}  # fmt: skip
    lines = [
        {"id": f"q{n}", "sample": f"s{n}", "prediction": "blue", "reference": reference}
        for n in range(6)
    ]
    return write_scored_run(tmp_path / "run", recipe, {"vqa": lines})


def test_damaged_pictures_and_many_are_said(damaged: Path) -> None:
    part = section(build_page(collect([damaged], resamples=0)), "mistakes")
    assert len(part.attributes("figure")) == 6
    assert part.text.count("picture 1 is damaged") == 1
    assert part.text.count("2 more") == 1
    assert len(part.attributes("img")) == 4 + 4


def data_of(page: Path) -> dict:
    (_, data), *_ = Reader(page.read_text("utf-8")).scripts
    return json.loads(data)


def test_thumbnails_lie_beside_the_page_or_inside_it(sure: Path, tmp_path: Path) -> None:
    def report(pictures: Pictures) -> Path:
        return write_report([read_run(sure)], tmp_path / pictures, pictures=pictures)

    few, inside, beside, none = map(report, ("few", "embed", "folder", "none"))
    assert data_of(few)["pictures"] == []
    found = data_of(inside)
    assert len(found["rows"]) == 58
    assert all(row[-1] for row in found["rows"])
    assert all(url.startswith("data:image/") for url in found["pictures"])
    named = data_of(beside)["pictures"]
    files = {f"{FOLDER}/{file.name}" for file in (beside.parent / FOLDER).iterdir()}
    assert set(named) == files
    assert len(named) == len(found["pictures"]) < 58, "questions share a picture"
    policy = Reader(beside.read_text("utf-8")).attributes("meta")[2]["content"]
    assert "img-src data: 'self';" in str(policy)
    assert Reader(none.read_text("utf-8")).attributes("img") == []
    assert not (none.parent / FOLDER).exists()


def frame(number: int, size: tuple[int, int]) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", size, COLORS[number]).save(buffer, "PNG")
    return buffer.getvalue()


def clip(count: int, size: tuple[int, int] = (320, 200)) -> Frames:
    return Frames([frame(n, size) for n in range(count)], [n / 2 for n in range(count)])


@pytest.mark.parametrize(
    ("count", "shown"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (8, [0, 2, 5, 7])]
)
@pytest.mark.parametrize("size", [(320, 200), (30, 60)])
def test_frames_stand_in_rows_at_equal_distances(
    count: int, shown: list[int], size: tuple[int, int]
) -> None:
    sheet = small_picture(clip(count, size), 300)
    assert sheet is not None
    with Image.open(BytesIO(sheet)) as opened:
        pixels = np.asarray(opened.convert("RGB")).astype(int)
    height, width, _ = pixels.shape
    assert max(height, width) <= 300
    columns, rows = min(2, count), -(-len(shown) // 2)
    for place, number in enumerate(shown):
        row, column = divmod(place, columns)
        middle = pixels[int((row + 0.5) / rows * height), int((column + 0.5) / columns * width)]
        assert np.abs(middle - COLORS[number]).max() < 20, number
    assert pixels[0, 0].max() < 60  # the dark border, by which one sees that it is a clip


def test_damaged_frames_are_left_out_and_clips_told_apart() -> None:
    whole = clip(3)
    torn = whole._replace(pictures=[b"x", *whole.pictures[1:]])
    sheet = small_picture(torn)
    assert sheet is not None
    assert sheet != small_picture(whole)
    assert small_picture(whole._replace(pictures=[b"x"] * 3)) is None
    assert small_picture(b"x") is None
    known = [whole, torn, clip(2), *whole.pictures, memoryview(frame(7, (9, 9)))]
    assert len({digest_of(seen) for seen in known}) == len(known)

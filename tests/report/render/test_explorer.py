"""All predictions on the page: bounded, filtered, searched and paged through by its script."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.toys.files import read_lines
from tests.toys.html_reader import NODE, Reader, explored
from tests.toys.scored_runs import HOSTILE, Line, Runs
from vlds.report import page as explorer
from vlds.report.collect import collect
from vlds.report.page import build_page

needs_node = pytest.mark.skipif(NODE is None, reason="no node on PATH")


def page_of(*folders: Path) -> str:
    return build_page(collect(folders, resamples=0))


def lines_in(run: Path, task: str) -> list[Line]:
    return read_lines(run / "predictions" / "step-00000010" / f"{task}.jsonl")


@needs_node
def test_filters_search_and_pages(sure: Path, tmp_path: Path) -> None:
    start, next_page, back, vqa, wrong, certain, part, searched, nothing = explored(
        page_of(sure), tmp_path, ("after", ""), ("before", ""), ("task", "vqa"), ("show", "wrong"),
        ("show", "sure (80 % or more) and wrong"), ("part", "answer type: colour"),
        ("words", "IMG src"), ("words", "nowhere"),
    )  # fmt: skip
    assert start["hidden"] is False
    assert start["heads"] == ["task", "input", "answer", "model"]
    assert start["count"] == "1 to 25 of 58"
    assert start["disabled"] == [True, False]
    assert next_page["count"] == "26 to 50 of 58"
    assert next_page["rows"][0] != start["rows"][0] == back["rows"][0]
    assert start["options"]["task"] == ["all tasks", "vqa", "caption"]
    assert vqa["count"] == "1 to 25 of 48"
    assert vqa["options"]["part"] == ["all parts", "answer type: colour", "answer type: other"]
    assert wrong["count"] == "1 to 16 of 16"
    assert all("\u2717 wrong" in row[3] for row in wrong["rows"])
    assert certain["count"] == "1 to 6 of 6"
    assert all(row[3].endswith("wrong 95 % sure") for row in certain["rows"])
    colours = [line for line in lines_in(sure, "vqa") if line["id"] < "q2"]
    assert part["count"].endswith(f"of {sum(line['confidence'] > 0.9 for line in colours)}")
    assert [row[3] for row in searched["rows"]] == [f"{HOSTILE} \u2717 wrong 95 % sure"]
    assert (nothing["count"], nothing["rows"]) == ("nothing found", [])


@needs_node
def test_several_runs_stand_in_one_row(runs: Runs, tmp_path: Path) -> None:
    _, unlike = explored(
        page_of(runs.first, runs.second), tmp_path, ("show", "right and wrong in different runs")
    )
    assert unlike["heads"] == ["task", "input", "answer", "first", "second"]
    rows = [row for row in unlike["rows"] if row[0].startswith("vqa")]
    assert rows
    assert all(("right" in row[3]) != ("right" in row[4]) for row in rows)


def rows_in(page: str) -> list[list[object]]:
    (_, data), _ = Reader(page).scripts
    rows: list[list[object]] = json.loads(data)["rows"]
    return rows


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        # Ten captions; ten questions of 48, and two of six sure mistakes that are not among them.
        ({"MOST_EXAMPLES": 20, "MOST_SURE_WRONG": 2}, lambda rows: len(rows) == 22),
        ({"MOST_BYTES": 2000}, lambda rows: 5 < len(rows) < 30),
    ],
)
def test_the_page_is_bounded_and_says_so(
    sure: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: dict[str, int],
    expected: Callable[[list[list[object]]], bool],
) -> None:
    for name, value in limit.items():
        monkeypatch.setattr(explorer, name, value)
    page = build_page(collect([sure], resamples=0), "none")  # pictures count among the bytes
    rows = rows_in(page)
    assert expected(rows)
    assert f"{len(rows)} of 58 examples: the first ones of each task" in page

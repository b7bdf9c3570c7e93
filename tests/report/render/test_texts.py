"""The report as Markdown, CSV and a table of the terminal: what is read back is what was found."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest

from tests.toys.scored_runs import Runs
from vlds.cli.main import run_command
from vlds.report.baselines import FREQUENT
from vlds.report.collect import collect
from vlds.report.page import markdown
from vlds.report.report import Report
from vlds.report.run_tables import csv_text
from vlds.report.scores import Difference
from vlds.report.tables import markdown_text

ENDS = ("value", "low", "high")
Key = tuple[str, str, str]
"""Run, the run that is taken off ("" for none), task."""


def numbers(report: Report) -> dict[Key, tuple[float, float, float]]:
    """Every headline score and difference with the ends of its interval."""
    found = {}
    for name, run in report.runs.items():
        for task, result in run.results.items():
            assert result.interval is not None
            found[name, "", task] = (result.value, result.interval.low, result.interval.high)
    for name, differences in report.differences.items():
        for (task, _), difference in zip(report.headlines, differences, strict=True):
            assert isinstance(difference, Difference)
            ends = difference.interval
            found[name, report.baseline, task] = (difference.value, ends.low, ends.high)
    return found


def tables_of(text: str) -> Iterator[list[list[str]]]:
    """Rows of cells of each table in a Markdown text."""
    for block in text.split("\n\n"):
        if block.startswith("|"):
            rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()]
            assert {len(row) for row in rows} == {len(rows[0])}
            yield [[text.strip() for text in row] for row in rows]


def test_markdown_reads_back(runs: Runs) -> None:
    report = collect([runs.first, runs.second])
    text = markdown(report)
    read: dict[Key, tuple[float, ...]] = {}
    for heads, rule, *rows in tables_of(text):
        assert set(rule) <= {"---", "---:"}
        minus = heads[0].removeprefix("minus ") if heads[0] != "run" else ""
        for name, *values in rows:
            for head, value in zip(heads[1:], values, strict=True):
                if match := re.match(r"([+-]?[\d.]+) \[(.+?), (.+?)\]", value):
                    read[name, minus, head.split()[0]] = tuple(map(float, match.groups()))
    expected = numbers(report)
    assert set(read) == set(expected)
    assert len(read) == 6
    for key, values in expected.items():
        assert read[key] == pytest.approx(values, abs=0.0005)
    assert "1,000 bootstrap resamples" in text
    heads, _, frequent, first, _ = next(tables_of(text))
    assert frequent[0] == FREQUENT
    assert [float(frequent[5]), *frequent[6:]] == [0.5, "-"]
    assert heads[:5] == ["run", "method", "trains", "bytes per rank", "examples/s"]
    assert first[1].startswith("Adapter (reduction=4, ")
    assert first[2:5] == ["4.00 %", "2.5 MB", "106"]


@pytest.mark.slow
def test_csv_reads_back_to_the_last_digit(runs: Runs) -> None:
    report = collect([runs.first, runs.second])
    rows = list(csv.DictReader(StringIO(csv_text(report))))
    (difference, _) = report.differences["second"]
    assert isinstance(difference, Difference)
    assert [float(row["p"]) for row in rows if row["minus"] and row["task"] == "vqa"] == [
        difference.p
    ]
    read = {
        (row["run"], row["minus"], row["task"]): tuple(float(row[name]) for name in ENDS)
        for row in rows
        if row["low"]
    }
    assert read == numbers(report)
    assert {row["resamples"] for row in rows if row["low"]} == {"1000"}
    facts = {row["name"]: float(row["value"]) for row in rows if row["run"] == "first"}
    assert facts["trainable_percent"] == 4.0
    assert facts["bytes_per_rank/frozen"] == 2_000_000
    assert facts["samples_per_second/training"] == 105.5
    own = report.runs["first"].results["vqa"]
    scores = {row["name"]: row for row in rows if row["run"] == "first" and row["task"] == "vqa"}
    assert {name: float(row["value"]) for name, row in scores.items()} == dict(own.scores)
    assert {(row["examples"], row["step"]) for row in scores.values()} == {("48", "10")}


def test_markdown_cells_hold_any_text() -> None:
    assert markdown_text("a|b\nc") == r"a\|b c"
    assert markdown_text("<b>*x*</b> `y`") == r"\<b>\*x\*\</b> \`y\`"
    assert markdown_text("[a](http://b)") == r"[a]\(http://b)"
    assert markdown_text("vqa_accuracy [0.1, 0.2]") == "vqa_accuracy [0.1, 0.2]"


def test_markdown_escapes_names_everywhere(runs: Runs, tmp_path: Path) -> None:
    """In the lines below the tables too: notes, facts and reasons."""
    name = "x<script>alert(1)<\u202e|*b*"
    run = shutil.copytree(runs.first, tmp_path / name)
    (run / "predictions" / "step-00000010" / "vqa.jsonl").write_text("")
    text = markdown(collect([runs.first, run], resamples=0))
    assert text.count(r"x\<script>alert(1)\<\\u202e\|\*b\*") > 2
    assert "\u202e" not in text
    assert not re.search(r"(?<!\\)<", text)
    assert "vqa.jsonl is empty" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere: there is no such folder; name one that `vlds train` wrote"),
        (["--resamples", "-1", "."], "--resamples: got -1; give 0 or more"),
        (["RUN", "RUN"], "RUN: is named twice; name each run once"),
        (["RUN", "--out", "RUN/recipe.yaml"],
         "--out: cannot write RUN/recipe.yaml: File exists; name another place"),
        (["RUN", "--out", "RUN/recipe.yaml/new", "--format", "csv"],
         "--out: cannot write RUN/recipe.yaml/new: Not a directory; name another place"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(
    runs: Runs, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(runs.first)
    assert run_command(["report", *(word.replace("RUN", run) for word in words)]) == 2
    assert capsys.readouterr().err == f"vlds report: {said.replace('RUN', run)}\n"

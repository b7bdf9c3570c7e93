"""The table of `vlds compare` in each of its formats."""

from __future__ import annotations

import csv
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from tests.toys.compared_runs import folders_of, write_compared, write_compared_run
from tests.toys.files import ROOT
from vlds.cli.main import run_command
from vlds.recipe.config import load_recipe, save_recipe
from vlds.report.comparison import Comparison, RowSpec, TableSpec, compare
from vlds.report.comparison_formats import FORMATS
from vlds.report.numbers import Number

CIDER = "cider_plain_tokens"


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return compare(write_compared(tmp_path_factory.mktemp("compared")))


def test_markdown_has_a_row_for_each_recipe(comparison: Comparison) -> None:
    head, _, *rows = [line for line in FORMATS["md"](comparison).splitlines() if line[:1] == "|"]
    assert head == (
        "|  | trains | vqa vqa_accuracy | caption CIDEr | average | stores | peak memory | "
        "samples/s | answers/s | time to vqa 55 |"
    )
    assert len(rows) == 3
    assert rows[0] == (
        "| single adapter (3 seeds) | 4.18 % (paper 4.20 %) | 64.0 \u00b1 4.0 [54.1, 73.9] "
        "(paper 65.9) | 112.0 \u00b1 2.0 [107.0, 117.0] | 88.0 \u00b1 2.6 [81.4, 94.6] "
        "(paper 88.5) | 3.0 kB | 2.5 MB | 120 | 85 | 1 min 00 s |"
    )
    assert "(1 of 3 seeds)" in rows[2]
    assert "| 70.0 | 120.0 | 95.0 |" in rows[2]


def test_csv_is_unrounded(comparison: Comparison) -> None:
    rows = list(csv.DictReader(StringIO(FORMATS["csv"](comparison))))
    (vqa,) = [r for r in rows if r["row"] == "single adapter" and r["name"] == "vqa"]
    assert float(vqa["mean"]) == pytest.approx(64)
    assert float(vqa["low"]) == pytest.approx(64 - 4.3026527 * 4 / 3**0.5)
    assert (vqa["metric"], vqa["unit"], vqa["runs"]) == ("vqa_accuracy", "percent", "3")
    assert vqa["published"] == "65.9"
    (alone,) = [r for r in rows if r["row"] == "full fine-tuning" and r["name"] == "average"]
    assert (alone["deviation"], alone["low"]) == ("", "")


def test_latex_escapes_names_and_marks_the_best(comparison: Comparison) -> None:
    wide, narrow, never = comparison.rows
    numbers = {**narrow.numbers, "vqa": Number([70.0, 75.0, 78.0], seeds=wide.numbers["vqa"].seeds)}
    clear = replace(comparison, rows=[wide, replace(narrow, numbers=numbers)])
    assert "& \\textbf{74.3 $\\pm$ 4.0} &" in FORMATS["tex"](clear)
    text = FORMATS["tex"](comparison)
    assert "textbf" not in text, "one row has a single seed"
    assert never.name in text
    assert "LoRA \\& \\textless{}b\\textgreater{}biases" in text
    assert "/b\\textgreater{}\\_100\\%" in text
    assert "Brackets" not in text
    assert "64.0 $\\pm$ 4.0 (65.9)" in text
    lines = [line for line in text.splitlines() if line.endswith("\\\\")]
    assert {line.count(" & ") for line in lines} == {9}


def test_names_are_text_in_every_format(comparison: Comparison) -> None:
    """Also in notes, and where they have more than one line."""
    rows = [replace(row, name=f"_a_|<i>\n&lt;\n{n}") for n, row in enumerate(comparison.rows)]
    hostile = replace(comparison, rows=rows, notes=[f"{row.name}: is lost." for row in rows])
    latex = FORMATS["tex"](hostile)
    assert all(line[:1] in "%\\" or line.endswith("\\\\") for line in latex.splitlines())
    assert "\\_a\\_\\textbar{}\\textless{}i\\textgreater{}" in latex
    markdown = FORMATS["md"](hostile)
    assert markdown.count(r"\_a\_\|\<i> \&lt; 1") == 2
    assert "<i>" not in markdown.replace(r"\<i>", "")


def test_runs_make_a_table_without_a_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = list(map(str, folders_of(write_compared(tmp_path))))
    assert run_command(["compare", *folders[:2], "--format", "md"]) == 0
    shown = capsys.readouterr().out
    assert "| seed-0 (1 seed) |" in shown
    assert "\u00b1" not in shown
    out = tmp_path / "out"
    assert run_command(["compare", *folders, "--format", "html", "--out", str(out)]) == 0
    assert (out / "compare.html").stat().st_size > 5000
    assert run_command(["compare", *folders, "table.yaml"]) == 2
    assert "give one sweep, or run folders alone" in capsys.readouterr().err
    assert run_command(["compare", *folders, "--seeds", "[0]"]) == 2
    assert "--seeds: no such option; keys go with a sweep" in capsys.readouterr().err


def write_demo_run(folder: Path, accuracy: float, **changes: Any) -> Path:
    """A run of the demo's recipe, which names word_f1 as the score of captions."""
    scores = {
        "vqa": {"vqa_accuracy": accuracy, "exact_match": 0.1},
        "gqa": {"accuracy": 0.5, "distribution": 3.0},
        "nlvr2": {"accuracy": 0.7},
        "caption": {"cider_plain_tokens": 7.261, "word_f1": 0.3},
    }
    write_compared_run(folder, scores, 7.4)
    recipe = replace(load_recipe(ROOT / "recipes/demo.yaml"), output=str(folder), **changes)
    save_recipe(
        replace(recipe, training=replace(recipe.training, steps=10)), folder / "recipe.yaml"
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("suffix", FORMATS)
def test_the_score_that_a_recipe_names_stands_for_a_task(suffix: str, tmp_path: Path) -> None:
    runs = [write_demo_run(tmp_path / name, 0.5) for name in ("adapters", "control")]
    spec = TableSpec("demo", [RowSpec(run.name, [run]) for run in runs])
    text = FORMATS[suffix](compare(spec))
    assert "726" not in text
    assert "word_f1" in text
    assert text.count("50.0") >= 6, "vqa, gqa and the average, which word_f1 leaves at 50, twice"
    mixed = FORMATS[suffix](compare(replace(spec, scores={"vqa": "exact_match", "caption": CIDER})))
    assert "726.1" in mixed
    assert "average" not in mixed.replace("There is no average", "")
    if suffix != "csv":
        told = "There is no average, because the scales of the scores differ: vqa (0 to 1); caption"
        assert told in " ".join(mixed.replace("% ", "").split())
        assert "average" in text


def test_a_seed_is_counted_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_demo_run(tmp_path / f"seed-{n}", 0.5, seed=n // 2) for n in range(3)]
    assert run_command(["compare", *map(str, runs), "--format", "md"]) == 0
    told = capsys.readouterr().out
    assert "| seed-0, seed-2 (2 seeds) |" in told
    assert "seed-1: is left out, it has recipe and seed of seed-0." in told

"""Means, deviations, averages and costs of a table of runs."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.toys.compared_runs import write_compared, write_compared_run
from tests.toys.files import write
from vlds.cli.main import run_command
from vlds.evaluation.result import Scored, write_scores
from vlds.recipe.config import load_recipe, save_recipe
from vlds.report.comparison import RowSpec, TableSpec, compare
from vlds.report.comparison_formats import FORMATS
from vlds.report.comparison_formats import notes as notes_of
from vlds.report.numbers import Number
from vlds.report.page import report_text
from vlds.report.read import read_run
from vlds.runtime.json_files import recorded_hash, write_manifest
from vlds.runtime.process import find
from vlds.tasks.base import SPLITS


def test_scores_are_means_over_seeds_in_percent(tmp_path: Path) -> None:
    adapter, lora, full = compare(write_compared(tmp_path)).rows
    numbers = adapter.numbers
    assert numbers["vqa"].mean == pytest.approx(64.0)
    assert numbers["vqa"].deviation == pytest.approx(4.0)  # n - 1: of 60, 64, 68
    assert numbers["caption"].mean == pytest.approx(112.0)
    assert numbers["average"].values == pytest.approx([85.0, 89.0, 90.0])
    assert numbers["average"].deviation == pytest.approx(statistics.stdev([85, 89, 90]))
    assert [numbers[name].published for name in ("vqa", "caption", "average")] == [65.9, None, 88.5]
    assert lora.numbers["vqa"].mean == pytest.approx(51.0)
    assert (len(full.runs), full.wanted) == (1, 3)
    assert full.numbers["vqa"].mean == 70.0
    assert full.numbers["vqa"].deviation is None
    assert full.numbers["vqa"].interval is None


@pytest.mark.parametrize(
    ("values", "quantile"),
    [
        ([1.0, 2.0, 3.0], 4.3026527),
        (range(31), 2.0422725),
        (range(121), 1.9799304),
    ],
)
def test_an_interval_is_student_s(values: Sequence[float], quantile: float) -> None:
    interval = Number(list(map(float, values))).interval
    assert interval is not None
    mean = statistics.mean(values)
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    assert (interval.low, interval.high) == pytest.approx((mean - half, mean + half))


def test_equal_seeds_do_not_say_how_far_others_would_be() -> None:
    assert Number([24.1, 24.1]).interval is None


def test_costs_and_the_time_to_a_score(tmp_path: Path) -> None:
    comparison = compare(write_compared(tmp_path))
    adapter, lora, full = comparison.rows
    assert adapter.numbers["trains"].mean == 4.18
    assert adapter.numbers["stored"].mean == 3000
    assert adapter.numbers["memory"].mean == 2_500_000
    assert adapter.numbers["speed"].mean == 120
    assert adapter.numbers["answers"].mean == 85
    assert adapter.numbers["time"].values == [60.0] * 3  # 55 only after the tenth step
    assert lora.numbers["time"].values == []
    assert "full fine-tuning: without seed-1, seed-2, which have not ended." in comparison.notes
    early = compare(replace(write_compared(tmp_path / "x"), target=("average", 44.0)))
    assert early.rows[0].numbers["time"].values == [60.0, 32.0, 32.0]
    assert full.numbers["time"].mean == 60.0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scores": {"vqa": "soft_score"}}, "scores.vqa: no run has soft_score; there are vqa_acc"),
        ({"scores": {"vqaa": "x"}}, "scores: the table has no 'vqaa'; did you mean 'vqa'?"),
        ({"target": ("vqaa", 60.0)}, "target: the table has no 'vqaa'; did you mean 'vqa'?"),
        ({"minus": "single adaptor"}, "no row 'single adaptor'; did you mean 'single adapter'"),
        ({"rows": [RowSpec("row", [Path("no")])]}, "table: none of its runs has ended yet; train"),
    ],
)
def test_what_the_table_does_not_have_is_named(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        compare(replace(write_compared(tmp_path), **changes))


def row_of(
    folder: Path, values: Sequence[float], task: str = "vqa", score: str = "exact_match"
) -> RowSpec:
    """A row that is called as its folder: a run for each value of one score."""
    runs = [folder / f"seed-{seed}" for seed in range(len(values))]
    for run, value in zip(runs, values, strict=True):
        write_compared_run(run, {task: {score: value}}, 3.0)
    return RowSpec(folder.name, runs)


def test_a_task_without_labels_is_left_out_and_told(tmp_path: Path) -> None:
    run = write_compared_run(tmp_path / "run", {"vqa": {}, "gqa": {"accuracy": 0.5}}, 3.0)
    table = compare(TableSpec("t", [RowSpec("run", [run])]))
    assert table.values == ["gqa"]
    assert table.notes == ["vqa: no scores, because the data have no labels."]


def test_validation_and_test_scores_stay_apart(tmp_path: Path) -> None:
    """Those of the test data are in the newest evaluation."""
    scores = {"vqa": {"exact_match": 0.5}, "gqa": {"accuracy": 0.25}}
    run = write_compared_run(tmp_path / "run", scores, 3.0)
    write_scores(run / "predictions", {"vqa.test": Scored(None, 3, {"exact_match": 0.125})})
    spec = TableSpec("t", [RowSpec("run", [run])])
    validated, tested = compare(spec), compare(replace(spec, split="test"))
    assert (validated.values, tested.values) == (["vqa", "gqa", "average"], ["vqa"])
    assert [table.rows[0].numbers["vqa"].mean for table in (validated, tested)] == [50.0, 12.5]


def test_the_best_distribution_is_the_lowest(tmp_path: Path) -> None:
    """As the task says in the run's recipe."""
    recipe = replace(load_recipe(find("recipes/demo.yaml")), output=str(tmp_path))
    distances = {"near": (0.1, 0.11, 0.12), "far": (5.0, 5.01, 5.02)}
    rows = [row_of(tmp_path / n, far, "gqa", "distribution") for n, far in distances.items()]
    for row in rows:
        for seed, run in enumerate(row.folders):
            save_recipe(replace(recipe, seed=seed), run / "recipe.yaml")
    table = compare(TableSpec("t", rows, scores={"gqa": "distribution"}))
    assert table.best("gqa") is table.rows[0]
    (note,) = (line for line in notes_of(table) if "percents" in line)
    assert note.startswith("Scores are 100 times their value, so percents, but for distribution, ")
    late = compare(TableSpec("t", rows, scores={"gqa": "distribution"}, target=("gqa", 50.0)))
    assert [row.numbers["time"].values for row in late.rows] == [[32.0] * 3, []], "half is lower"


@pytest.mark.parametrize(
    ("best", "other", "is_clear"),
    [
        ((0.60, 0.64, 0.68), (0.58, 0.62, 0.66), True),  # the intervals of the means overlap
        ((0.60, 0.64, 0.68), (0.55, 0.62, 0.69), False),
        ((0.60, 0.64), (0.10, 0.14), False),  # two seeds are too few
        ((0.60, 0.64, 0.68), (0.10, 0.14), False),
        ((0.60,), (0.10,), False),
        ((0.50, 0.51, 0.52, 0.99), (0.55, 0.56, 0.57), False),  # worse on all common seeds
    ],
)
def test_a_best_is_marked_if_paired_seeds_support_it(
    best: Sequence[float], other: Sequence[float], is_clear: bool, tmp_path: Path
) -> None:
    rows = [row_of(tmp_path / "other", other), row_of(tmp_path / "best", best)]
    table = compare(TableSpec("t", rows))
    assert table.best("vqa") is (table.rows[1] if is_clear else None)
    worst = row_of(tmp_path / "one seed", [0.0])
    assert compare(TableSpec("t", [*rows, worst])).best("vqa") is None


def test_scores_less_those_of_a_row(tmp_path: Path) -> None:
    """Seed by seed: 66 - 60, 62 - 64, 70 - 65, and a seed that only one of them has is left out."""
    rows = [
        replace(row_of(tmp_path / "base", (0.60, 0.64, 0.65)), published={"vqa": 70.0}),
        replace(row_of(tmp_path / "row", (0.66, 0.62, 0.70, 0.10)), published={"vqa": 72.5}),
    ]
    table = compare(TableSpec("t", rows, minus="base"))
    assert table.rows[1].numbers["vqa"].published == 2.5
    assert "(+2.5)" in FORMATS["terminal"](table)
    assert table.rows[1].numbers["vqa"].values == pytest.approx([6.0, -2.0, 5.0])
    assert table.rows[0].numbers["vqa"].values == [0.0, 0.0, 0.0]
    assert table.rows[1].numbers["trains"].values == pytest.approx([3.0] * 4)
    half = 4.3026527 * statistics.stdev([6, -2, 5]) / math.sqrt(3)
    assert f"+3.0 \u00b1 {half:.1f}" in FORMATS["md"](table)
    assert "less those of base" in FORMATS["terminal"](table)
    assert "Each score" not in FORMATS["html"](table)


def test_rows_with_scores_on_different_data_do_not_compare(tmp_path: Path) -> None:
    """Each seed may have its own data, but then in all rows."""

    def row(name: str, value: float, data: Sequence[str]) -> RowSpec:
        """Of a run on each of these data."""
        values = [value + seed / 100 for seed in range(len(data))]
        made = row_of(tmp_path / name, values)
        for run, of_run, score in zip(made.folders, data, values, strict=True):
            scored = {"vqa": Scored(f"{of_run}bcdef01", 3, {"exact_match": score})}
            write_scores(run / "predictions", scored)
        return made

    of_seeds = [f"vqa-val@{seed}" for seed in range(3)]
    rows = [row("one", 0.5, of_seeds), row("other", 0.7, of_seeds)]
    alike = compare(TableSpec("t", rows, minus="one"))
    assert alike.best("vqa") is not None
    (note,) = alike.notes
    assert note.startswith("vqa: the runs of one, other are scored on different data (vqa-val@0bcd")
    # All on the data of seed 0, which are some of the other row's.
    only = row("only", 0.7, of_seeds[:1] * 2)
    assert compare(TableSpec("t", [rows[0], only])).unlike == {"vqa"}
    rows[1] = row("third", 0.7, [f"vqa-test@{seed}" for seed in range(3)])
    table = compare(TableSpec("t", rows, minus="one"))
    assert table.best("vqa") is None
    assert table.rows[1].numbers["vqa"].values == []
    (note,) = table.notes
    assert note.startswith("vqa: rows are scored on different data (vqa-test@0bcdef, vqa-test@1bc")


@pytest.mark.parametrize("place", ["", "predictions"])
def test_scores_of_weights_that_are_gone_are_left_out(place: str, tmp_path: Path) -> None:
    """A run that was scored after step 5, then resumed, is as its training logged it."""
    run = write_compared_run(tmp_path / "run", {"vqa": {"exact_match": 0.5}}, 3.0)
    write_manifest(run / "artifact")
    now = recorded_hash(run / "artifact", "weights.safetensors")
    stale = Scored(None, 3, {"exact_match": 0.25}, weights=now)
    folder = run / place
    folder.mkdir(exist_ok=True)
    write_scores(folder, {"vqa": stale, "vqa.test": stale})
    spec = TableSpec("t", [RowSpec("run", [run])])
    means = [compare(replace(spec, split=s)).rows[0].numbers["vqa"].mean for s in SPLITS]
    assert means == [25.0, 25.0]
    (run / "artifact/weights.safetensors").write_bytes(b"y" * 3000)
    write_manifest(run / "artifact")
    table = compare(spec)
    assert table.rows[0].numbers["vqa"].mean == 50.0
    told = f"{folder / 'scores.json'}: its scores of vqa, vqa.test belong to other weights "
    assert any(told in note for note in table.notes)
    assert told in report_text([read_run(run)], "md", 0).replace("\\_", "_")
    with pytest.raises(ValueError, match="vqa"):
        compare(replace(spec, split="test", scores={"vqa": "exact_match"}))
    (run / "artifact/manifest.json").write_text('{"weights')
    assert any("may be of weights that are gone" in note for note in compare(spec).notes)


DAMAGE = {
    "scores.json": ["{", '{"vqa": {"scores": 3}}', "null", b"\xff\xfe", "[" * 5000],
    "predictions/scores.json": ['{"vqa": '],
    "metrics.jsonl": [b"\x00\xff", '{"step": 1, "los'],
    "recipe.yaml": ["tasks: {vqa: {", b"\xff\x00", "[" * 5000, "5", None],
    "gallery/samples.json": ["{"],
}


@pytest.mark.parametrize(
    ("name", "content"), [(name, content) for name, some in DAMAGE.items() for content in some]
)
@pytest.mark.parametrize("command", ["compare", "report"])
def test_a_damaged_file_is_named_and_the_other_runs_are_shown(
    command: str, name: str, content: str | bytes | None, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """None: a folder in its place."""
    scores = {"vqa": {"exact_match": 0.4375}}
    runs = [write_compared_run(tmp_path / run, scores, 3.0) for run in ("damaged", "whole")]
    file = runs[0] / name
    if content is None:
        file.unlink(missing_ok=True)
        file.mkdir()
    else:
        write(file, content)
    assert run_command([command, *map(str, runs), "--format", "csv"]) == 2
    said = capsys.readouterr()
    assert str(file) in said.err
    assert "Traceback" not in said.err
    whole = [line for line in said.out.splitlines() if line.startswith("whole,")]
    assert any("43.75" in line or "0.4375" in line for line in whole)

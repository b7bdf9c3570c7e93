"""Means, deviations, averages and costs of a table of runs."""

from __future__ import annotations

import math
import re
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.toys.compared_runs import write_compared, write_compared_run
from tests.toys.files import write
from vlds.config import load_recipe, save_recipe
from vlds.evaluation.scores_json import Scored, write_scores
from vlds.report.compute.comparison import RowSpec, TableSpec, compare
from vlds.report.compute.seed_values import Number
from vlds.runtime.resources import find


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


def test_the_published_averages_are_means_of_four_scores() -> None:
    """Those of VL-Adapter: accuracies of VQA, GQA and NLVR2, and 100 times CIDEr."""
    assert statistics.mean([65.9, 54.5, 74.2, 114.9]) == pytest.approx(77.4, abs=0.05)


def test_an_interval_is_student_s() -> None:
    interval = Number([1.0, 2.0, 3.0]).interval
    assert interval is not None
    assert interval.high - 2.0 == pytest.approx(4.303 / 3**0.5)
    assert interval.low - 2.0 == pytest.approx(-4.303 / 3**0.5)
    many = Number([0.0, 1.0] * 50).interval
    assert many is not None
    half = 1.9842 * statistics.stdev([0.0, 1.0] * 50) / 10
    assert many.high == pytest.approx(0.5 + half, abs=2e-5)


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
    assert "full fine-tuning: without seed-1, seed-2, which has not ended." in comparison.notes
    early = compare(replace(write_compared(tmp_path / "x"), target=("average", 44.0)))
    assert early.rows[0].numbers["time"].values == [60.0, 30.0, 30.0]
    assert full.numbers["time"].mean == 60.0


def test_the_time_to_the_mean_of_a_row(tmp_path: Path) -> None:
    spec = write_compared(tmp_path)
    comparison = compare(replace(spec, target=("vqa", "LoRA & <b>biases</b>_100%")))
    assert comparison.target is not None
    assert comparison.target.percent == pytest.approx(51.0)
    adapter, lora, _ = comparison.rows
    assert adapter.numbers["time"].values == [60.0] * 3
    assert lora.numbers["time"].values == [60.0]  # the other seed stays below the mean
    nobody = replace(spec.rows[0], folders=[tmp_path / "missing"])
    missing = replace(spec, rows=[nobody, spec.rows[2]], target=("vqa", "single adapter"))
    assert compare(missing).target is None
    assert "Time to vqa of single adapter: no run of that row has ended." in compare(missing).notes


def test_further_passes_are_named(tmp_path: Path) -> None:
    spec = write_compared(tmp_path)
    for folder in spec.rows[0].folders:
        with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write('{"step": 10, "passes": 2}\n')
    told = [note for note in compare(spec).notes if "passes" in note]
    assert told == [
        "single adapter: each step has 2 passes over its batch, which its memory and its speed "
        "pay for."
    ]


def test_test_scores_are_those_of_the_newest_evaluation(tmp_path: Path) -> None:
    run = write_compared_run(tmp_path / "run", {"vqa": {"exact_match": 0.5}}, 3.0)
    (run / "predictions").mkdir()
    scored = {"vqa.test": Scored(None, 3, {"exact_match": 0.25})}
    write_scores(run / "predictions", scored)
    row = RowSpec("run", [run])
    for split, mean in (("evaluate", 50.0), ("test", 25.0)):
        (only,) = compare(TableSpec("t", [row], split=split)).rows  # type: ignore[arg-type]
        assert only.numbers["vqa"].mean == mean


def test_what_no_run_has_is_named(tmp_path: Path) -> None:
    spec = write_compared(tmp_path)
    wrong = replace(spec, scores={"vqa": "soft_score"})
    with pytest.raises(ValueError, match=r"scores.vqa: no run has soft_score; there are vqa_acc"):
        compare(wrong)
    nothing = replace(spec, rows=[RowSpec("row", [tmp_path / "missing"])])
    with pytest.raises(ValueError, match="table: none of its runs has ended yet; train them"):
        compare(nothing)
    write(tmp_path / "row-0/seed-0/predictions/scores.json", "{")
    with pytest.raises(ValueError, match=r"scores.json: holds no scores as"):
        compare(spec)


def test_validation_and_test_scores_stay_apart(tmp_path: Path) -> None:
    scores = {"vqa": {"exact_match": 0.5}, "gqa": {"accuracy": 0.25}}
    run = write_compared_run(tmp_path / "run", scores, 3.0)
    (run / "predictions").mkdir()
    write_scores(run / "predictions", {"vqa.test": Scored(None, 3, {"exact_match": 0.125})})
    spec = TableSpec("t", [RowSpec("run", [run])])
    assert compare(spec).values == ["vqa", "gqa", "average"]
    assert compare(replace(spec, split="test")).values == ["vqa"]


def test_damage_is_told(tmp_path: Path) -> None:
    spec = write_compared(tmp_path)
    damaged, lost, unfinished = spec.rows[0].folders
    with (damaged / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 11, "los')
    (lost / "metrics.jsonl").unlink()
    write_scores(lost, {"vqa": Scored(None, 3, {"vqa_accuracy": 0.5})})
    (unfinished / "artifact/recipe.yaml").unlink()
    notes = "\n".join(compare(spec).notes)
    assert "single adapter: seed-0: " in notes
    assert "line 6" in notes
    assert "single adapter: seed-1: metrics.jsonl is not there." in notes
    assert "single adapter: without seed-2, which has not ended." in notes


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("target", ("vqaa", 60.0), "target: the table has no 'vqaa'; did you mean 'vqa'?"),
        ("scores", {"vqaa": "x"}, "scores: the table has no 'vqaa'; did you mean 'vqa'?"),
    ],
)
def test_a_name_of_no_task_is_told(tmp_path: Path, key: str, value: Any, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        compare(replace(write_compared(tmp_path), **{key: value}))
    published = {"single adapter": {"vqaa": 60.0}}
    with pytest.raises(ValueError, match=r"published.single adapter: the table has no 'vqaa'"):
        compare(write_compared(tmp_path / "published", published))


def test_the_best_distribution_is_the_lowest(tmp_path: Path) -> None:
    """As the task says in the run's recipe."""
    recipe = replace(load_recipe(find("recipes/demo.yaml")), output=str(tmp_path))
    rows = []
    for name, value in (("near", 0.1), ("far", 5.0)):
        run = write_compared_run(tmp_path / name, {"gqa": {"distribution": value}}, 3.0)
        save_recipe(recipe, run / "recipe.yaml")
        rows.append(RowSpec(name, [run]))
    assert compare(TableSpec("t", rows, scores={"gqa": "distribution"})).best("gqa") == 10.0


@pytest.mark.parametrize(
    ("count", "quantile"), [(30, 2.045), (31, 2.042), (61, 2.000), (121, 1.980)]
)
def test_the_interval_is_student_s_for_many_seeds(count: int, quantile: float) -> None:
    values = [float(n) for n in range(count)]
    interval = Number(values).interval
    assert interval is not None
    half = (interval.high - interval.low) / 2
    assert half / statistics.stdev(values) * math.sqrt(count) == pytest.approx(quantile, abs=6e-4)

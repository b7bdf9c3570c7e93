"""Runs that differ in their seed alone."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.toys.html_reader import Reader
from tests.toys.scored_runs import Runs, lines_of, scored_recipe, write_scored_run
from vlds.models.methods import Adapter
from vlds.report.collect import collect
from vlds.report.page import build_page
from vlds.report.report import mean_text, seed_groups
from vlds.report.run_tables import runs_table, seed_notes
from vlds.report.tables import BEST


@pytest.fixture(scope="module")
def seeds(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three seeds of one recipe, and another recipe of the second seed."""
    made = []
    for number, wrong_every in enumerate((3, 4, 6)):
        folder = tmp_path_factory.mktemp("seeds") / f"seed-{number}"
        recipe = replace(scored_recipe(runs.world, folder), seed=number)
        lines = {task: lines_of(config, wrong_every) for task, config in recipe.tasks.items()}
        made.append(write_scored_run(folder, recipe, lines))
    folder = tmp_path_factory.mktemp("seeds") / "other"
    recipe = replace(scored_recipe(runs.world, folder), seed=1)
    recipe = replace(recipe, methods={"adapter": Adapter(reduction=2)})
    return [*made, write_scored_run(folder, recipe, {"vqa": lines_of(recipe.tasks["vqa"], 5)})]


@pytest.mark.slow
def test_mean_and_deviation_stand_below_the_runs(seeds: list[Path]) -> None:
    report = collect(seeds, resamples=0)
    page = Reader(build_page(report))
    rows = next(table for table in page.tables if table[0][0] == "run")
    assert len(rows) == 1 + 1 + 4 + 1  # heads, most frequent answer, runs, mean
    values = [report.runs[f"seed-{n}"].score("vqa", "exact_match") for n in range(3)]
    known = [value for value in values if value is not None]
    mean, deviation = statistics.mean(known), statistics.stdev(known)
    assert rows[-1][0] == "mean of 3 seeds seed-0, seed-1, seed-2"
    assert rows[-1][1] == f"{mean:.3f} +/- {deviation:.3f}"
    assert "how far another seed moves a score" in page.text


@pytest.mark.sampled(10)
@pytest.mark.parametrize(
    ("ours", "theirs", "best"),
    [
        ((4, 4, 5), (2, 2, 2), 0),
        ((2, 2, 2), (4, 4, 5), 1),
        ((3, 4, 6), (3, 4, 6), None),  # a tie
        ((4, 4), (2, 2), None),  # too few seeds
        ((4, 4, 5), (2,), None),  # too few in common
        ((4, 4, 5), (2, 9, 2), None),  # worse with one seed
    ],
)
@pytest.mark.parametrize("is_same_data", [True, False])
def test_a_mean_is_best_by_the_rule_of_compare(
    ours: Sequence[int], theirs: Sequence[int], best: int | None, is_same_data: bool, runs: Runs,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Numbers: every how many answers one is wrong, by seed."""
    folders = []
    for row, (reduction, seeds) in enumerate(((4, ours), (2, theirs))):
        for seed, wrong_every in enumerate(seeds):
            folders.append(tmp_path / f"row-{row}" / f"seed-{seed}")
            recipe = replace(scored_recipe(runs.world, folders[-1]), seed=seed)
            recipe = replace(recipe, methods={"adapter": Adapter(reduction=reduction)})
            lines = lines_of(recipe.tasks["vqa"], wrong_every)
            if row and not is_same_data:
                lines = [line | {"id": f"other-{line['id']}"} for line in lines]
            write_scored_run(folders[-1], recipe, {"vqa": lines})
    report = collect(folders, resamples=0)
    rows = [row for row in runs_table(report, on_page=True).rows if row.head.startswith("mean")]
    marked = [any(cell.look == BEST for cell in row.cells) for row in rows]
    assert marked == [row == best and is_same_data for row in range(len(marked))]
    told = " ".join(seed_notes(report))
    said = "Bold: a best mean" if any(marked) else "No best mean is bold, because each"
    assert f"{said} needs 3 seeds or more in common with every other row" in told


@pytest.mark.slow
def test_a_seed_counts_once(seeds: list[Path], tmp_path: Path) -> None:
    again = shutil.copytree(seeds[0], tmp_path / "again")
    assert seed_groups(collect([*seeds[:2], again], resamples=0)) == [["seed-0", "seed-1"]]


@pytest.mark.slow
def test_the_same_seed_twice_or_another_recipe_is_no_group(seeds: list[Path], runs: Runs) -> None:
    assert seed_groups(collect([runs.first, runs.second], resamples=0)) == []
    report = collect([seeds[0], seeds[3]], resamples=0)
    assert seed_groups(report) == []
    assert "mean of" not in build_page(report)


def test_a_missing_score_has_no_mean() -> None:
    assert mean_text([0.5, None]) == "-"
    assert mean_text([0.5, 0.7]) == "0.600 +/- 0.141"

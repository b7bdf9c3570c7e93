"""Scores that `vlds demo` compared a run with appear next to the run's newest scores, if their
data are the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.toys.scored_runs import (
    Runs,
    lines_of,
    scored_recipe,
    write_predictions,
    write_scored_run,
)
from vlds.evaluation.result import Scored, write_scores
from vlds.report.baselines import FREQUENT
from vlds.report.collect import collect

DATA, OTHER = "world-val@0123456789abcdef", "mine-test@fedcba9876543210"
CONTROL = "norms + visual embedding"


@pytest.mark.sampled(2)
@pytest.mark.parametrize("evaluated_on", [DATA, OTHER, None])
def test_the_newest_predictions_count_beside_a_comparison(
    runs: Runs, tmp_path: Path, evaluated_on: str | None
) -> None:
    recipe = scored_recipe(runs.world, tmp_path / "run")
    first = [line | {"data": DATA} for line in lines_of(recipe.tasks["vqa"], 4)]
    run = write_scored_run(tmp_path / "run", recipe, {"vqa": first})
    compared = {FREQUENT: {"exact_match": 0.1}, CONTROL: {"exact_match": 0.25}}
    stored = Scored(DATA, len(first), {"exact_match": 0.75}, "exact_match", compared)
    write_scores(run, {"vqa": stored})
    before = collect([run]).only
    assert before.scores.columns == [FREQUENT, CONTROL, "run"]
    assert before.score("vqa", "exact_match") == 0.75

    told = {"after": 10} if evaluated_on is None else {"after": 10, "data": evaluated_on}
    newer = [line | told for line in lines_of(recipe.tasks["vqa"], 2)]
    write_predictions(run / "predictions" / "vqa.jsonl", newer)
    report = collect([run]).only
    assert report.score("vqa", "exact_match") == 0.5
    same = evaluated_on == DATA
    assert report.scores.columns == ([FREQUENT, CONTROL, "run"] if same else [FREQUENT, "run"])
    columns = report.scores.tasks["vqa"].by_column
    assert columns[FREQUENT]["exact_match"] != 0.1, "computed from the newest predictions"
    assert (CONTROL in columns) == same

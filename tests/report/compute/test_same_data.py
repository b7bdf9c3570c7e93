"""Scores are bound to their data: what is of other data stands by itself."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.toys.files import write_lines
from tests.toys.html_reader import Reader
from tests.toys.scored_runs import (
    Runs,
    lines_of,
    scored_recipe,
    vqa_run,
    with_data,
    write_predictions,
    write_scored_run,
)
from vlds.models.methods import Adapter
from vlds.report.baselines import BLIND, FREQUENT, FROZEN, frequent_answers
from vlds.report.collect import collect
from vlds.report.lead import run_leads
from vlds.report.page import build_page, markdown
from vlds.report.report import mean_text
from vlds.report.run_tables import csv_text
from vlds.runtime.folders import STARTS
from vlds.tasks import Retrieval

OWN, OTHER = "world-val@0123456789abcdef", "mine-test@fedcba9876543210"


def test_runs_on_other_data_have_columns_of_their_own(runs: Runs, tmp_path: Path) -> None:
    one = with_data(vqa_run(runs.world, tmp_path / "one", 3), OWN)
    two = with_data(vqa_run(runs.world, tmp_path / "two", 4), OTHER)
    report = collect([one, two])
    assert report.headlines == [
        ("vqa on world-val", "soft_score"),
        ("vqa on mine-test", "soft_score"),
    ]
    assert report.differences == {}
    table = markdown(report).split("\n\n")
    heads, _, frequent, first, second = table[0].splitlines()
    assert frequent.startswith(f"| {FREQUENT} | ")
    assert heads.endswith("| vqa on world-val soft_score | vqa on mine-test soft_score |")
    assert first.endswith("] | - |")
    assert "| - | " in second
    assert table[1] == (
        "Data: vqa on world-val: world-val, 48 examples; vqa on mine-test: mine-test, 48 examples."
    )
    assert all(f",{data}," in csv_text(report) for data in (OWN, OTHER))
    same = collect([one, with_data(two, OWN)])
    assert [task for task, _ in same.headlines] == ["vqa"]
    assert same.differences


def test_a_set_that_was_packed_again_is_another_one(runs: Runs, tmp_path: Path) -> None:
    """The name alone does not make data the same."""
    one = with_data(vqa_run(runs.world, tmp_path / "one", 3), OWN)
    two = with_data(vqa_run(runs.world, tmp_path / "two", 4), "world-val@ffff456789abcdef")
    tasks = [task for task, _ in collect([one, two]).headlines]
    assert tasks == ["vqa on world-val@012345", "vqa on world-val@ffff45"]


def test_each_type_of_question_has_its_most_frequent_answer(runs: Runs, tmp_path: Path) -> None:
    """A rare type and questions without one share theirs; of free text there is none."""
    recipe = scored_recipe(runs.world, tmp_path / "run")
    types = {"what": ["red"] * 14 + ["blue"] * 10, "how many": ["1"] * 5 + ["2"] * 16}
    rest = [("rare", "yes")] * 3 + [(None, "no")] * 4 + [("rare", "red")] * 3
    asked = [(kind, answer) for kind, answers in types.items() for answer in answers] + rest
    lines = [
        {"id": str(number), "sample": str(number), "prediction": answer, "reference": {
            "answer": answer, "answers": [answer], "label": {answer: 1.0}, "question_type": kind,
            "answer_type": None,
        }}
        for number, (kind, answer) in enumerate(asked)
    ]  # fmt: skip
    report = collect([write_scored_run(tmp_path / "run", recipe, {"vqa": lines})]).only
    assert frequent_answers(replace(report.results["vqa"], task=Retrieval())) is None
    always = report.scores.tasks["vqa"].by_column[FREQUENT]
    assert always["exact_match"] == pytest.approx((14 + 16 + 4) / len(lines))
    assert always["exact_match/question_type/how many"] == pytest.approx(16 / 21)
    assert report.facts["most frequent answers"] == ("vqa: no (the rest), 2 (how many), red (what)")
    (vqa,) = run_leads(report, 100)
    gap = f"{1 - always['exact_match']:.3f} above"
    assert f"{gap} the most frequent answer of each of 2 question types and of the rest" in vqa.text


def test_what_a_score_is_compared_with(runs: Runs, tmp_path: Path) -> None:
    """The most frequent answer, the model without pictures, and the model before its training."""
    recipe = scored_recipe(runs.world, tmp_path / "run")
    task = recipe.tasks["vqa"]
    lines = [line | {"data": OWN} for line in lines_of(task, 3)]
    run = write_scored_run(tmp_path / "run", recipe, {"vqa": lines})
    report = collect([run]).only
    assert report.scores.columns == [FREQUENT, "run"]
    always = report.scores.tasks["vqa"].by_column[FREQUENT]["exact_match"]
    answers = Counter(line["reference"]["answer"] for line in lines)
    assert report.facts["most frequent answers"] == f"vqa: {answers.most_common(1)[0][0]}"
    assert always == pytest.approx(answers.most_common(1)[0][1] / len(lines))
    blank = run / "predictions" / "blank"
    blank.mkdir()
    write_predictions(blank / "vqa.jsonl", [line | {"prediction": "red"} for line in lines])
    first = run / "predictions" / "step-00000000"
    first.mkdir()
    write_predictions(first / "vqa.jsonl", [line | {"prediction": ""} for line in lines])
    told = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(
        json.dumps({"step": 0, "scores": {"vqa": {"exact_match": 0.125}}}) + "\n" + told
    )
    found = collect([run]).only.scores
    assert found.columns == [FREQUENT, BLIND, FROZEN, "run"]
    assert found.tasks["vqa"].by_column[FROZEN] == {"exact_match": 0.125}
    assert found.tasks["vqa"].by_column[BLIND]["exact_match"] < 1
    write_predictions(first / "vqa.jsonl", [line | {"data": OTHER} for line in lines])
    write_predictions(blank / "vqa.jsonl", [line | {"data": OTHER} for line in lines])
    assert collect([run]).only.scores.columns == [FREQUENT, "run"]
    (blank / "vqa.jsonl").write_text('{"id": "1"}\n')
    report = collect([run]).only
    assert report.scores.columns == [FREQUENT, "run"]
    (note,) = report.notes
    assert note.startswith("Not all scores to compare vqa with: ")
    assert "blank/vqa.jsonl, line 1: of is missing; prediction is missing; reference is m" in note


def test_how_a_run_was_started(runs: Runs, tmp_path: Path) -> None:
    run = vqa_run(runs.world, tmp_path / "run", 3)
    start = {
        "time": "2026-03-01T12:00:30+00:00",
        "step": 0,
        "command": "vlds train vqa.yaml",
        "hardware": "2 ranks, A Processor, 2 cores",
        "versions": {"vlds": "0.1.0", "torch": "2.9.0"},
        "changes": [],
    }
    again = start | {"time": "2026-03-01T13:00:00+00:00", "step": 5, "changes": ["seed: 1 -> 2"]}
    lines = [start, again, {"time": "then"}, [], start | {"time": "yesterday"}]
    write_lines(run / STARTS, lines)
    with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 5, "seconds": 60.0}\n{"step": 10, "seconds": 75.0}\n')
    facts = collect([run]).only.facts
    assert facts["method"] == (
        "Adapter (reduction=4, sharing=half_shared_up) + norms + visual embedding"
    )
    assert facts["steps"] == "10 of 10"
    assert facts["started"] == "2026-03-01 12:00 UTC"
    assert facts["resumed"] == "2026-03-01 13:00 UTC at step 5"
    assert facts["training took"] == "2 min 15 s"
    assert facts["hardware"] == "2 ranks, A Processor, 2 cores"
    assert facts["versions"] == "vlds 0.1.0, torch 2.9.0"
    assert facts["command"] == "vlds train vqa.yaml"
    assert facts["recipe changed"] == "at step 5: seed: 1 -> 2"
    assert (
        "run: seed 7; started 2026-03-01 12:00 UTC; training took 2 min 15 s; hardware 2 ranks, A "
        "Processor, 2 cores; versions vlds 0.1.0, torch 2.9.0; command vlds train vqa.yaml"
    ) in markdown(collect([run]))


# Runs that differ in their seed alone.


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


def test_a_missing_score_has_no_mean() -> None:
    assert mean_text([0.5, None]) == "-"
    assert mean_text([0.5, 0.7]) == "0.600 +/- 0.141"

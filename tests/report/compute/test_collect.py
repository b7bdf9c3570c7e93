"""What a report finds in run folders of every state: whole, killed, moved, evaluated later."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.packing.writer import SampleRecord, write_dataset
from tests.toys.files import read_lines, write_lines
from tests.toys.pictures import jpeg
from tests.toys.scored_runs import (
    Runs,
    lines_of,
    scored_recipe,
    vqa_run,
    write_predictions,
    write_scored_run,
)
from tests.toys.world import world_recipe
from vlds.data.shards.store import open_dataset
from vlds.recipe.config import load_recipe, save_recipe
from vlds.report import examples
from vlds.report.clips import Frames
from vlds.report.collect import collect, compared_scores
from vlds.report.page import markdown
from vlds.report.predictions import Predictions
from vlds.report.read import Scores, TaskScores
from vlds.report.scores import Difference
from vlds.runtime.artifact_files import BEST
from vlds.tasks import GQA, Chat

LAST = Path("predictions", "step-00000010")
"""The predictions of a run's last evaluation."""


def copy(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder))


@pytest.fixture
def run(runs: Runs, tmp_path: Path) -> Path:
    """A copy of the first run: of 48 questions and 10 captions each third answer is wrong."""
    return copy(runs.first, tmp_path / "run")


@pytest.fixture
def asked(runs: Runs, tmp_path: Path) -> Path:
    """A run with the questions as its only task."""
    return vqa_run(runs.world, tmp_path / "asked", 3)


def test_one_picture_has_no_interval(run: Path) -> None:
    file = run / LAST / "vqa.jsonl"
    write_lines(file, [line | {"sample": "one"} for line in read_lines(file)])
    report = collect([run])
    assert report.only.results["vqa"].interval is None
    assert any("one sample alone does not tell" in note for note in report.interval_notes)


@pytest.mark.slow
def test_other_examples_and_other_tasks_are_not_compared(runs: Runs, tmp_path: Path) -> None:
    recipe = scored_recipe(runs.world, tmp_path / "fewer")
    lines = {"vqa": lines_of(recipe.tasks["vqa"], 5)[:-1]}
    fewer = write_scored_run(tmp_path / "fewer", recipe, lines)
    report = collect([fewer, runs.first])
    assert report.differences == {}  # nothing can be compared
    report = collect([runs.first, fewer, runs.second])
    assert report.differences["fewer"] == ["other examples", "not scored in both"]
    assert isinstance(report.differences["second"][0], Difference)


def test_a_run_that_keeps_its_best_step_stands_for_it(asked: Path) -> None:
    """Scores, lists and notes are of that step, also where the last one was scored later."""
    lines = read_lines(asked / LAST / "vqa.jsonl")
    for name in (
        "predictions/vqa.test", "predictions/step-00000004/vqa", "best/predictions/vqa.test",
    ):  # fmt: skip
        file = asked / f"{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_lines(file, lines)
    (asked / "best" / BEST).write_text('{"step": 4, "score": "vqa/exact_match", "value": 0.9}')
    found = collect([asked]).only
    assert {name: result.predictions.step for name, result in found.results.items()} == {
        "vqa": 4, "vqa.test": None,
    }  # fmt: skip
    assert found.facts["scores of"] == "best/predictions, predictions/step-00000004"
    assert found.notes == [f"{asked}: best, of step 4; training has not ended."]


def test_a_killed_run(run: Path) -> None:
    """Its last lines are cut, and it was last scored before."""
    metrics = run / "metrics.jsonl"
    lines = read_lines(metrics)
    early = [line | {"step": 4} if "scores" in line else line for line in lines]
    early.sort(key=lambda line: line["step"])
    write_lines(metrics, [line for line in early if line["step"] <= 7])
    with metrics.open("a") as file:
        file.write('{"step": 8, "loss": 0.1, "los')
    (run / LAST).rename(run / "predictions" / "step-00000004")
    found = collect([run]).only
    assert found.stopped == "7 of 10 steps"
    assert found.results["vqa"].predictions.step == 4
    assert found.results["vqa"].interval is not None


Damage = Callable[[list[str]], list[str]]
"""What becomes of the lines of a file of predictions."""


def with_first(field: str, value: object) -> Damage:
    """The first line has another value in a field."""
    return lambda lines: [json.dumps(json.loads(lines[0]) | {field: value}) + "\n", *lines[1:]]


@pytest.mark.sampled(2)  # all of them after a step
@pytest.mark.parametrize("step", [10, None])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda lines: lines[:30], "holds 30 of 48 examples"),
        (lambda lines: [*lines[:30], lines[30][:20]], "line 31: it is not JSON ("),
        (lambda lines: [lines[0][:20]], "line 1: it is not JSON ("),
        (lambda lines: [], "vqa.jsonl is empty"),
        (lambda lines: [lines[0], *lines[:47]], "line 2: id 'q0-0' stands in line 1 too; evaluate"),
        (with_first("sample", 3), "line 1: sample is 3, a valid string expected; evaluate the run"),
        (with_first("prediction", 3), "line 1: prediction is 3, a valid string expected; evaluate"),
        (with_first("data", "mine@01"), "is of mine@01 and of None"),
        (lambda lines: ['{"id": "q0"}\n', *lines], "line 1: of is missing; prediction is missing"),
        (with_first("reference", {"foo": 1}), "line 1: its reference is not one of VQA (KeyError("),
    ],
)
def test_damaged_predictions_give_no_score(
    runs: Runs, tmp_path: Path, step: int | None, damage: Damage, said: str
) -> None:
    """The log's score stays, and the other task."""
    recipe = scored_recipe(runs.world, tmp_path / "run")
    lines = {name: lines_of(task, 3) for name, task in recipe.tasks.items()}
    run = write_scored_run(tmp_path / "run", recipe, lines, step=step)
    (file,) = run.glob("predictions/**/vqa.jsonl")
    file.write_text("".join(damage(file.read_text("utf-8").splitlines(keepends=True))))
    found = collect([run], pictures=True).only
    assert list(found.results) == ["caption"]
    assert found.score("vqa", "exact_match") == (None if step is None else pytest.approx(2 / 3))
    (note,) = found.notes
    assert note.startswith(f"No scores of vqa's newest predictions: {file}")
    assert said in note
    assert "evaluate the run again, with `vlds evaluate RUN`" in note
    assert {entry.task for entry in found.inputs.gallery} == {"caption"}
    assert said in markdown(collect([run])).replace("\\", "")


def test_results_on_test_data_stand_beside_the_others(run: Path) -> None:
    """Under a name of their own, with an interval and pictures."""
    recipe = load_recipe(run / "recipe.yaml")
    vqa = replace(recipe.tasks["vqa"], test=recipe.tasks["vqa"].evaluate, evaluate=[])
    save_recipe(replace(recipe, tasks={**recipe.tasks, "vqa": vqa}), run / "recipe.yaml")
    write_predictions(run / "predictions" / "vqa.test.jsonl", lines_of(recipe.tasks["vqa"], 4))
    found = collect([run], pictures=True).only
    assert list(found.results) == ["vqa", "vqa.test", "caption"]
    result = found.results["vqa.test"]
    assert (result.headline, result.predictions.step) == ("exact_match", None)
    assert found.score("vqa.test", "exact_match") == result.value == 36 / 48
    assert found.score("vqa", "exact_match") == found.results["vqa"].value != result.value
    assert result.interval is not None
    shown = [entry for entry in found.inputs.gallery if entry.task == "vqa.test"]
    assert len(shown) == 6
    assert "vqa.test exact_match" in markdown(collect([run]))
    scores = Scores(["run"], {"gqa.test": TaskScores({"run": {"distribution": 1.0}})})
    told = compared_scores(scores, "run", {"gqa": GQA()}, {}, {})
    assert told.tasks["gqa.test"].lower_is_better == ("distribution",)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("age", [-100, 100])
@pytest.mark.parametrize("after", [5, 10, None])
def test_the_newest_predictions_count(run: Path, after: int | None, age: int) -> None:
    """Those of `vlds evaluate` where it came after the training; of each task for itself. Times of
    files, which copying changes, do not matter."""
    trained, later = run / LAST / "vqa.jsonl", run / "predictions" / "vqa.jsonl"
    told = {} if after is None else {"after": after}
    task = load_recipe(run / "recipe.yaml").tasks["vqa"]
    write_predictions(later, [line | told for line in lines_of(task, 2)])
    when = trained.stat().st_mtime + age
    os.utime(later, (when, when))
    found = collect([run]).only
    assert found.results["vqa"].predictions.step == (10 if after == 5 else None)
    assert found.score("vqa", "exact_match") == pytest.approx(2 / 3 if after == 5 else 0.5)
    assert found.results["caption"].predictions.step == 10
    unsure = f"{later}, which does not say whether the training's evaluation in step-00000010 came"
    assert [unsure in note for note in found.notes] == ([True] if after is None else [])


@pytest.mark.parametrize("step", [10, None])
def test_without_java_the_official_cider_costs_its_interval_alone(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int | None
) -> None:
    """Logged on a machine that has it; or to be computed here, after `vlds evaluate`."""
    recipe = scored_recipe(runs.world, tmp_path / "run")
    caption = replace(recipe.tasks["caption"], scores=["CIDEr"], headline=None)
    recipe = replace(recipe, tasks={**recipe.tasks, "caption": caption})
    lines = {name: lines_of(task, 3) for name, task in recipe.tasks.items()}
    logged = {"caption": {"CIDEr": 0.7}}
    run = write_scored_run(tmp_path / "run", recipe, lines, scores=logged, step=step)
    monkeypatch.setenv("PATH", "")
    report = collect([run])
    assert report.only.results["vqa"].interval is not None
    if step is None:
        (note,) = report.only.notes
        assert note.startswith("No scores of caption's newest predictions: CIDEr: ")
        assert "caption" not in report.only.results
    else:
        assert report.only.score("caption", "CIDEr") == 0.7
        assert report.only.results["caption"].interval is None
        assert report.interval_notes[-1].startswith("No interval for caption: CIDEr: ")
        assert "missing (" in report.interval_notes[-1]


def test_a_recipe_that_cannot_be_read_costs_the_intervals_alone(run: Path) -> None:
    (run / "recipe.yaml").write_text("output: x\nbackbone: {class_path: Gone}\n")
    found = collect([run], pictures=True).only
    assert found.score("vqa", "exact_match") == pytest.approx(2 / 3)
    assert found.results == {}
    (note,) = found.notes
    assert note.startswith(f"No intervals and no new samples: {run / 'recipe.yaml'}:")
    assert "Gone" in note


def test_the_gallery_shows_what_was_asked_and_said(run: Path) -> None:
    file = run / LAST / "vqa.jsonl"
    lines = read_lines(file)
    write_lines(file, [line | {"confidence": n / 50} for n, line in enumerate(lines)])
    gallery = collect([run], pictures=True).only.inputs.gallery
    asked = [entry for entry in gallery if entry.task == "vqa"]
    said = {line["id"]: (line["prediction"], n / 50) for n, line in enumerate(lines)}
    assert len(asked) == 6
    for entry in asked:
        assert (entry.prediction, entry.confidence) == said[entry.id]
        assert entry.correct == (entry.prediction == entry.reference)
        assert entry.prompt.startswith("vqa: what colour is it")
        assert (run / entry.images[0]).is_file()
    assert len({entry.prompt for entry in asked}) > 1, "only the first questions of pictures"
    described = [entry for entry in gallery if entry.task == "caption"]
    assert {entry.confidence for entry in described} == {None}
    assert [len(entry.reference) for entry in described] == [2] * 6


def test_data_that_moved_leave_the_earlier_gallery(runs: Runs, tmp_path: Path) -> None:
    world = copy(runs.world, tmp_path / "world")
    run = vqa_run(world, tmp_path / "run", 3)
    before = collect([run], pictures=True).only
    assert (len(before.inputs.gallery), before.notes) == (6, [])
    shutil.rmtree(world / "vqa")
    after = collect([run], pictures=True).only
    assert after.inputs.gallery == before.inputs.gallery
    (note,) = after.notes
    assert note.startswith("No new samples to look at: ")
    assert str(world / "vqa") in note
    assert after.results["vqa"].interval is not None


def test_predictions_of_other_data_are_said(asked: Path) -> None:
    file = asked / LAST / "vqa.jsonl"
    file.write_text(file.read_text().replace('"id": "', '"id": "other-'))
    (note,) = collect([asked], pictures=True).only.notes
    assert "of other examples than those that the recipe's tasks name" in note
    (asked / LAST).rename(asked / "predictions" / "mine-test@00")
    found = collect([asked], pictures=True).only
    assert (list(found.results), found.notes) == (["vqa on mine-test"], []), "a name of its own"


@pytest.mark.slow
def test_runs_of_one_name_are_told_apart(runs: Runs, tmp_path: Path) -> None:
    one, two = (vqa_run(runs.world, tmp_path / seed / "run", 3) for seed in ("1", "2"))
    assert list(collect([one, two, runs.first]).runs) == [
        "1/run",
        "2/run",
        f"{runs.first.parent.name}/first",
    ]
    assert list(collect([one, runs.first]).runs) == ["run", "first"]


def test_inputs_of_conversations_say_where_pictures_stand(tmp_path: Path) -> None:
    folder, duration = str(tmp_path / "chats"), {"times": [1.0, 3.0], "duration": 4.0}
    image, clip = {"type": "image"}, {"type": "video", **duration}
    about = [image, {"type": "text", "text": " Is it in\n"}, clip, {"type": "text", "text": "?"}]
    turns = [{"role": "user", "content": about}]
    talk = [*turns, {"role": "assistant", "content": "No."}, {"role": "user", "content": "Why?"}]
    asked = [{"id": "one", "turns": turns, "answer": "No."},
             {"id": "two", "turns": talk, "answer": "So."}]  # fmt: skip
    members = [(f"{number:03d}.jpg", jpeg()) for number in range(3)]
    record = SampleRecord(id="s", members=members, json={"annotations": asked})
    write_dataset(Path(folder), name="c", kind="chat", split="val", records=[record])
    task = Chat(train=[folder], evaluate=[folder])
    recipe = replace(world_recipe(tmp_path, tmp_path / "run"), tasks={"chat": task})
    one, two = examples.asked_of(recipe, {"chat": {"one", "two"}})
    assert one[:4] == ("chat", "one", "<image> Is it in\n<video>?", "")
    assert two[:3] == (
        "chat", "two", "user: <image> Is it in\n<video>?\nassistant: No.\nuser: Why?",
    )  # fmt: skip
    assert two.last_turn == "Why?"
    for asked in (one, two):
        picture, frames = asked.pictures
        assert isinstance(frames, Frames)
        assert [bytes(each) for each in (picture, *frames.pictures)] == [d for _, d in members]  # type: ignore[arg-type]
        assert frames.times == (1.0, 3.0)
    said = {"one": "No.", "two": "So."}
    answers = {key: {"answer": text, "turn": 1} for key, text in said.items()}
    predicted = Predictions(Path("chat.jsonl"), None, said, answers, {}, {}, {})
    (sample,) = examples.spread([open_dataset(folder)])
    shown = examples.gallery_entry("chat", task, sample, 0, predicted)
    assert shown is not None
    assert shown[0].prompt == "<image> Is it in\n<video>?"

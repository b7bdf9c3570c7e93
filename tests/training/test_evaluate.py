"""Evaluation counts every example once, however many ranks share the work."""

from __future__ import annotations

import io
import json
import os
import re
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from data_prep.packing.writer import SampleRecord, write_dataset
from tests.toys.files import read_lines
from tests.toys.kinds import kind_recipe
from tests.toys.rank_jobs import refusal, run_recipe
from tests.toys.rank_pool import RankPool
from tests.toys.recipes import with_task
from tests.toys.trained_runs import talkative_run
from tests.toys.world import picture, records, world_recipe
from vlds.artifact import load_run
from vlds.cli.main import run_command
from vlds.evaluation.evaluator import Evaluator
from vlds.evaluation.inference import with_data
from vlds.evaluation.prediction_files import read_pairs
from vlds.evaluation.result import Details, Evaluation
from vlds.evaluation.sources import evaluation_sources
from vlds.report.predictions import read_predictions
from vlds.runtime.artifact_files import WEIGHTS
from vlds.runtime.deepspeed_start import start_ranks
from vlds.runtime.json_files import write_manifest
from vlds.tasks import ImageClass
from vlds.training.checkpoint import BestStep
from vlds.training.deepspeed_config import complete_deepspeed_config, cut_batches
from vlds.training.engine import Engine
from vlds.training.optimizer import parameter_groups

NUM_QUESTIONS = 48


@pytest.fixture(scope="module")
def run(world: Path, ranks2: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = world_recipe(world, tmp_path_factory.mktemp("run"))
    ranks2.run(run_recipe, recipe, timeout=120)
    return Path(recipe.output)


def evaluate_on(run: Path, folder: Path) -> tuple[list[Evaluation], list[str]]:
    """A run on a data set, with batches that do not divide it: scores, and what a rank says if it
    may speak after each batch."""
    loaded = load_run(run)
    recipe = with_data(loaded.recipe, [f"vqa={folder}"])
    recipe = replace(recipe, data=replace(recipe.data, eval_batch_size=7))
    said: list[str] = []
    evaluator = Evaluator(
        recipe, evaluation_sources(recipe), loaded.collator, start_ranks(60), said.append
    )
    with mock.patch("vlds.runtime.terminal.SECONDS_BETWEEN_LINES", -1.0):
        return evaluator(loaded.model), said


def evaluate_under(run: Path, world: Path, out: Path, stage: int, num_workers: int) -> int:
    """Evaluate a run inside DeepSpeed's engine, with an odd number of questions and two tasks."""
    loaded = load_run(run)
    recipe = world_recipe(world, run, stage=stage)
    recipe = with_task(recipe, "caption", evaluate=[str(world / "caption")])
    data = replace(recipe.data, eval_batch_size=7, num_workers=num_workers)
    recipe, ranks = replace(recipe, data=data), start_ranks(60)
    engine = Engine(
        loaded.model,
        parameter_groups(loaded.model, recipe),
        complete_deepspeed_config(
            Path(recipe.training.deepspeed), recipe, cut_batches(recipe, ranks.world_size)
        ),
        ranks=ranks,
        tasks=list(recipe.tasks.values()),
        evaluates_whole=False,
    )
    engine.least_gathered = 100  # under stage 3, layer by layer
    evaluator = Evaluator(recipe, evaluation_sources(recipe), loaded.collator, ranks)
    with engine.evaluation() as model:
        evaluations = evaluator(model)
    for evaluation in evaluations:
        evaluation.write(out)
    engine.close()
    return sum(len(evaluation.predictions) for evaluation in evaluations)


@pytest.fixture(scope="module")
def talkative(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talkative_run(world_recipe(world, tmp_path_factory.mktemp("talkative")))


def written_by(pool: RankPool, run: Path, world: Path, out: Path) -> list[list[bytes]]:
    """The files of predictions under both stages."""
    files = []
    for stage in (2, 3):
        folder = out / f"{pool.world_size}-{stage}"
        num_workers = int(pool.world_size == 3 and stage == 2)
        counts = pool.run(evaluate_under, run, world, folder, stage, num_workers, timeout=120)
        assert counts == [NUM_QUESTIONS + 10] + [0] * (pool.world_size - 1)
        files.append([(folder / f"{task}.jsonl").read_bytes() for task in ("vqa", "caption")])
    return files


def test_ranks_and_stages_change_no_prediction(
    talkative: Path, world: Path, ranks2: RankPool, ranks4: RankPool, tmp_path: Path
) -> None:
    """58 examples in batches of at most 7: neither divides among the ranks."""
    first, *others = [
        files for pool in (ranks2, ranks4) for files in written_by(pool, talkative, world, tmp_path)
    ]
    assert others == [first] * 3
    lines = [json.loads(line) for line in first[0].splitlines()]
    answers = [line["prediction"] for line in lines]
    assert all(0 < line["confidence"] <= 1 for line in lines)
    assert len(answers) == NUM_QUESTIONS
    assert len(set(answers)) > 5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["causal", "image_text"])
def test_ranks_that_share_the_weights_answer_alike(
    kind: str, world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    """While they train, and with the artifact that they have written."""
    recipe = kind_recipe(kind, world, tmp_path / "run", stage=3)
    training = replace(recipe.training, steps=2, save_every=2, evaluate_whole=False)
    run = tmp_path / "run"
    assert ranks2.run(run_recipe, replace(recipe, training=training), timeout=120) == [0, 0]
    answers, lines = [read_pairs(run / "predictions/step-00000002/vqa.jsonl")], []
    image = tmp_path / "picture.jpg"
    image.write_bytes(picture("red", 5))
    for choice in ("true", "false"):
        out = tmp_path / choice
        words = ["evaluate", str(run), "--out", str(out), "--training.evaluate_whole", choice]
        assert [code for code, _ in ranks2.run(command, words, timeout=120)] == [0, 0]
        answers.append(read_pairs(out / "vqa.jsonl"))
        words = ["predict", str(run), "--task", "vqa", "--question", "what is it", "--image"]
        words += [str(image), "--training.evaluate_whole", choice]
        (code, said), (other_code, other_said) = ranks2.run(command, words, timeout=120)
        assert (code, other_code, other_said) == (0, 0, "")
        lines.append(said)
    assert answers[0] == answers[1] == answers[2]
    assert lines[0] == lines[1]
    assert len(answers[0]) == NUM_QUESTIONS


def test_training_wrote_the_same_predictions(run: Path, world: Path, ranks2: RankPool) -> None:
    ((evaluation,), said), (_, silence) = ranks2.run(evaluate_on, run, world / "vqa", timeout=120)
    entries = read_lines(run / "predictions" / "step-00000010" / "vqa.jsonl")
    written = {entry["id"]: entry["prediction"] for entry in entries}
    assert written == evaluation.predictions
    samples = {key: details.sample for key, details in evaluation.details.items()}
    assert {entry["id"]: entry["sample"] for entry in entries} == samples
    expected = {f"q{number}-{n}" for number in range(24) for n in range(1 + number % 3)}
    assert evaluation.predictions.keys() == evaluation.references.keys() == expected
    assert samples == {key: f"vqa-{key[1:].partition('-')[0]}" for key in expected}
    assert evaluation.unreadable == []
    # Ten steps teach it one answer; `talkative` has many.
    assert all(written.values())
    assert len(written) == NUM_QUESTIONS
    # The first rank alone says how far it is; of its four batches, the end is told otherwise.
    assert silence == []
    line = r"vqa: (\d+) of 48 examples  [\d,]+ examples/s  00:0\d:\d\d left"
    counts = [int(found[1]) for text in said if (found := re.fullmatch(line, text))]
    assert counts == [12, 24, 36]
    assert len(said) == 3
    assert max(map(len, said)) <= 80


def test_an_unreadable_picture_scores_as_no_answer(
    run: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    whole = list(records("vqa", 9))
    members = [("jpg", picture("red", 5)[:300])]
    cut = SampleRecord(id=whole[5].id, members=members, json=whole[5].json)
    asked = [*whole[:5], cut, *whole[6:]]
    write_dataset(tmp_path / "data", name="vqa", kind="vqa", split="val", records=asked)
    ((evaluation,), _), _ = ranks2.run(evaluate_on, run, tmp_path / "data", timeout=120)
    assert len(evaluation.predictions) == 18
    bad = [f"q5-{n}" for n in range(3)]
    assert [evaluation.predictions[id] for id in bad] == ["", "", ""]
    assert all(evaluation.references[id] is not None for id in bad)
    assert {evaluation.details[id].sample for id in bad} == {whole[5].id}
    assert [line.split(": ")[0] for line in sorted(evaluation.unreadable)] == bad
    assert all("truncated" in line for line in evaluation.unreadable)


def command(words: list[str], cache: Path | None = None) -> tuple[int, str]:
    """A command of `vlds` on a rank: its exit code and what it prints."""
    place = {} if cache is None else {"XDG_CACHE_HOME": str(cache)}
    out = io.StringIO()
    with mock.patch.dict(os.environ, place), redirect_stdout(out), redirect_stderr(out):
        code = run_command(words)
    return code, out.getvalue()


def test_predict_writes_what_a_leaderboard_takes(
    talkative: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    """A test split without labels, through the command; the file holds what our own does."""
    unlabelled = list(records("vqa", 9))
    for n, record in enumerate(unlabelled):
        for k, given in enumerate(record.json["annotations"]):
            record.json["annotations"][k] = {"id": f"{100 * n + k}", "question": given["question"]}
    write_dataset(tmp_path / "data", name="vqav2", kind="vqa", split="test", records=unlabelled)
    words = ["predict", "--run", str(talkative), "--data", f"vqa={tmp_path}/data"]
    (code, out), (_, other) = ranks2.run(command, [*words, "--out", str(tmp_path)], timeout=120)
    assert (code, other) == (0, "")
    first, *lines = out.splitlines()
    assert first.startswith("on CPU (")
    assert lines == [
        "vqa (vqav2-test, 18 examples)",
        f"predictions: {tmp_path}",
        f"{tmp_path}/vqav2-test.json",
    ]
    own = dict(read_pairs(tmp_path / "vqa.jsonl"))
    told = json.loads((tmp_path / "vqav2-test.json").read_text("utf-8"))
    assert {str(entry["question_id"]): entry["answer"] for entry in told} == own
    assert len(own) == 18


@pytest.mark.slow
def test_the_best_step_is_kept(world: Path, ranks2: RankPool, tmp_path: Path) -> None:
    """An evaluation and a state after each fifth step."""
    run, recipe = tmp_path / "run", world_recipe(world, tmp_path / "run")
    often = {"evaluate_every": 5, "save_every": 5, "steps": 15, "keep_states": 1}
    training = replace(recipe.training, best="vqa/exact_match", **often)
    assert ranks2.run(run_recipe, replace(recipe, training=training), timeout=120) == [0, 0]
    lines = [line for line in read_lines(run / "metrics.jsonl") if "scores" in line]
    scores = {line["step"]: line["scores"]["vqa"]["exact_match"] for line in lines}
    assert scores.keys() == {5, 10, 15}
    step = max(scores, key=lambda step: scores[step])  # the first of the highest
    told = json.loads((run / "best" / "best.json").read_text("utf-8"))
    assert told == {"score": "vqa/exact_match", "value": scores[step], "step": step}
    best, last = (load_file(run / name / "weights.safetensors") for name in ("best", "artifact"))
    same = all(torch.equal(best[name], last[name]) for name in last)
    assert same == (step == 15)
    # The newest state is kept, and that of the best step.
    states = {path.name for path in (run / "state").iterdir()}
    assert states == {f"step-{number:08d}" for number in (step, 15)}
    # It is a run like any other, and has the score that it was kept for.
    ((evaluation,), _), _ = ranks2.run(evaluate_on, run / "best", world / "vqa", timeout=120)
    assert evaluation.scores["exact_match"] == scores[step]


@pytest.mark.parametrize(
    ("score", "complaint"),
    [
        ("vqa/accuracy", "the scores of vqa are .*vqa/exact_match"),
        ("caption/CIDEr", "give TASK/SCORE with one of the tasks that are evaluated: vqa"),
        ("score", "the scores of vqa are soft_score, exact_match"),
    ],
)
def test_a_score_that_there_is_not(
    score: str, complaint: str, world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    """Refused before training, by all ranks."""
    recipe, field = world_recipe(world, tmp_path / "run"), "training.best"
    if "/" in score:
        training = replace(recipe.training, evaluate_every=5, best=score)
        recipe = replace(recipe, training=training)
        with pytest.raises(ValueError, match=rf"^best: got '{score}', but evaluate_every is 0"):
            replace(training, evaluate_every=0)
    else:
        recipe, field = with_task(recipe, "vqa", headline=score), "tasks.vqa.headline"
    for said in ranks2.run(refusal, recipe, timeout=60):
        assert re.match(f"{field}: got '{score}'; {complaint}", said)
    assert list((tmp_path / "run").iterdir()) == []


def accuracies(**values: float) -> list[Evaluation]:
    return [Evaluation(task, {"accuracy": value}, {}, {}) for task, value in values.items()]


def test_the_best_value_is_kept(tmp_path: Path) -> None:
    """Also of a resumed run, and never that of another score."""
    best = BestStep("vqa/accuracy", tmp_path / "best", resumed=False)
    told = accuracies(gqa=1.0, vqa=0.5)
    assert best.better(told, 10) == 0.5
    best.folder.mkdir()
    (best.folder / WEIGHTS).write_bytes(b"any")
    for file, text in best.note(0.5, 10).items():
        (best.folder / file).write_text(text, encoding="utf-8")
    write_manifest(best.folder)
    for name, resumed, found in (
        ("vqa/accuracy", True, None),
        ("vqa/accuracy", False, 0.5),
        ("gqa/accuracy", True, 1.0),
    ):
        assert BestStep(name, tmp_path / "best", resumed=resumed).better(told, 20) == found
    assert best.better([], 20) is None
    assert best.better(told, 10) == 0.5, "a step that is repeated may have been interrupted"
    low = BestStep("vqa/accuracy", tmp_path / "low", resumed=False, lower_is_better=True)
    low.note(0.4, 10)
    assert low.better(told, 20) is None
    low.note(0.6, 10)
    assert low.better(told, 20) == 0.5
    odd = BestStep("vqa/accuracy", tmp_path / "odd", resumed=False)
    assert odd.better(accuracies(vqa=float("nan")), 1) is None
    odd.note(float("nan"), 1)  # as a run of an older version may have kept it
    assert odd.better(accuracies(vqa=0.1), 2) == 0.1


def test_predictions_of_weights_that_are_not_finite_can_be_read(tmp_path: Path) -> None:
    """The title says how many examples count, if not all do."""
    given = {"a": "cat", "b": None}
    details = {"a": Details("s", confidence=float("nan"))}
    told = Evaluation("vqa", {}, dict.fromkeys(given, ""), given, details).scored(ImageClass())
    assert told.title == "vqa (2 examples, of which 1 count)"
    told.write(tmp_path)
    assert read_predictions(tmp_path / "vqa.jsonl").confidences == {}

"""Evaluation counts every example once, however many ranks share the work."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from data_prep.writer import SampleRecord, write_dataset
from tests.rank_pool import RankPool
from tests.training.world import picture, records, world_recipe
from vlds import cli
from vlds.artifact import load_run
from vlds.config import Recipe
from vlds.training.engine import start_ranks
from vlds.training.evaluate import Evaluation, evaluate, evaluation_sources
from vlds.training.loop import train

NUM_QUESTIONS = 48


def run_recipe(recipe: Recipe) -> int:
    """What `vlds train` does on a rank."""
    return train(recipe)


@pytest.fixture(scope="module")
def run(world: Path, ranks2: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of some steps."""
    recipe = world_recipe(world, tmp_path_factory.mktemp("run"))
    ranks2.run(run_recipe, recipe, timeout=120)
    return Path(recipe.output)


def evaluate_on(run: Path, folder: str) -> list[Evaluation]:
    """Score a run on a data set, with batches that do not divide it."""
    loaded = load_run(run)
    task = replace(loaded.recipe.tasks["vqa"], evaluate=[folder])
    recipe = replace(
        loaded.recipe,
        tasks=loaded.recipe.tasks | {"vqa": task},
        data=replace(loaded.recipe.data, eval_batch_size=5),
    )
    ranks = start_ranks(60)
    return evaluate(loaded.model, recipe, evaluation_sources(recipe), loaded.tokenizer, ranks)


def test_ranks_share_the_work(run: Path, world: Path, ranks2: RankPool, ranks4: RankPool) -> None:
    (two,), *others = ranks2.run(evaluate_on, run, str(world / "vqa"), timeout=120)
    assert others == [[]]
    (four,), *others = ranks4.run(evaluate_on, run, str(world / "vqa"), timeout=120)
    assert others == [[], [], []]
    expected = {f"q{number}-{n}" for number in range(24) for n in range(1 + number % 3)}
    assert len(expected) == NUM_QUESTIONS
    assert two.predictions.keys() == two.references.keys() == expected
    assert two.predictions == four.predictions
    assert two.scores == four.scores
    assert two.unreadable == []


def test_training_wrote_the_same_predictions(run: Path, world: Path, ranks2: RankPool) -> None:
    evaluation = ranks2.run(evaluate_on, run, str(world / "vqa"), timeout=120)[0][0]
    lines = (run / "predictions" / "step-00000010" / "vqa.jsonl").read_text().splitlines()
    written = {(entry := json.loads(line))["id"]: entry["prediction"] for line in lines}
    assert written == evaluation.predictions
    assert len(set(written.values())) > 0


def test_an_unreadable_picture_scores_as_no_answer(
    run: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    whole = list(records("vqa", 9))
    members = [("jpg", picture("red", 5)[:300])]
    cut = SampleRecord(id=whole[5].id, members=members, json=whole[5].json)
    write_dataset(
        tmp_path / "data",
        name="vqa",
        kind="vqa",
        split="val",
        records=[*whole[:5], cut, *whole[6:]],
    )
    evaluation = ranks2.run(evaluate_on, run, str(tmp_path / "data"), timeout=120)[0][0]
    assert len(evaluation.predictions) == 18
    bad = [f"q5-{n}" for n in range(3)]
    assert [evaluation.predictions[id] for id in bad] == ["", "", ""]
    assert all(evaluation.references[id] is not None for id in bad)
    assert [line.split(": ")[0] for line in sorted(evaluation.unreadable)] == bad
    assert all("truncated" in line for line in evaluation.unreadable)


def evaluate_at(run: Path, data: str, cache: Path, out: Path) -> int:
    """`vlds evaluate --data URL` on a rank, with a cache of the test's own."""
    with mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(cache)}):
        return cli.main(["evaluate", "--run", str(run), "--data", data, "--predictions", str(out)])


def test_data_at_a_url(run: Path, world: Path, ranks2: RankPool, tmp_path: Path) -> None:
    url = f"vqa=file://{world}/vqa"
    cache, out = tmp_path / "cache", tmp_path / "out"
    assert ranks2.run(evaluate_at, run, url, cache, out, timeout=120) == [0, 0]
    own = run / "predictions" / "step-00000010" / "vqa.jsonl"
    assert (out / "vqa.jsonl").read_bytes() == own.read_bytes()
    assert len(list((cache / "vlds").glob("*.tar"))) == 3

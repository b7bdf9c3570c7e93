"""Scores that a recipe asks for are checked before a run; `vlds evaluate` gives all of them."""

from __future__ import annotations

import io
import json
import re
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_prep.packing.writer import write_dataset
from tests.toys.rank_jobs import run_recipe
from tests.toys.rank_pool import RankPool
from tests.toys.world import records, world_recipe
from vlds.cli.main import run_command
from vlds.evaluation.sources import evaluation_sources
from vlds.recipe.config import Recipe
from vlds.tasks import GQA, Caption
from vlds.tasks.metrics import coco_package


def captions_recipe(world: Path, output: Path, **fields: Any) -> Recipe:
    """The world's captions, evaluated."""
    recipe = world_recipe(world, output)
    task = recipe.tasks["caption"]
    changed = replace(task, evaluate=task.train, **fields)
    return replace(recipe, tasks={"caption": changed})


def test_what_needs_java_is_refused_without_it(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    asked = captions_recipe(world, tmp_path, scores=["word_f1", "CIDEr"])
    with pytest.raises(
        ValueError, match=r"^tasks\.caption\.scores: CIDEr was asked for, and .* missing \("
    ):
        evaluation_sources(asked)
    assert len(evaluation_sources(captions_recipe(world, tmp_path))) == 1
    untouched = replace(asked.tasks["caption"], evaluate=[])
    assert evaluation_sources(replace(asked, tasks={"caption": untouched}))[0].datasets == []


def test_what_is_left_out_without_java_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside the scores that there are; and nothing where those were asked for."""
    monkeypatch.setenv("PATH", "")
    write_dataset(
        tmp_path / "data", name="c", kind="caption", split="val", records=records("caption", 2)
    )
    told = [{"id": f"caption-{number}", "prediction": "it is red"} for number in range(2)]
    (tmp_path / "told.json").write_text(json.dumps(told), encoding="utf-8")
    words = ["--predictions", str(tmp_path / "told.json"), "--data", str(tmp_path / "data")]
    assert run_command(["evaluate", *words]) == 0
    out = capsys.readouterr().out
    assert re.search(r"cider_plain_tokens +\d", out)
    assert "left out are CIDEr, BLEU, METEOR and ROUGE-L: " in out
    assert "missing (" in out
    assert "cider_plain_tokens of 2 pictures means nothing" in out
    assert run_command(["evaluate", *words, "--scores", "[word_f1]"]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == []


def test_a_file_that_a_score_needs_is_asked_for(world: Path, tmp_path: Path) -> None:
    recipe = world_recipe(world, tmp_path)
    task = GQA(evaluate=["shards/gqa-val"], choices="eval/absent.json")
    with pytest.raises(ValueError, match=r"^tasks\.gqa\.choices: eval/absent\.json is neither"):
        evaluation_sources(replace(recipe, tasks={"gqa": task}))


def evaluate_run(run: Path) -> str:
    """What `vlds evaluate` prints on a rank."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        assert run_command(["evaluate", "--run", str(run)]) == 0
    return printed.getvalue()


@pytest.mark.slow
@pytest.mark.skipif(coco_package.missing() is not None, reason=str(coco_package.missing()))
def test_evaluate_gives_more_scores_than_training(
    world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    recipe = captions_recipe(world, tmp_path / "run")
    recipe = replace(recipe, training=replace(recipe.training, steps=1, save_every=1))
    assert ranks2.run(run_recipe, recipe, timeout=120) == [0, 0]
    first, *others = ranks2.run(evaluate_run, tmp_path / "run", timeout=300)
    assert others == [""]
    shown = re.findall(r"^  (\S+) +\d\.\d{4}$", first, re.MULTILINE)
    assert shown == [
        "CIDEr", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "word_f1",
    ]  # fmt: skip
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8")
    assert '"CIDEr"' in metrics
    assert "METEOR" not in metrics
    assert isinstance(recipe.tasks["caption"], Caption)

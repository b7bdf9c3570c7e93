"""Six data sets from their official files to scores, in one run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.cli import main as data_prep
from tests.toys import official_sets as made
from tests.toys.rank_jobs import run_recipe
from tests.toys.rank_pool import RankPool
from tests.toys.recipes import with_model
from tests.toys.world import world_recipe
from vlds.models.backbones import T5
from vlds.schema import Decoding
from vlds.tasks import VQA, Caption, DirectAnswer, Grounding, MultipleChoice, Refer, Task, TextVQA
from vlds.tasks.metrics.plain_scores import plain

SPLITS = {"okvqa": "val", "aokvqa": "val", "textvqa": "val", "scienceqa": "test",
          "refcoco": "testA", "flickr30k": "test"}  # fmt: skip


def pack(folder: Path) -> dict[str, list[str]]:
    """Data set -> its shards."""
    for name, split in SPLITS.items():
        src = folder / "official" / name
        getattr(made, f"write_{name}")(src)
        words = [name, "--src", str(src), "--split", split, "--out", str(folder / name)]
        assert data_prep([*words, "--workers", "1"]) == 0
    return {name: [str(folder / name)] for name in SPLITS}


@pytest.mark.slow
def test_official_files_train_and_are_scored(world: Path, ranks2: RankPool, tmp_path: Path) -> None:
    shards, words = pack(tmp_path), str(tmp_path / "spiece.model")
    folders = [folder for of_set in shards.values() for folder in of_set]
    assert data_prep(["tokenizer", *folders, "--out", words, "--vocab-size", "90"]) == 0
    sizes = json.loads((world / "t5.json").read_text("utf-8")) | {"vocab_size": 200}
    (tmp_path / "t5.json").write_text(json.dumps(sizes), "utf-8")
    # So small a tokenizer has no piece for a letter with the blank before it.
    written = Decoding(max_new_tokens=4)
    tasks: dict[str, Task] = {
        "okvqa": VQA(train=shards["okvqa"], evaluate=shards["okvqa"]),
        "choice": MultipleChoice(
            train=shards["aokvqa"], evaluate=shards["aokvqa"], decoding=written
        ),
        "direct": DirectAnswer(train=shards["aokvqa"], evaluate=shards["aokvqa"]),
        "textvqa": TextVQA(train=shards["textvqa"], evaluate=shards["textvqa"]),
        "scienceqa": MultipleChoice(
            train=shards["scienceqa"], evaluate=shards["scienceqa"], decoding=written
        ),
        "boxes": Grounding(train=shards["refcoco"], evaluate=shards["refcoco"]),
        "pointers": Refer(train=shards["refcoco"], evaluate=shards["refcoco"]),
        "flickr30k": Caption(train=shards["flickr30k"], evaluate=shards["flickr30k"]),
    }
    recipe = with_model(
        replace(world_recipe(world, tmp_path / "run"), tasks=tasks),
        backbone=T5(
            config=str(tmp_path / "t5.json"), tokenizer=words, extra_tokens=0, visual_tokens=36
        ),
    )
    assert ranks2.run(run_recipe, recipe, timeout=120) == [0, 0]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    scores = json.loads(lines[-1])["scores"]
    firsts = {name: next(iter(plain(of_task))) for name, of_task in scores.items()}
    assert firsts.pop("flickr30k") in ("CIDEr", "cider_plain_tokens", "word_f1")
    assert firsts == {
        "okvqa": "vqa_accuracy",
        "choice": "accuracy",
        "direct": "vqa_accuracy_direct",
        "textvqa": "vqa_accuracy_textvqa",
        "scienceqa": "accuracy",
        "boxes": "accuracy",
        "pointers": "accuracy",
    }
    assert "accuracy/subject/social science" in scores["scienceqa"]
    assert all(0 <= score <= 1 for name in firsts for score in plain(scores[name]).values())

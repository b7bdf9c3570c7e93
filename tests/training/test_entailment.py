"""SNLI-VE from its files to scores: packed, read with their own tokenizer, trained, compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.cli import main as data_prep
from tests.toys.files import read_lines
from tests.toys.models import backbone as toy_backbone
from tests.toys.models import build
from tests.toys.rank_jobs import run_recipe
from tests.toys.rank_pool import RankPool
from tests.toys.recipes import with_model
from tests.toys.world import COLOURS, picture, world_recipe
from vlds.models.backbones import T5
from vlds.schema import Decoding
from vlds.tasks import NLVR2, Entailment, MultipleChoice, Task
from vlds.tasks.metrics.plain_scores import plain, split
from vlds.training.run import check_choices

LABELS = {"red": "entailment", "green": "neutral", "blue": "contradiction"}


def write_snli_ve(folder: Path) -> None:
    """Twelve pictures of one colour with a sentence each."""
    (folder / "flickr30k-images").mkdir(parents=True)
    rows = []
    for number in range(12):
        colour = list(COLOURS)[number % 3]
        (folder / "flickr30k-images" / f"{number}.jpg").write_bytes(picture(colour, number))
        sentence = {"sentence2": f"the picture {number} is red", "gold_label": LABELS[colour]}
        row = {"pairID": f"{number}#0r1", "Flickr30K_ID": str(number), **sentence}
        rows.append(json.dumps(row))
    (folder / "snli_ve_dev.jsonl").write_text("\n".join(rows), encoding="utf-8")


@pytest.mark.slow
def test_official_files_train_and_are_scored(world: Path, ranks2: RankPool, tmp_path: Path) -> None:
    write_snli_ve(tmp_path / "src")
    shards, words = str(tmp_path / "shards"), str(tmp_path / "spiece.model")
    pack = ["snli-ve", "--src", str(tmp_path / "src"), "--split", "dev", "--out", shards]
    assert data_prep(pack) == 0
    assert data_prep(["tokenizer", shards, "--out", words, "--vocab-size", "90"]) == 0
    recipe = world_recipe(world, tmp_path / "run")
    sizes = json.loads((world / "t5.json").read_text("utf-8")) | {"vocab_size": 200}
    (tmp_path / "t5.json").write_text(json.dumps(sizes), "utf-8")
    recipe = with_model(
        replace(recipe, tasks={"snli_ve": Entailment(train=[shards], evaluate=[shards])}),
        backbone=T5(
            config=str(tmp_path / "t5.json"), tokenizer=words, extra_tokens=0, visual_tokens=4
        ),
    )
    assert ranks2.run(run_recipe, recipe, timeout=120) == [0, 0]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    scores = json.loads(lines[-1])["scores"]["snli_ve"]
    assert list(plain(scores)) == ["accuracy"]
    cells = {split(name): score for name, score in scores.items()}
    by_label = {cell[2]: score for cell, score in cells.items() if cell and cell[1] == "label"}
    assert set(by_label) == set(LABELS.values())
    assert sum(by_label.values()) / 3 == pytest.approx(scores["accuracy"])
    file = tmp_path / "run" / "predictions" / "step-00000010" / "snli_ve.jsonl"
    predicted = [line["prediction"] for line in read_lines(file)]
    assert len(predicted) == 12
    assert set(predicted) <= set(LABELS.values())


def test_words_that_begin_alike_are_refused_before_training(world: Path, tmp_path: Path) -> None:
    model = build(toy_backbone(T5, tmp_path))
    recipe = world_recipe(world, tmp_path)
    alike = NLVR2(evaluate=["shards/x"], decoding=Decoding(choices=("w7 w8", "w7")))
    with pytest.raises(
        ValueError, match=r"tasks\.nlvr\.decoding\.choices: w7 w8, w7 do not differ"
    ):
        check_choices(replace(recipe, tasks={"nlvr": alike}), model)
    check_choices(replace(recipe, tasks={"nlvr": replace(alike, evaluate=[])}), model)


@pytest.mark.parametrize("family", ["t5", "gpt2"])
@pytest.mark.parametrize("task", [Entailment(), MultipleChoice()], ids=["labels", "letters"])
def test_real_tokenizers_tell_the_words_apart(family: str, task: Task, shared: Path) -> None:
    from vlds.models.backbones import Bart

    folder = str(shared / "data/tokenizers" / family)
    source = T5(path="t5-base", tokenizer=folder) if family == "t5" else Bart(
        path="facebook/bart-base", tokenizer=folder
    )  # fmt: skip
    tokenizer = source.load_tokenizer()
    choices = task.decoding.choices or ()
    firsts = {tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in choices}
    assert len(firsts) == len(choices) > 2

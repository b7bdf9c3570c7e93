"""What a run says about its data and its length before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from tests.toys.class_folders import write_classes
from tests.toys.files import write
from tests.toys.kinds import kind_recipe
from tests.toys.own_rows import pack_rows, photos
from vlds.data.shards.store import open_dataset
from vlds.data.streams.source import Source
from vlds.evaluation.evaluator import cut_texts, unknown_words
from vlds.evaluation.sources import training_sources
from vlds.tasks import VQA, ImageClass
from vlds.training.overlap import absent_classes
from vlds.training.run import too_often


def test_classes_that_one_split_lacks(tmp_path: Path) -> None:
    def source(name: str, labels: Sequence[str | None]) -> Source:
        folder = write_classes(tmp_path / name, labels)
        return Source("classes", ImageClass(), [open_dataset(str(folder))])

    whole = source("whole", ["ant", "cat", "zebra"])
    part = source("part", ["ant", None, "cat"])
    assert list(absent_classes([whole], [whole])) == []
    assert list(absent_classes([part], [whole])) == [
        "tasks.classes.train: no picture of 1 of 3 classes ('zebra'); they cannot be learned, and "
        "count as wrong"
    ]
    assert list(absent_classes([whole], [part])) == [
        "tasks.classes.evaluate: no picture of 1 of 3 classes ('zebra'); its scores say nothing "
        "about them"
    ]


def test_more_than_a_hundred_epochs() -> None:
    assert list(too_often({"vqa": 100.0, "caption": 3.5})) == []
    (line,) = too_often({"vqa": 10_168.2, "caption": 3.5})
    assert line.startswith("more than 100 epochs of vqa (10,168): a model learns so few")


@pytest.mark.parametrize(("kind", "knows_bytes"), [("joint", False), ("image_text", True)])
def test_words_that_the_tokenizer_does_not_know(
    kind: str, knows_bytes: bool, world: Path, tmp_path: Path
) -> None:
    recipe = kind_recipe(kind, world, tmp_path)
    processor = recipe.model.load_processor()
    tokenizer = getattr(processor, "tokenizer", processor)
    sources = training_sources(recipe)
    assert unknown_words(sources, tokenizer) == []
    photos(tmp_path / "photos", "a.jpg", "b.jpg")
    rows = write(
        tmp_path / "rows.csv", "image,question,answer\na.jpg,what?,\u0436\nb.jpg,what?,red\n"
    )
    assert pack_rows(rows, tmp_path / "photos", tmp_path / "shards") == 0
    own = Source("vqa", VQA(), [open_dataset(str(tmp_path / "shards"))])
    told = [
        "tasks.vqa: the model's tokenizer does not know words or signs of 1 of the first 2 "
        "answers, such as '\u0436'; the model can never write them: name another model or tokenizer"
    ]
    assert unknown_words([own], tokenizer) == ([] if knows_bytes else told)


def test_answers_that_cannot_be_written(world: Path, tmp_path: Path) -> None:
    recipe = kind_recipe("joint", world, tmp_path)
    task = replace(recipe.tasks["vqa"], max_prompt_tokens=100, max_target_tokens=100)

    def told(most: int, split: Literal["test"] | None = None) -> list[str]:
        limited = replace(task, decoding=replace(task.decoding, max_new_tokens=most))
        own = replace(recipe, tasks={"vqa": limited})
        collator = own.model.collator(own.model.load_processor())
        return cut_texts(training_sources(own), collator, split)

    assert told(100) == []
    (line,) = told(1)
    assert line.startswith("tasks.vqa.decoding.max_new_tokens: 1 is too few to write ")
    assert told(1, "test") == [f"{line} of tasks.vqa.test"]

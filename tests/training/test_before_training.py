"""What a run says about its data, length, limits and precision before the first step."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from tests.toys.class_folders import write_classes
from tests.toys.files import write
from tests.toys.kinds import ALL_KINDS, kind_recipe
from tests.toys.own_rows import pack_rows, photos
from tests.toys.recipes import with_task
from vlds.data.shards.store import open_dataset
from vlds.data.streams.source import Source
from vlds.evaluation.evaluator import cut_texts, num_cut, turns_left_out, unknown_words
from vlds.evaluation.sources import training_sources
from vlds.recipe.config import Recipe
from vlds.schema import Turn
from vlds.tasks import VQA, ImageClass
from vlds.training import prepare
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


def told(recipe: Recipe, split: Literal["test"] | None = None) -> list[str]:
    """What is said of the texts that a recipe's limits cut."""
    collator = recipe.model.collator(recipe.model.load_processor())
    return cut_texts(training_sources(recipe), collator, split)


def test_answers_that_cannot_be_written(world: Path, tmp_path: Path) -> None:
    recipe = kind_recipe("joint", world, tmp_path)
    decoding = recipe.tasks["vqa"].decoding
    enough, few = (
        with_task(recipe, "vqa", max_prompt_tokens=100, max_target_tokens=100,
                  decoding=replace(decoding, max_new_tokens=most))
        for most in (100, 1)
    )  # fmt: skip
    few, enough = (replace(each, tasks={"vqa": each.tasks["vqa"]}) for each in (few, enough))
    assert told(enough) == []
    (line,) = told(few)
    assert line.startswith("tasks.vqa.decoding.max_new_tokens: 1 is too few to write ")
    assert told(few, "test") == [f"{line} of tasks.vqa.test"]


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_of_each_kind(kind: str, world: Path, tmp_path: Path) -> None:
    recipe = kind_recipe(kind, world, tmp_path)
    long = {
        name: replace(task, max_prompt_tokens=100, max_target_tokens=100)
        for name, task in recipe.tasks.items()
    }
    assert told(replace(recipe, tasks=long)) == []
    short = long | {"vqa": replace(long["vqa"], max_prompt_tokens=2, max_target_tokens=1)}
    prompts, answers = told(replace(recipe, tasks=short))
    assert prompts == "tasks.vqa.max_prompt_tokens: 2 cuts 48 of the first 48 prompts"
    assert answers == "tasks.vqa.max_target_tokens: 1 cuts 48 of the first 48 answers"


def test_only_longer_ones_count() -> None:
    def lengths(texts: list[tuple[str, int]]) -> list[int]:
        return [min(len(text), most) for text, most in texts]

    assert num_cut(lengths, ["", "abc", "abcd", "abcde"], 4) == 1
    assert num_cut(lengths, [], 4) == 0


class Words:
    """Counts words."""

    def turns_length(self, turns: Sequence[Turn]) -> int:
        return sum(len(text.split()) for turn in turns for text in turn.texts)


def test_turns_that_are_left_out_of_conversations(world: Path, tmp_path: Path) -> None:
    recipe = kind_recipe("joint", world, tmp_path)
    (source, *_) = training_sources(recipe)
    talks = [
        [Turn("user", ("a b c",)), Turn("assistant", ("d",)), Turn("user", ("e f",))],
        [Turn("user", ("a b c d e f g",))],
        [Turn("user", ("a",))],
    ]
    short = replace(source, task=replace(source.task, max_prompt_tokens=4))
    assert list(turns_left_out(short, talks, Words())) == [  # type: ignore[arg-type]
        "tasks.vqa.max_prompt_tokens: 4 leaves out 2 turns, the oldest, of 1 of the first 3 "
        "conversations",
        "tasks.vqa.max_prompt_tokens: 4 cuts the last question of 1 of the first 3 conversations",
    ]


@pytest.mark.parametrize(
    ("precision", "slowdown", "message"),
    [
        ("bf16", 39.6, "bf16 products take 40 times as long .*--training.precision fp32"),
        ("bf16", 0.6, None),
        ("fp32", None, None),  # never measured
    ],
)
def test_what_a_cpu_emulates_is_told(
    precision: str, slowdown: float | None, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = pytest.fail if slowdown is None else lambda dtype: slowdown
    monkeypatch.setattr(prepare, "slowdown", measured)
    said = prepare.check_precision(precision, torch.device("cpu"))
    assert re.search(message, said or "") if message else said is None


def test_what_a_gpu_emulates_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "emulates_bf16", lambda device: True)
    monkeypatch.setattr(prepare, "device_name", lambda device: "Tesla T4")
    said = prepare.check_precision("bf16", torch.device("cuda"))
    assert said is not None
    assert said.startswith("training.precision: Tesla T4 has no instructions for bf16")
    assert "--training.precision fp16" in said
    monkeypatch.setattr(prepare, "slowdown", lambda dtype: pytest.fail("measured"))
    monkeypatch.setattr(prepare, "emulates_bf16", lambda device: False)
    assert prepare.check_precision("bf16", torch.device("cuda")) is None


def test_a_precision_is_as_fast_as_itself() -> None:
    assert 0.1 < prepare.slowdown(torch.float32) < 10

"""What a run says about its data, length, limits and precision before the first step."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from data_prep.cli import main
from tests.toys.class_folders import write_classes
from tests.toys.files import write
from tests.toys.kinds import kind_recipe
from tests.toys.own_rows import pack_rows, photos, questions
from tests.toys.recipes import with_task
from vlds.data.shards.store import open_dataset
from vlds.data.streams.sequential import StreamedSource, open_streamed
from vlds.data.streams.source import Source
from vlds.evaluation.evaluator import cut_texts, turns_left_out, unknown_words
from vlds.evaluation.sources import training_sources
from vlds.recipe.config import Recipe
from vlds.schema import Turn
from vlds.tasks import VQA, ImageClass
from vlds.training import overlap, prepare
from vlds.training.overlap import absent_classes, compared, seen_in_training
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


@pytest.fixture
def packed(tmp_path: Path) -> dict[str, Path]:
    """Four pictures; three of them, of which one has another name; another one."""
    folder = photos(tmp_path / "photos", *(f"{name}.jpg" for name in "abcd"), "other.jpg")
    (folder / "copy.jpg").write_bytes((folder / "a.jpg").read_bytes())
    sets = {"whole": "abcd", "part": ("b", "copy", "c"), "new": ("other",)}
    for name, pictures in sets.items():
        rows = write(tmp_path / f"{name}.csv", questions(*pictures))
        assert pack_rows(rows, folder, tmp_path / name) == 0
    return {name: tmp_path / name for name in sets}


def source(*folders: Path) -> Source:
    return Source("vqa", VQA(), [open_dataset(str(folder)) for folder in folders])


def seen(train: Sequence[Path], evaluate: Sequence[Path]) -> list[str]:
    return list(seen_in_training([source(*train)], [source(*evaluate)]))


def test_rows_word_for_word(packed: dict[str, Path], tmp_path: Path) -> None:
    """Of a picture in both, questions may differ; rows without pictures are told by their words."""
    (line,) = seen([packed["whole"]], [packed["part"]])
    assert ", and 1 of its rows word for word; scores" in line  # of c, the third in both
    again = pack_rows(
        write(tmp_path / "again.csv", questions("a", "other", "c")), tmp_path / "photos",
        tmp_path / "again",
    )  # fmt: skip
    assert again == 0
    (line,) = seen([packed["whole"]], [tmp_path / "again"])
    assert "2 of its pictures are in training data too, such as that of " in line
    assert ", and 2 of its rows word for word; scores" in line
    for name, rows in (("talk", ["What is up?", "Is it late?"]), ("more", ["Is it late?"])):
        turns = [{"question": text, "answer": "yes"} for text in rows]
        file = write(tmp_path / f"{name}.json", turns)
        words = ["--annotations", str(file), "--out", str(tmp_path / name)]
        assert main(["chat", *words]) == 0
    (line,) = seen([tmp_path / "talk"], [tmp_path / "more"])
    assert line.startswith(
        "tasks.vqa.evaluate: 1 of its rows are in training data too, word for word, such as one of "
    )


def test_rows_of_one_file_whose_pictures_were_stored_otherwise(
    packed: dict[str, Path], tmp_path: Path
) -> None:
    small = tmp_path / "small"
    more = ("--image-size", "10")
    assert pack_rows(tmp_path / "whole.csv", tmp_path / "photos", small, *more) == 0
    (line,) = seen([packed["whole"]], [small])
    assert line.startswith("tasks.vqa.evaluate: 4 of its samples are made from the same rows as ")
    # Another file's pictures may have the same names.
    other = write(tmp_path / "other" / "rows.csv", questions("a", "b", "c", "d", "e")[:-1])
    names = [f"{name}.jpg" for name in "eabcd"]
    assert pack_rows(other, photos(tmp_path / "others", *names), tmp_path / "new2") == 0
    assert seen([small], [tmp_path / "new2"]) == []


def test_data_for_the_test_at_the_end(packed: dict[str, Path], world: Path, tmp_path: Path) -> None:
    recipe = kind_recipe("joint", world, tmp_path)

    def lines(*folders: str) -> list[str]:
        task = replace(recipe.tasks["vqa"], train=[str(packed["whole"])], test=list(folders))
        own = replace(recipe, tasks={"vqa": task})
        tested, notices = overlap.test_sources(own)
        return [*notices, *compared(training_sources(own), tested)]

    (line,) = lines(str(packed["part"]), "s3://bucket/is-not-fetched")
    assert line.startswith("tasks.vqa.test: 3 of its pictures are in training data too, such as")
    assert lines(str(packed["new"])) == []
    (line,) = lines(str(tmp_path / "missing"))
    assert line.startswith("tasks.vqa.test: data set ")
    assert line.endswith("the run goes on: it does not read them")


def test_groups(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", *(f"{name}.jpg" for name in "abcd"))
    for name, cells in (("learned", ("a,p1", "b,p2")), ("scored", ("c,p2", "d,p3"))):
        lines = [f"{cell[0]}.jpg,what?,it,{cell[2:]}" for cell in cells]
        table = "\n".join(["image,question,answer,patient", *lines])
        file = write(tmp_path / f"{name}.csv", table)
        assert pack_rows(file, folder, tmp_path / name, "--group-field", "patient") == 0
    (line,) = seen([tmp_path / "learned"], [tmp_path / "scored"])
    assert line.startswith(
        "tasks.vqa.evaluate: 1 of its groups are in training data too, such as 'p2' of 'patient' "
        "(in tasks.vqa.train); "
    )


def test_of_streamed_shards_the_folder_is_compared(packed: dict[str, Path], tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(packed["whole"])
    (shard,) = packed["whole"].glob("*.tar")
    for location in (link, shard):
        streamed = StreamedSource("vqa", VQA(), [open_streamed(str(location), ("vqa",), None)])
        (line,) = seen_in_training([streamed], [source(packed["whole"], packed["part"])])
        assert line.startswith(f"tasks.vqa.evaluate: {packed['whole']} is in tasks.vqa.train too")

"""Data and pictures on which a run is scored and trained are told before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_prep.cli import main
from tests.toys.files import write
from tests.toys.kinds import kind_recipe
from tests.toys.own_rows import pack_rows, photos, questions
from vlds.data.shards.store import Subset, open_dataset
from vlds.data.streams.sequential import StreamedSource, open_streamed
from vlds.data.streams.source import Source
from vlds.evaluation.sources import training_sources
from vlds.tasks import VQA
from vlds.training import overlap
from vlds.training.overlap import compared, seen_in_training


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


def told(train: Sequence[Path], evaluate: Sequence[Path]) -> list[str]:
    return list(seen_in_training([source(*train)], [source(*evaluate)]))


def test_data_and_pictures(packed: dict[str, Path]) -> None:
    (line,) = told([packed["whole"]], [packed["whole"]])
    assert line == (
        f"tasks.vqa.evaluate: {packed['whole']} is in tasks.vqa.train too; its scores say nothing "
        "about new data"
    )
    (line,) = told([packed["whole"]], [packed["part"], packed["new"]])
    assert line.startswith("tasks.vqa.evaluate: 3 of its pictures are in training data too, such")
    assert told([packed["whole"]], [packed["new"]]) == []


def test_rows_word_for_word(packed: dict[str, Path], tmp_path: Path) -> None:
    """Of a picture in both, questions may differ; rows without pictures are told by their words."""
    (line,) = told([packed["whole"]], [packed["part"]])
    assert ", and 1 of its rows word for word; scores" in line  # of c, the third in both
    again = pack_rows(
        write(tmp_path / "again.csv", questions("a", "other", "c")), tmp_path / "photos",
        tmp_path / "again",
    )  # fmt: skip
    assert again == 0
    (line,) = told([packed["whole"]], [tmp_path / "again"])
    assert "2 of its pictures are in training data too, such as that of " in line
    assert ", and 2 of its rows word for word; scores" in line
    for name, rows in (("talk", ["What is up?", "Is it late?"]), ("more", ["Is it late?"])):
        turns = [{"question": text, "answer": "yes"} for text in rows]
        file = write(tmp_path / f"{name}.json", turns)
        words = ["--annotations", str(file), "--out", str(tmp_path / name)]
        assert main(["chat", *words]) == 0
    (line,) = told([tmp_path / "talk"], [tmp_path / "more"])
    assert line.startswith(
        "tasks.vqa.evaluate: 1 of its rows are in training data too, word for word, such as one of "
    )


def test_rows_of_one_file_whose_pictures_were_stored_otherwise(
    packed: dict[str, Path], tmp_path: Path
) -> None:
    small = tmp_path / "small"
    more = ("--image-size", "10")
    assert pack_rows(tmp_path / "whole.csv", tmp_path / "photos", small, *more) == 0
    (line,) = told([packed["whole"]], [small])
    assert line.startswith("tasks.vqa.evaluate: 4 of its samples are made from the same rows as ")
    # Another file's pictures may have the same names.
    other = write(tmp_path / "other" / "rows.csv", questions("a", "b", "c", "d", "e")[:-1])
    names = [f"{name}.jpg" for name in "eabcd"]
    assert pack_rows(other, photos(tmp_path / "others", *names), tmp_path / "new2") == 0
    assert told([small], [tmp_path / "new2"]) == []


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
    (line,) = told([tmp_path / "learned"], [tmp_path / "scored"])
    assert line.startswith(
        "tasks.vqa.evaluate: 1 of its groups are in training data too, such as 'p2' of 'patient' "
        "(in tasks.vqa.train); "
    )


def test_large_sets_are_not_read(packed: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "MOST_COMPARED", 1000)
    assert told([packed["whole"]], [packed["part"]]) == []
    assert len(told([packed["whole"]], [packed["whole"]])) == 1


def test_damaged_samples_are_left_to_the_run(packed: dict[str, Path]) -> None:
    (shard,) = packed["whole"].glob("*.tar")
    data = bytearray(shard.read_bytes())
    data[:512] = bytes(512)
    shard.write_bytes(data)
    (line,) = told([packed["whole"]], [packed["part"]])
    assert "of its pictures are in training data too" in line
    assert main(["verify", str(packed["whole"])]) == 1
    (line,) = told([packed["whole"]], [packed["part"]])
    assert "of its pictures are in training data too" in line


def test_of_streamed_shards_the_folder_is_compared(packed: dict[str, Path], tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(packed["whole"])
    (shard,) = packed["whole"].glob("*.tar")
    for location in (link, shard):
        streamed = StreamedSource("vqa", VQA(), [open_streamed(str(location), ("vqa",), None)])
        (line,) = seen_in_training([streamed], [source(packed["whole"], packed["part"])])
        assert line.startswith(f"tasks.vqa.evaluate: {packed['whole']} is in tasks.vqa.train too")


def test_of_chosen_samples_their_share_of_the_bytes_counts(
    packed: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few samples of a set that is too large are compared all the same."""
    whole = open_dataset(str(packed["whole"]))
    size = sum(shard.bytes for shard in whole.info.shards)
    monkeypatch.setattr(overlap, "MOST_COMPARED", size // 2 + 1)
    evaluation = [source(packed["new"])]
    assert list(seen_in_training([source(packed["whole"])], evaluation)) == []
    for chosen, is_read in (([0, 1], True), ([0, 1, 2], False)):
        few = Source("vqa", VQA(), [Subset(whole, np.array(chosen))])
        again = Source("vqa", VQA(), [Subset(whole, np.array([0]))])
        assert len(list(seen_in_training([few], [again]))) == is_read

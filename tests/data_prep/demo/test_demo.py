"""The demo's data: right answers, four official layouts, the same bytes for the same seed."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import sentencepiece

from data_prep.cli import main
from data_prep.demo.command import WorldWriter
from data_prep.demo.text import (
    HOME_PHRASES,
    PHRASES,
    SceneQuestion,
    ask_gqa,
    ask_vqa,
)
from data_prep.demo.world import (
    COLORS,
    FIGURES,
    PIXELS,
    SHAPES,
    WORLDS,
    Scene,
    Thing,
    World,
)
from tests.toys.class_folders import classes, labels
from tests.toys.files import read_lines, write
from tests.toys.shards import packed

SCENES = 200
FOLDERS = [
    f"{world}/{name}"
    for world in ("home", "shifted")
    for name in ("vqav2-train", "vqav2-val", "gqa-train", "gqa-val", "regions-train",
                 "regions-val", "nlvr2-train", "nlvr2-dev",
                 "coco-train", "coco-val")
]  # fmt: skip
CLASS_FOLDERS = [
    f"classes/{name}-{split}" for name in ("looks", "figures") for split in ("train", "val", "test")
]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    assert main(["demo", "--out", str(out), "--scenes", str(SCENES)]) == 0
    return out


def test_cells_are_named_by_what_is_in_them(demo: Path) -> None:
    regions = packed(demo / "shards/home/regions-train")
    questions = packed(demo / "shards/home/gqa-train")
    assert regions.keys() == questions.keys()
    for sample_id, sample in regions.items():
        (annotation,) = sample.annotations
        expected = [""] * 9
        for thing in questions[sample_id].extra["source"]["objects"]:
            column, row = (thing[place] // (PIXELS // 3) for place in "xy")
            expected[3 * row + column] = f"{thing['attributes'][0]} {thing['name']}"
        assert annotation["regions"] == expected
        assert sample.images == questions[sample_id].images


@pytest.mark.parametrize("name", ["looks", "figures"])
def test_classes_are_colors_of_shapes(demo: Path, name: str) -> None:
    """Base and new classes, the halves of the list, have the same shapes in other colors."""
    shapes = {"looks": SHAPES, "figures": FIGURES}[name]
    parts = {split: demo / f"shards/classes/{name}-{split}" for split in ("train", "val", "test")}
    assert {classes(folder) for folder in parts.values()} == {
        tuple(sorted(f"{color} {shape}" for color in COLORS for shape in shapes))
    }
    base, new = (
        [label.split() for label in half]
        for half in (classes(parts["train"])[:12], classes(parts["train"])[12:])
    )
    assert {color for color, _ in base} == {"blue", "cyan", "green"}
    assert {color for color, _ in base}.isdisjoint(color for color, _ in new)
    assert {shape for _, shape in base} == {shape for _, shape in new} == set(shapes)
    pictures = [bytes(s.images[0]) for folder in parts.values() for s in packed(folder).values()]
    assert len(set(pictures)) == len(pictures) == 24 * 5
    assert set(Counter(labels(parts["test"]).values()).values()) == {2}


def test_train_and_val_share_no_picture(demo: Path) -> None:
    for world in ("home", "shifted"):
        seen: dict[str, set[bytes]] = {"train": set(), "val": set()}
        for name in (folder for folder in FOLDERS if folder.startswith(world)):
            part = "train" if name.endswith("train") else "val"
            for sample in packed(demo / "shards" / name).values():
                seen[part].update(sample.images)
        assert seen["val"]
        assert not seen["train"] & seen["val"]


@pytest.mark.slow
def test_the_seed_decides_every_byte(demo: Path, tmp_path: Path) -> None:
    for name, seed in (("again", "0"), ("other", "1")):
        main(["demo", "--out", str(tmp_path / name), "--scenes", str(SCENES), "--seed", seed])
    first, again, other = (
        digests(folder) for folder in (demo, tmp_path / "again", tmp_path / "other")
    )
    assert first == again
    assert first.keys() == other.keys()
    assert {str(Path(name).parent) for name in first if name.endswith(".tar")} == {
        f"shards/{name}" for name in (*FOLDERS, *CLASS_FOLDERS)
    }
    changed = sum(first[name] != other[name] for name in first if name.endswith(".tar"))
    assert changed == len(FOLDERS) + len(CLASS_FOLDERS)


def digests(folder: Path) -> dict[str, str]:
    wanted = [*folder.rglob("*.tar"), folder / "text.txt", folder / "spiece.model"]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in wanted
    }


def test_tokenizer_knows_every_word_as_one_piece(demo: Path) -> None:
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(demo / "spiece.model"))
    assert [pieces.id_to_piece(number) for number in range(3)] == ["<pad>", "</s>", "<unk>"]
    text = (demo / "text.txt").read_text()
    words = {word.strip(".?:") for word in text.split()}
    assert {"crimson", "true", "small", "vqa"} <= words
    assert [word for word in words if len(pieces.encode(word)) != 1] == []
    assert pieces.unk_id() not in pieces.encode("how would you describe 57 zebras?"[:-1])


def scene_of(*looks: tuple[str, str], columns: tuple[int, ...]) -> Scene:
    return tuple(
        Thing(color, shape, "small", column, 0, (0, 0))
        for (color, shape), column in zip(looks, columns, strict=True)
    )


def answers_to(asked: Iterable[SceneQuestion]) -> dict[str, str]:
    return {question.question: question.answer for question in asked}


def test_answers_are_true_of_the_scene() -> None:
    scene = scene_of(("red", "circle"), ("blue", "square"), ("blue", "circle"), columns=(0, 1, 2))
    answers = answers_to(q for n in range(60) for q in ask_vqa(scene, HOME_PHRASES, Random(n)))
    expected = {
        "what color is the square?": "blue",
        "what shape is the red object?": "circle",
        "how many circles are there?": "2",
        "how many blue objects are there?": "2",
        "how many objects are there?": "3",
        "how many triangles are there?": "0",
        "is there a red circle?": "yes",
        "is there a red square?": "no",
    }
    assert expected.items() <= answers.items()
    assert "what color is the circle?" not in answers  # there are two


def test_logic_and_places() -> None:
    scene = scene_of(("red", "circle"), ("blue", "square"), columns=(0, 2))
    answers = answers_to(q for n in range(200) for q in ask_gqa(scene, HOME_PHRASES, Random(n)))
    assert answers["what is left of the blue square?"] == "circle"
    assert "what is left of the red circle?" not in answers
    assert answers["is there a red circle and a blue square?"] == "yes"
    for question, answer in answers.items():
        there = [look in question for look in ("red circle", "blue square")]
        if " or " in question:
            assert answer == ("yes" if any(there) else "no")
        elif " and " in question:
            assert answer == ("yes" if all(there) else "no")


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_statements_are_true_of_the_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: World
) -> None:
    """Every sentence is checked against the scenes that were drawn for it."""
    drawn: dict[str, Scene] = {}
    keep = lambda self, place, scene: drawn.__setitem__(place.stem, scene)  # noqa: E731
    monkeypatch.setattr(WorldWriter, "_write_picture", keep)
    (tmp_path / "nlvr2").mkdir()
    WorldWriter(tmp_path, world, PHRASES[world.name], Random(5)).nlvr2(60, 1)
    rows = read_lines(tmp_path / "nlvr2/train.json")
    assert len(rows) == 60 * 2 * 3
    assert 0.38 < sum(row["label"] == "True" for row in rows) / len(rows) < 0.62
    for row in rows:
        pair = row["identifier"].rpartition("-")[0]
        look = tuple(row["sentence"].rstrip(".").split()[-2:])
        there = [
            any((t.color, t.shape) == look for t in drawn[f"{pair}-img{side}"]) for side in (0, 1)
        ]
        kinds = {
            "both images contain": all(there),
            "either image contains": any(there),
            "the left image contains": there[0],
            "at least one photo lacks": not all(there),
            "no photo shows": not any(there),
            "the first photo lacks": not there[0],
        }
        assert row["label"] == str(kinds[row["sentence"].partition(" a ")[0]])


@pytest.mark.parametrize("name", ["shifted", "classes/looks"])
def test_files_that_were_not_drawn_stay(name: str, tmp_path: Path, refused: Any) -> None:
    kept = write(tmp_path / "official" / name / "thesis.txt", "years of work")
    code = main(["demo", "--out", str(tmp_path), "--scenes", "200"])
    refused(code, "holds files that were not drawn here; name another --out")
    assert kept.read_text() == "years of work"

"""`demo`: drawn pictures in the publishers' file layouts, packed like any other, and a tokenizer.

    OUT/official/WORLD/{coco,gqa,nlvr2}       the layout of a download of the real data sets
    OUT/official/classes/{looks,figures}      pictures in folders of classes (world.py)
    OUT/shards/WORLD/DATASET-SPLIT            vqav2, gqa, regions, nlvr2, coco; train and val
                                              (nlvr2: dev)
    OUT/shards/classes/SET-SPLIT              train, val and test
    OUT/text.txt, OUT/spiece.model            every text of both worlds; a sentencepiece model of it

The seed decides every byte. World `home` is for pretraining, `shifted` for tuning (world.py).
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from vlds.runtime.disk import writable
from vlds.runtime.files import write_whole
from vlds.runtime.terminal import tell
from vlds.runtime.workers import ordered_map

from ..command import add_shard_options, at_least, new_command, shard_options
from ..official.coco import parse_coco_karpathy
from ..official.gqa import parse_gqa
from ..official.nlvr2 import parse_nlvr2
from ..official.vqav2 import parse_vqav2
from ..packed.vocabularies import train_tokenizer
from ..packing.pack import Options, pack
from ..packing.source import SourceSet
from .text import (
    PHRASES,
    Phrases,
    SceneQuestion,
    Statement,
    absent_look,
    ask_gqa,
    ask_vqa,
    caption_scene,
    presence,
    state,
    word_lines,
)
from .world import (
    CLASS_SETS,
    HOME,
    MOST_THINGS,
    SHIFTED,
    WORLDS,
    Look,
    Scene,
    World,
    draw,
    make_scene,
    parse_class_set,
    random_scene,
    regions_of,
    scene_graph,
    write_class_set,
)

RESTVAL_SHARE = 0.05
GQA_QUESTIONS = 3
PAIRS_PER_SET = 2
SENTENCES_PER_SET = 3
VQA_TYPES = {
    "color": {"question_type": "what color is the", "answer_type": "other"},
    "shape": {"question_type": "what shape is the", "answer_type": "other"},
    "count": {"question_type": "how many", "answer_type": "number"},
    "exists": {"question_type": "is there a", "answer_type": "yes/no"},
}
GQA_TYPES = {
    "logicAnd": {"structural": "logical", "semantic": "obj", "detailed": "existAnd"},
    "logicOr": {"structural": "logical", "semantic": "obj", "detailed": "existOr"},
    "left": {"structural": "query", "semantic": "rel", "detailed": "relO"},
}


@dataclass
class WorldWriter:
    """Writes the four data sets of one world below a folder and collects every text."""

    folder: Path
    world: World
    words: Phrases
    rng: Random
    texts: set[str] = field(default_factory=set)

    def coco(self, train: int, val: int) -> None:
        """Write VQAv2 and Karpathy's captions.

        The pictures of restval have captions only, so that VQA's val stays unseen.
        """
        # As in Karpathy's split, pictures of restval lie in val2014.
        restval = int(train * RESTVAL_SHARE)
        plan = [("train", "train2014")] * (train - restval) + [("restval", "val2014")] * restval
        plan += [("val", "val2014")] * val
        asked: dict[str, list[tuple[int, SceneQuestion]]] = {"train2014": [], "val2014": []}
        images = []
        for number, (split, subset) in enumerate(plan):
            scene, image_id = random_scene(self.rng), 1000 + number
            filename = f"COCO_{subset}_{image_id:012d}.jpg"
            self._write_picture(Path("coco", subset, filename), scene)
            if split != "restval":
                questions = ask_vqa(scene, self.words, self.rng)
                asked[subset] += [(image_id, question) for question in questions]
            captions = caption_scene(scene, self.words)
            self.texts.update(captions)
            # Ids go on from picture to picture: of five captions each, picture 2 has 10 to 14.
            sentences = [
                {"tokens": caption.split(), "raw": caption, "imgid": number, "sentid": sentence_id}
                for sentence_id, caption in enumerate(captions, number * len(captions))
            ]
            images.append(
                {
                    "filepath": subset,
                    "sentids": [sentence["sentid"] for sentence in sentences],
                    "filename": filename,
                    "imgid": number,
                    "split": split,
                    "sentences": sentences,
                    "cocoid": image_id,
                }
            )
        for subset, of_subset in asked.items():
            self._write_vqa(subset, of_subset)
        self._write_json("coco/dataset_coco.json", {"dataset": "coco", "images": images})

    def _write_vqa(self, subset: str, asked: Iterable[tuple[int, SceneQuestion]]) -> None:
        head = {
            "info": {"year": 2014, "version": "2.0", "description": f"demo, {self.world.name}"},
            "license": {"name": "CC0-1.0", "url": ""},
            "data_type": "mscoco",
            "data_subtype": subset,
        }
        questions, annotations, seen = [], [], Counter[int]()
        for image_id, question in asked:
            # Picture 1003 has the questions 1003000, 1003001, ...
            ids = {"image_id": image_id, "question_id": image_id * 1000 + seen[image_id]}
            seen[image_id] += 1
            questions.append({**ids, "question": question.question})
            annotations.append({**ids, **_ten_answers(question, self.rng)})
            self.texts.update((question.question, *question.choices))
        self._write_json(
            f"coco/v2_OpenEnded_mscoco_{subset}_questions.json",
            {**head, "task_type": "Open-Ended", "questions": questions},
        )
        self._write_json(
            f"coco/v2_mscoco_{subset}_annotations.json", {**head, "annotations": annotations}
        )

    def gqa(self, train: int, val: int) -> None:
        """Write question dictionaries and scene graphs; ids have leading zeros, as GQA's do."""
        # Ids as long as those of Visual Genome, whose pictures GQA asks about.
        image, question_number = 2_300_000, 0
        for split, count in (("train", train), ("val", val)):
            questions: dict[str, Any] = {}
            graphs: dict[str, Any] = {}
            for _ in range(count):
                image += 1
                asked: list[SceneQuestion] = []
                while len(asked) < GQA_QUESTIONS:  # until it allows those of logic and of places
                    scene = random_scene(self.rng, fewest=2)
                    asked = ask_gqa(scene, self.words, self.rng)
                self._write_picture(Path("gqa/images", f"{image}.jpg"), scene)
                graphs[str(image)] = scene_graph(scene, image * 10, self.words.answers.call)
                for question in asked:
                    question_number += 1
                    questions[f"{question_number:08d}"] = {
                        "imageId": str(image),
                        "question": question.question,
                        "answer": question.answer,
                        "fullAnswer": question.full_answer,
                        "isBalanced": True,
                        "groups": {"global": None, "local": question.kind},
                        "entailed": [],
                        "equivalent": [],
                        "types": GQA_TYPES[question.kind],
                        "semantic": [],
                        "semanticStr": "",
                        "annotations": {"question": {}, "answer": {}, "fullAnswer": {}},
                    }
                    self.texts.update((question.question, *question.choices))
            self._write_json(f"gqa/{split}_balanced_questions.json", questions)
            self._write_json(f"gqa/{split}_sceneGraphs.json", graphs)

    def nlvr2(self, train: int, val: int) -> None:
        """Write sets of two pairs of pictures that share three sentences, as NLVR2 does."""
        for split, count in (("train", train), ("dev", val)):
            rows: list[dict[str, Any]] = []
            for number in range(count):
                # Different looks, so that no two sentences of a set say the same.
                looks: list[Look] = []
                for _ in range(SENTENCES_PER_SET):
                    looks.append(absent_look(set(looks), self.rng))
                statements = [state(look, self.words, self.rng) for look in looks]
                self.texts.update(statement.text for statement in statements)
                for pair in range(PAIRS_PER_SET):
                    name = f"{split}-{number}-{pair}"
                    labels = self._write_pair(name, number, statements)
                    for index, statement in enumerate(statements):
                        row: dict[str, Any] = {
                            "identifier": f"{name}-{index}",
                            "sentence": statement.text,
                            "label": str(labels[index]),
                            "synset": self.words.answers.call(statement.look[1]),
                            "query": statement.kind,
                        }
                        if split == "train":  # in numbered folders, as NLVR2's own
                            row |= {"directory": number % 100}
                        rows.append(row)
            path = self.folder / f"nlvr2/{split}.json"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="ascii")

    def _write_pair(self, name: str, number: int, statements: Sequence[Statement]) -> list[bool]:
        """Choose a label for each statement, and draw two pictures of which the labels are true."""
        labels = [self.rng.random() < 0.5 for _ in statements]
        sides: tuple[list[Look], list[Look]] = ([], [])
        for statement, label in zip(statements, labels, strict=True):
            # A statement that denies is true where the pictures are not as its kind says.
            present = presence(statement.kind, label != self.words.denies, self.rng)
            for side, is_present in zip(sides, present, strict=True):
                side += [statement.look] * is_present
        stated = {statement.look for statement in statements}
        split = name.split("-")[0]
        folder = Path("nlvr2/images/train", str(number % 100))
        if split != "train":
            folder = Path("nlvr2", split)
        for index, side in enumerate(sides):
            # A picture shows at least one thing, and at most as many as a scene.
            fillers = self.rng.randint(0, MOST_THINGS - len(side))
            side += [absent_look(stated, self.rng) for _ in range(max(fillers, not side))]
            self._write_picture(folder / f"{name}-img{index}.png", make_scene(self.rng, side))
        return labels

    def _write_picture(self, place: Path, scene: Scene) -> None:
        path = self.folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(draw(scene, self.world, self.rng))

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        (self.folder / name).write_text(json.dumps(content), encoding="ascii")


def _ten_answers(asked: SceneQuestion, rng: Random) -> dict[str, Any]:
    """Answers of ten people, of whom now and then one or two err."""
    # At least eight agree, so the best answer's score is 1 and others have 0.3 or 0.6.
    dissenters = rng.choices((0, 1, 2), weights=(70, 25, 5))[0]
    wrong = [choice for choice in asked.choices if choice != asked.answer]
    answers = [rng.choice(wrong) for _ in range(dissenters)]
    answers += [asked.answer] * (10 - dissenters)
    rng.shuffle(answers)
    return {
        **VQA_TYPES[asked.kind],
        "multiple_choice_answer": asked.answer,
        "answers": [
            {
                "answer": answer,
                "answer_confidence": "yes" if answer == asked.answer else "maybe",
                "answer_id": number,
            }
            for number, answer in enumerate(answers, 1)
        ],
    }


HOME_SCENES = 12_000
SHIFTED_TO_HOME = 5 / 12
"""The shifted world is smaller: tuning should need little data."""
COCO_SHARE, GQA_SHARE = 0.32, 0.30
"""Shares of the scenes; NLVR2's pairs get the rest."""
VAL_SHARES = {HOME.name: 0.08, SHIFTED.name: 0.2}
"""Shares of scenes kept for evaluation; the shifted world needs 300 captioned pictures."""
FEWEST_SCENES = 200
"""With fewer, a split could be empty."""
VOCABULARY = 224
"""Upper limit of the pieces; the text has fewer words."""


def make_demo(out: Path, seed: int, scenes: int, options: Options, only: str | None) -> None:
    """Draw both worlds and the classes, pack all data sets, train the tokenizer; or draw and pack
    the world named `only`."""
    local = replace(options, workers=1, cluster=None)  # its pictures are tiny
    make = partial(make_world, out=out, seed=seed, scenes=scenes, options=local)
    if only is not None:
        make(next(world for world in WORLDS if world.name == only))
        return
    make_classes(out, seed, scenes, options)
    # The worlds are drawn side by side, each in a process.
    drawn = ordered_map(make, WORLDS, len(WORLDS), chunk=1, pieces=scenes)
    texts = set[str]().union(*drawn)
    # Sorted: the order of a set differs between processes, and the seed decides every byte.
    lines = sorted(texts) + word_lines()
    write_whole(out / "text.txt", "".join(f"{line}\n" for line in lines))
    write_whole(out / "spiece.model", train_tokenizer(lines, VOCABULARY))
    tell(f"text in {out / 'text.txt'}, tokenizer in {out / 'spiece.model'}")


def make_classes(out: Path, seed: int, scenes: int, options: Options) -> None:
    """Draw and pack the sets of classes."""
    for name in CLASS_SETS:
        folder = out / "official" / "classes" / name
        with writable(folder):
            clear(folder)
            write_class_set(folder, name, scenes, seed)
        for dataset in parse_class_set(folder, name):
            pack(dataset, out / "shards" / "classes" / f"{name}-{dataset.split}", options)


def clear(folder: Path) -> None:
    """Make an empty folder. Pictures of an earlier command with more scenes must not stay.

    Errors: ValueError if it holds anything that no such command has drawn.
    """
    mark = folder / ".drawn"
    if folder.exists():
        if not mark.exists():
            raise ValueError(f"{folder} holds files that were not drawn here; name another --out")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    mark.touch()


def make_world(world: World, out: Path, seed: int, scenes: int, options: Options) -> set[str]:
    """Draw and pack one world; returns its texts."""
    folder = out / "official" / world.name
    count = scenes if world == HOME else round(scenes * SHIFTED_TO_HOME)
    with writable(folder):
        clear(folder)
        texts = write_world(folder, world, count, seed)
    for dataset in parse_world(folder, world):
        short_name = dataset.name.removeprefix(f"{world.name}-")
        pack(dataset, out / "shards" / world.name / f"{short_name}-{dataset.split}", options)
    return texts


def write_world(folder: Path, world: World, scenes: int, seed: int) -> set[str]:
    """Official files of one world; returns its texts."""
    # Seeded for itself, because the worlds are drawn side by side.
    writer = WorldWriter(folder, world, PHRASES[world.name], Random(f"{seed} {world.name}"))
    share = VAL_SHARES[world.name]
    coco, gqa = round(scenes * COCO_SHARE), round(scenes * GQA_SHARE)
    # The rest of the scenes: two for each pair.
    sets = (scenes - coco - gqa) // (2 * PAIRS_PER_SET)
    for write, total in ((writer.coco, coco), (writer.gqa, gqa), (writer.nlvr2, sets)):
        val = max(1, round(total * share))
        write(total - val, val)
    return writer.texts


def parse_world(folder: Path, world: World) -> Iterator[SourceSet]:
    """Read the official files back with the parsers of the real data sets."""
    for split in ("train", "val"):
        gqa = parse_gqa(folder / "gqa", split)
        datasets = (
            parse_vqav2(folder / "coco", split),
            gqa,
            regions_of(gqa),
            parse_nlvr2(folder / "nlvr2", "dev" if split == "val" else split),
            parse_coco_karpathy(folder / "coco", split),
        )
        # The shard names include the world: other readers' caches use the file name only.
        yield from (replace(dataset, name=f"{world.name}-{dataset.name}") for dataset in datasets)


def add_command(commands: Any) -> None:
    parser = new_command(
        commands,
        "demo",
        "Draws two worlds of colored shapes, writes them as VQA v2, GQA, NLVR2 and COCO captions "
        "in the publishers' file layouts (OUT/official), packs them and the names of GQA's things "
        "by cell (OUT/shards), and trains a sentencepiece model on their text (OUT/spiece.model). "
        "Two more sets, looks "
        "and figures, are pictures of one thing in folders of 24 classes (OUT/shards/classes).",
        examples=["demo --out runs/demo/data"],
    )
    parser.add_argument(
        "--scenes",
        type=at_least(FEWEST_SCENES),
        default=HOME_SCENES,
        help=f"pictures of the home world (default: {HOME_SCENES})",
    )
    parser.add_argument(
        "--world",
        choices=[world.name for world in WORLDS],
        help="draw this world alone, without classes and tokenizer",
    )
    add_shard_options(parser)

    def run(args: argparse.Namespace) -> None:
        # The seed draws the worlds; shuffling the shards by it as well would add nothing.
        options = replace(shard_options(args), seed=0)
        make_demo(args.out, args.seed, args.scenes, options, args.world)

    parser.set_defaults(run=run)

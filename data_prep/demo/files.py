"""The demo's scenes in the publishers' layouts, which the parsers of the real data sets read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from data_prep.demo.phrases import Phrases
from data_prep.demo.text import (
    Asked,
    Statement,
    absent_look,
    ask_gqa,
    ask_vqa,
    caption_scene,
    presence,
    state,
)
from data_prep.demo.world import (
    MOST_THINGS,
    Look,
    Scene,
    World,
    draw,
    make_scene,
    random_scene,
    scene_graph,
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
        restval = int(train * RESTVAL_SHARE)
        plan = [("train", "train2014")] * (train - restval) + [("restval", "val2014")] * restval
        plan += [("val", "val2014")] * val
        asked: dict[str, list[tuple[int, Asked]]] = {"train2014": [], "val2014": []}
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
            images.append(_karpathy_row(split, subset, filename, image_id, number, captions))
        for subset, of_subset in asked.items():
            self._write_vqa(subset, of_subset)
        self._write_json("coco/dataset_coco.json", {"dataset": "coco", "images": images})

    def _write_vqa(self, subset: str, asked: Iterable[tuple[int, Asked]]) -> None:
        head = {
            "info": {"year": 2014, "version": "2.0", "description": f"demo, {self.world.name}"},
            "license": {"name": "CC0-1.0", "url": ""},
            "data_type": "mscoco",
            "data_subtype": subset,
        }
        questions, annotations, seen = [], [], Counter[int]()
        for image_id, question in asked:
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
        image, question_number = 2_300_000, 0
        for split, count in (("train", train), ("val", val)):
            questions: dict[str, Any] = {}
            graphs: dict[str, Any] = {}
            for _ in range(count):
                image += 1
                scene, asked = self._scene_for_gqa()
                self._write_picture(Path("gqa/images", f"{image}.jpg"), scene)
                graphs[str(image)] = scene_graph(scene, image * 10, self.words.answers.call)
                for question in asked:
                    question_number += 1
                    questions[f"{question_number:08d}"] = _gqa_row(question, image)
                    self.texts.update((question.question, *question.choices))
            self._write_json(f"gqa/{split}_balanced_questions.json", questions)
            self._write_json(f"gqa/{split}_sceneGraphs.json", graphs)

    def nlvr2(self, train: int, val: int) -> None:
        """Write sets of two pairs of pictures that share three sentences, as NLVR2 does."""
        for split, count in (("train", train), ("dev", val)):
            rows = []
            for number in range(count):
                looks: list[Look] = []
                for _ in range(SENTENCES_PER_SET):
                    looks.append(absent_look(set(looks), self.rng))
                statements = [state(look, self.words, self.rng) for look in looks]
                self.texts.update(statement.text for statement in statements)
                for pair in range(PAIRS_PER_SET):
                    name = f"{split}-{number}-{pair}"
                    labels = self._write_pair(name, number, statements)
                    rows += [
                        self._nlvr2_row(f"{name}-{index}", statement, label, number)
                        for index, (statement, label) in enumerate(
                            zip(statements, labels, strict=True)
                        )
                    ]
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
            fillers = self.rng.randint(0, MOST_THINGS - len(side))
            side += [absent_look(stated, self.rng) for _ in range(max(fillers, not side))]
            self._write_picture(folder / f"{name}-img{index}.png", make_scene(self.rng, side))
        return labels

    def _nlvr2_row(
        self, identifier: str, statement: Statement, label: bool, number: int
    ) -> dict[str, Any]:
        row = {
            "identifier": identifier,
            "sentence": statement.text,
            "label": str(label),
            "synset": self.words.answers.call(statement.look[1]),
            "query": statement.kind,
        }
        return row | ({"directory": number % 100} if identifier.startswith("train") else {})

    def _scene_for_gqa(self) -> tuple[Scene, list[Asked]]:
        """A scene that allows questions about logic and about places."""
        while True:
            scene = random_scene(self.rng, fewest=2)
            asked = ask_gqa(scene, self.words, self.rng)
            if len(asked) == GQA_QUESTIONS:
                return scene, asked

    def _write_picture(self, place: Path, scene: Scene) -> None:
        path = self.folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(draw(scene, self.world, self.rng))

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        (self.folder / name).write_text(json.dumps(content), encoding="ascii")


def _ten_answers(asked: Asked, rng: Random) -> dict[str, Any]:
    """Answers of ten people, of whom now and then one or two err."""
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


def _karpathy_row(
    split: str, subset: str, filename: str, image_id: int, number: int, captions: Sequence[str]
) -> dict[str, Any]:
    sentences = [
        {"tokens": caption.split(), "raw": caption, "imgid": number, "sentid": sentence_id}
        for sentence_id, caption in enumerate(captions, number * len(captions))
    ]
    return {
        "filepath": subset,
        "sentids": [sentence["sentid"] for sentence in sentences],
        "filename": filename,
        "imgid": number,
        "split": split,
        "sentences": sentences,
        "cocoid": image_id,
    }


def _gqa_row(asked: Asked, image: int) -> dict[str, Any]:
    return {
        "imageId": str(image),
        "question": asked.question,
        "answer": asked.answer,
        "fullAnswer": asked.full_answer,
        "isBalanced": True,
        "groups": {"global": None, "local": asked.kind},
        "entailed": [],
        "equivalent": [],
        "types": GQA_TYPES[asked.kind],
        "semantic": [],
        "semanticStr": "",
        "annotations": {"question": {}, "answer": {}, "fullAnswer": {}},
    }

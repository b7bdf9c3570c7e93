"""Small files in the layouts of data sets' publishers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.toys.files import write
from tests.toys.pictures import jpeg, png, rotated_jpeg


def karpathy_row(number: int, split: str, folder: str, captions: list[str]) -> dict[str, Any]:
    sentences = [
        {"tokens": text.split(), "raw": text, "imgid": number, "sentid": 100 * number + index}
        for index, text in enumerate(captions)
    ]
    return {
        "filepath": folder,
        "filename": f"COCO_{folder}_{number + 500:012d}.jpg",
        "imgid": number,
        "cocoid": number + 500,
        "split": split,
        "sentids": [sentence["sentid"] for sentence in sentences],
        "sentences": sentences,
    }


def gqa_question(image: str, **fields: Any) -> dict[str, Any]:
    return {
        "imageId": image,
        "question": "Is it red?",
        "answer": "yes",
        "fullAnswer": "Yes, it is red.",
        "isBalanced": True,
        "groups": {"global": None, "local": "06-red"},
        "entailed": ["00333409"],
        "equivalent": ["07333408"],
        "types": {"structural": "verify", "semantic": "attr", "detailed": "verifyAttr"},
        "semantic": [{"operation": "select", "argument": "it (12)", "dependencies": []}],
        **fields,
    }


NLVR2_ROWS = [
    {"identifier": "dev-850-0-0", "sentence": "Both show dogs. ", "label": "True", "writer": "24"},
    {"identifier": "dev-850-0-1", "sentence": "One shows a cat.", "label": "False", "writer": "24"},
    {"identifier": "dev-850-1-0", "sentence": "Both show dogs. ", "label": "False", "writer": "24"},
    {"identifier": "dev-850-1-1", "sentence": "One shows a cat.", "label": "True", "writer": "24"},
]


def write_nlvr2(src: Path) -> Path:
    """Two pairs with two sentences each."""
    write(src / "dev.json", "\n".join(map(json.dumps, NLVR2_ROWS)) + "\n\n")
    for pair in range(2):
        write(src / "dev" / f"dev-850-{pair}-img0.png", png())
        write(src / "dev" / f"dev-850-{pair}-img1.png", jpeg(width=20))
    return src


VQA_PICTURES = {1: jpeg("L"), 2: jpeg("CMYK"), 3: rotated_jpeg(), 9: png(), 7: jpeg()[:60]}
"""Image id -> bytes: 9 is a PNG that is named .jpg, 7 is cut."""


VQA_ANSWERS = {
    1000: ["yes"] * 10,
    1001: ["Black-and-white"] * 3
    + ["black\nand white"] * 2
    + ["gray", "grey", "grey "]
    + ["b"] * 2,
    2000: ["2"] * 9 + ["two"],
    3000: ["a/c", "a/c"] + ["left"] * 4 + ["right"] * 4,
    9000: ["net"] * 4 + ["netting"] * 3 + ["mesh", "fence", "t-shirt (blue)"],
    7000: ["dog"] * 10,
}


def write_vqav2(src: Path) -> Path:
    head = {
        "info": {"version": "2.0"},
        "license": {},
        "data_type": "mscoco",
        "data_subtype": "val2014",
    }
    ids = [{"image_id": number // 1000, "question_id": number} for number in VQA_ANSWERS]
    questions = [row | {"question": f"what is {row['question_id']}? "} for row in ids]
    annotations = [vqav2_annotation(row) for row in reversed(ids)]
    write(
        src / "v2_OpenEnded_mscoco_val2014_questions.json",
        {**head, "task_type": "Open-Ended", "questions": questions},
    )
    write(src / "v2_mscoco_val2014_annotations.json", {**head, "annotations": annotations})
    for number, data in VQA_PICTURES.items():
        write(src / "val2014" / f"COCO_val2014_{number:012d}.jpg", data)
    return src


def vqav2_annotation(ids: dict[str, int]) -> dict[str, Any]:
    answers = VQA_ANSWERS[ids["question_id"]]
    return {
        **ids,
        "question_type": "what is",
        "answer_type": "other",
        "multiple_choice_answer": answers[0],
        "answers": [
            {"answer": answer, "answer_confidence": "yes", "answer_id": number}
            for number, answer in enumerate(answers, 1)
        ],
    }

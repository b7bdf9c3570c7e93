"""Small files in the forms of OK-VQA, A-OKVQA, TextVQA, ScienceQA, RefCOCO and Flickr30k."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from tests.toys.files import write
from tests.toys.pictures import jpeg, png

OKVQA_ANSWERS = {
    516065: ["pony tail", "pony tail", "pony tail", "braid", "Braid"],
    516066: ["surfing"] * 5,
    811: ["the 1960s", "1960", "1960's", "sixty", "ten years"],
    812: ["fire-truck", "fire truck", "truck", "truck", "a truck"],
}
"""Question -> what five people said; the files hold each answer twice."""
OKVQA_TYPES = {516065: "four", 516066: "four", 811: "one", 812: "other"}


def write_okvqa(src: Path) -> Path:
    """The test split: two pictures of COCO's val2014."""
    questions, annotations = [], []
    for question, people in OKVQA_ANSWERS.items():
        ids = {"image_id": question // 10, "question_id": question}
        questions.append(ids | {"question": f"What is {question}?"})
        answers = [
            {"answer_id": 2 * n + part + 1, "raw_answer": answer, "answer": answer,
             "answer_confidence": "yes"}
            for n, answer in enumerate(people) for part in range(2)
        ]  # fmt: skip
        kinds = {"answer_type": "other", "question_type": OKVQA_TYPES[question]}
        annotations.append({**ids, **kinds, "answers": answers, "confidence": 3})
    head: dict[str, Any] = {"info": {"version": "1.1"}, "license": {}, "data_subtype": "val2014",
                            "data_type": "mscoco"}  # fmt: skip
    write(
        src / "OpenEnded_mscoco_val2014_questions.json",
        {**head, "task_type": "Open-Ended", "questions": questions},
    )
    types = {"one": "Vehicles and Transportation", "four": "Sports and Recreation",
             "other": "Other"}  # fmt: skip
    write(
        src / "mscoco_val2014_annotations.json",
        {**head, "question_types": types, "annotations": annotations},
    )
    for image in (51606, 81):
        write(src / "val2014" / f"COCO_val2014_{image:012d}.jpg", jpeg())
    return src


def aokvqa_row(number: int, right: int, answers: list[str], **fields: Any) -> dict[str, Any]:
    return {
        "split": "val",
        "image_id": 299207 + number // 2,
        "question_id": f"22MexNkBPpdZGX6sxbxVB{number}",
        "question": "What is the man by the bags awaiting? ",
        "choices": ["skateboarder", "train", "delivery", "cab"],
        "correct_choice_idx": right,
        "direct_answers": answers,
        "difficult_direct_answer": False,
        "rationales": ["A train would not be on the street.", "He has luggage.", "It is a street."],
        **fields,
    }


AOKVQA_ROWS = [
    aokvqa_row(0, 3, ["ride"] * 2 + ["bus"] + ["taxi"] * 3 + ["cab"] * 4),
    aokvqa_row(1, 1, ["train"] * 9 + ["Train"]),
    aokvqa_row(2, 0, ["a friend"] * 2 + ["friend"] * 8),
    aokvqa_row(3, 2, ["delivery"] * 10, difficult_direct_answer=True),
    aokvqa_row(4, 2, ["post"] + ["mail", "parcel", "letter"] * 3),
]


def write_aokvqa(src: Path) -> Path:
    """Five questions of val, one of them without direct answers that count."""
    write(src / "aokvqa_v1p0_val.json", AOKVQA_ROWS)
    for image in range(299207, 299210):
        write(src / "val2017" / f"{image:012d}.jpg", jpeg())
    return src


TEXTVQA_ANSWERS = [
    ["nokia"] * 6 + ["Nokia.", "the nokia", "samsung", "unanswerable"],
    ["1,000", "1000", "1,000"] + ["one thousand"] * 4 + ["1 000", "100", "1.000"],
    ["macy's"] * 2 + ["macys"] * 3 + ["Macy 's"] * 2 + ["macy"] * 3,
    ["dont walk"] * 3 + ["don't walk"] * 3 + ["walk?"] * 2 + ["stop"] * 2,
    ["YES"] * 10,
    ["3"] * 2 + ["three"] + ["8"] * 7,
]


def write_textvqa(src: Path) -> Path:
    """Six questions of val about three pictures, and the words that were read in them."""
    rows = [
        {
            "question": f"what is brand {number}?",
            "image_id": f"003a8ae2ef43b90{number // 2}",
            "image_classes": ["Mobile phone"],
            "flickr_original_url": "https://example.org/a.jpg",
            "image_width": 1024,
            "image_height": 664,
            "answers": answers,
            "question_tokens": ["what", "is", "brand", str(number)],
            "question_id": 34602 + number,
            "set_name": "val",
        }
        for number, answers in enumerate(TEXTVQA_ANSWERS)
    ]
    head = {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1"}
    write(src / "TextVQA_0.5.1_val.json", {**head, "data": rows})
    words = [["NOKIA", "12:30", " "], [], ["one\nway"]]
    read = [
        {"image_id": f"003a8ae2ef43b90{number}", "ocr_tokens": tokens, "ocr_info": []}
        for number, tokens in enumerate(words)
    ]
    write(src / "TextVQA_Rosetta_OCR_v0.2_val.json", {"data": read})
    for number in range(3):
        write(src / "train_images" / f"003a8ae2ef43b90{number}.jpg", jpeg())
    return src


SUBJECTS = {"natural science": "biology", "social science": "geography",
            "language science": "verbs"}  # fmt: skip


def scienceqa_problem(number: int) -> dict[str, Any]:
    """Subjects, hints, pictures and grades in all combinations."""
    subject = list(SUBJECTS)[number % 3]
    return {
        "question": f"Which of these {number}?\nSelect one.",
        "choices": ["West Virginia", "Louisiana", "Arizona", "Oklahoma", "Ohio"][: 2 + number % 4],
        "answer": number % 2,
        "hint": "Figure: sturgeon." if number % 4 < 2 else "",
        "image": "image.png" if number % 2 else None,
        "task": "closed choice",
        "grade": f"grade{number % 12 + 1}",
        "subject": subject,
        "topic": SUBJECTS[subject],
        "category": "Geography",
        "skill": "Read a map",
        "lecture": "Maps have four\ncardinal directions.",
        "solution": "Look at the compass rose.",
        "split": "train" if number == 0 else "test",
    }


NUM_PROBLEMS = 25
"""The first is of train, the others of test."""


def write_scienceqa(src: Path) -> Path:
    problems = {str(number): scienceqa_problem(number) for number in range(NUM_PROBLEMS)}
    write(src / "problems.json", problems)
    splits = {"train": ["0"], "test": [str(number) for number in range(1, NUM_PROBLEMS)]}
    write(src / "pid_splits.json", splits)
    for number in range(1, NUM_PROBLEMS, 2):
        write(src / "images/test" / str(number) / "image.png", png())
    return src


REFCOCO_SIZE = (40, 24)
"""Width and height of each picture."""


def refcoco_ref(number: int, split: str, thing: int, *sentences: str) -> dict[str, Any]:
    said = [
        {"tokens": text.split(), "raw": text, "sent_id": 10 * number + n, "sent": text.lower()}
        for n, text in enumerate(sentences)
    ]
    return {
        "ref_id": number, "ann_id": thing, "image_id": 500 + thing // 10, "category_id": 1,
        "file_name": f"COCO_train2014_{500 + thing // 10:012d}_{thing}.jpg", "split": split,
        "sent_ids": [sentence["sent_id"] for sentence in said], "sentences": said,
    }  # fmt: skip


REFCOCO_REFS = [
    refcoco_ref(0, "testA", 10, "Left man", "man in blue"),
    refcoco_ref(1, "testA", 11, "Right  one"),
    refcoco_ref(2, "testA", 20, "the dog"),
    refcoco_ref(3, "val", 20, "a dog"),
]
REFCOCO_THINGS = {
    10: [2.0, 2.0, 10.0, 20.0], 11: [20.5, 1.0, 18.0, 20.25], 12: [0.0, 0.0, 40.0, 5.0],
    20: [5.0, 5.0, 12.5, 10.0], 21: [30.0, 10.0, 5.0, 5.0],
}  # fmt: skip
"""Id -> box; the thing is in picture 500 + id / 10."""


def write_refcoco(src: Path, folder: str = "refcoco", splitter: str = "unc") -> Path:
    """Two pictures with five things; the pickle has the form that Python 2 wrote."""
    images = [
        {"id": number, "file_name": f"COCO_train2014_{number:012d}.jpg", "width": REFCOCO_SIZE[0],
         "height": REFCOCO_SIZE[1]}
        for number in (501, 502)
    ]  # fmt: skip
    things = [
        {"id": number, "image_id": 500 + number // 10, "category_id": 1, "bbox": box, "iscrowd": 0}
        for number, box in REFCOCO_THINGS.items()
    ]
    categories = [{"id": 1, "name": "person", "supercategory": "person"}]
    write(
        src / folder / "instances.json",
        {"images": images, "annotations": things, "categories": categories},
    )
    write(src / folder / f"refs({splitter}).p", pickle.dumps(REFCOCO_REFS, protocol=2))
    for image in images:
        write(src / "train2014" / str(image["file_name"]), jpeg())
    return src


FLICKR_CAPTIONS = {
    "1000092795": ["Two young guys with shaggy hair look at their hands.",
                   "Two men in green shirts are standing in a yard.", "Two friends enjoy time."],
    "10002456": ["Several men in hard hats operate a giant pulley system.",
                 "Workers look down from up above on a piece of equipment."],
    "1000268201": ["A child in a pink dress climbs up a set of stairs.", "A little girl climbs.",
                   "A girl going into a wooden building."],
}  # fmt: skip


def write_flickr30k(src: Path) -> Path:
    """Three pictures of test and one of train."""
    images, sentence_id = [], 0
    captions = {**FLICKR_CAPTIONS, "36979": ["A group of friends."]}
    for number, (name, texts) in enumerate(captions.items()):
        sentences = []
        for text in texts:
            tokens = text.lower().strip(".").split()
            sentences.append(
                {"tokens": tokens, "raw": f" {text}", "imgid": number, "sentid": sentence_id}
            )
            sentence_id += 1
        images.append({
            "sentids": [sentence["sentid"] for sentence in sentences], "imgid": number,
            "sentences": sentences, "split": "train" if name == "36979" else "test",
            "filename": f"{name}.jpg",
        })  # fmt: skip
        write(src / "flickr30k-images" / f"{name}.jpg", jpeg())
    write(src / "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})
    return src

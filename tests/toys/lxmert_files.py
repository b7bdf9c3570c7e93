"""LXMERT's aggregate in small: two files of rows, answers, evaluation pictures, boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.toys.files import write

TRAIN, VAL, VG = "COCO_train2014_000000000009", "COCO_val2014_000000000042", "2345"
DIM, NUM_BOXES = 3, 4


def row(image_id: str, captions: list[str], **questions: tuple[str, dict[str, float]]) -> Any:
    return {
        "img_id": image_id,
        "sentf": {"mscoco": captions, **{source: [q] for source, (q, _) in questions.items()}},
        "labelf": {source: [label] for source, (_, label) in questions.items()},
    }


def write_aggregate(src: Path) -> None:
    """All files but pictures and features."""
    write(
        src / "coco.json",
        [
            row(
                TRAIN,
                ["a man on a wave", "a man on a wave", "two dogs"],
                vqa=("is the man old ?", {"Yes.": 0.6, "a yes": 0.6, "no": 0.3, "odd": 1.0}),
                visual7w=("where is the man ?", {"in space": 1.0}),
            ),
            row(VAL, ["this must not be seen"]),
        ],
    )
    vg = {"img_id": VG, "sentf": {"vg": ["a tree near it"]}, "labelf": {}}
    write(src / "vgnococo.json", [vg, {**vg, "img_id": "77"}])
    write(src / "all_ans.json", [{"ans": "yes", "dsets": ["vqa"]}, {"ans": "no", "dsets": []}])
    write(
        src / "dataset_coco.json",
        {"images": [{"cocoid": 42, "split": "val"}, {"cocoid": 7, "split": "test"}]},
    )
    write(src / "more.txt", "77\n")
    write(src / "objects_vocab.txt", "Cat,kitty\ntree\n")
    write(src / "attributes_vocab.txt", "red\ngrey,gray\n")


def features(src: Path) -> list[str]:
    """Write VL-T5's files; the options that name them."""
    arrays = {
        "features": np.full((NUM_BOXES, DIM), 0.5, np.float32),
        "boxes": np.tile(np.array([10, 40, 30, 90], np.float32), (NUM_BOXES, 1)),
        "img_w": 100,
        "img_h": 200,
        "obj_id": np.array([0, 1, 1, 0]),
        "attr_id": np.array([1, 0, 1, 0]),
    }
    for name, image_id in (("train2014_obj36", TRAIN), ("vg_gqa_obj36", VG)):
        path = src / "features" / f"{name}.h5"
        path.parent.mkdir(exist_ok=True)
        with h5py.File(path, "w") as file:
            for array_name, array in arrays.items():
                file[f"{image_id}/{array_name}"] = array
    return ["--features", str(src / "features"), "--vocabulary", str(src)]

"""Visual Genome: its questions, or its phrases about regions, versions 1.0 to 1.4."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..command import add_shard_options, new_command, packs
from ..json_rows import JsonRow, read_list, shown
from ..packing.pack import answer_fields
from ..packing.source import Annotation, Dropped, SourceSample, SourceSet, find_file
from .coco import karpathy_ids
from .published import CC_BY, Download, Published, other_file

FILES = {"questions": "question_answers.json", "regions": "region_descriptions.json"}
LISTS = {"questions": "qas", "regions": "regions"}
KINDS = {"questions": "vqa", "regions": "pair_text"}
FOLDERS = ("VG_100K", "VG_100K_2", "images", "images2", "")
OF_COCO = "in COCO's val or test split"

SITE = "https://homes.cs.washington.edu/~ranjay/visualgenome/data/dataset/"
PICTURES = "https://cs.stanford.edu/people/rak248/VG_100K_2/"
SIZES = {"questions": "24.8 MB", "regions": "127 MB"}
PUBLISHED = Published(
    title="Visual Genome",
    command="vg",
    folders="--src VG",
    needs={
        what: (
            Download(f"VG/{file}", f"{SITE}{file}.zip", SIZES[what], CC_BY),
            Download("VG/VG_100K", f"{PICTURES}images.zip", "9.7 GB", CC_BY),
            Download("VG/VG_100K_2", f"{PICTURES}images2.zip", "5.5 GB", CC_BY),
        )
        for what, file in FILES.items()
    },
    option="--what",
)


def parse_vg(
    src: Path,
    what: str,
    name: str | None = None,
    without_coco: Path | None = None,
    images: Path | None = None,
) -> SourceSet:
    """Read all questions or all regions. Half of the pictures are COCO's: `without_coco`, which is
    Karpathy's `dataset_coco.json`, leaves out those of its val and test splits."""
    path = src / FILES[what]
    files, held_out = [path], set[str]()
    if without_coco is not None:
        files += [without_coco, src / "image_data.json"]
        # COCO's ids, which image_data.json maps to Visual Genome's own.
        coco = set[str]().union(*(karpathy_ids(without_coco, split) for split in ("val", "test")))
        # coco_id is a number, or null for pictures that are not COCO's: "None" is not an id there.
        rows = read_list(files[-1], "picture")
        held_out = {_image_id(row) for row in rows if str(row.value("coco_id")) in coco}
    samples, dropped, left_out = [], [], []
    for row in read_list(path, "picture"):
        image_id = _image_id(row)
        annotations = []
        for entry in row.rows(LISTS[what], LISTS[what]):
            annotation = PARSERS[what](entry)
            if image_id in held_out:  # parsed all the same: a damaged row is an error anywhere
                annotation = OF_COCO
            if isinstance(annotation, str):
                dropped.append(Dropped(_id_of(entry), annotation))
            else:
                annotations.append(annotation)
        if image_id in held_out:
            left_out.append(Dropped(image_id, f"picture {OF_COCO}"))
        else:
            picture = find_file(images or src, FOLDERS, f"{image_id}.jpg")
            samples.append(SourceSample(image_id, (picture,), annotations))
    return SourceSet(
        name or f"vg_{what}", KINDS[what], "train", tuple(files), samples, tuple(dropped),
        tuple(left_out),
    )  # fmt: skip


def _image_id(row: JsonRow) -> str:
    """Versions differ in the field's name."""
    return row.id("image_id" if "image_id" in row else "id")


def _id_of(entry: JsonRow) -> str:
    for key in ("qa_id", "region_id", "id"):
        if key in entry:
            return entry.id(key)
    raise ValueError(f"{entry.place}: {shown(entry.fields)} has no qa_id, region_id or id")


def _question(entry: JsonRow) -> Annotation | str:
    """A question, or why it is dropped. Answers begin with a capital and end in a full stop."""
    question = entry.line("question")
    answer = entry.line("answer").rstrip(".").lower().strip()
    if not question or not answer:
        return "no answer" if question else "no question"
    annotation = {"id": _id_of(entry), "question": question, **answer_fields([answer])}
    return entry.annotate(annotation, "qa_id", "id", "image_id", "question", "answer")


def _region(entry: JsonRow) -> Annotation | str:
    text = entry.line("phrase")
    if not text:
        return "no phrase"
    annotation = {"id": _id_of(entry), "text": text}
    return entry.annotate(annotation, "region_id", "id", "image_id", "image", "phrase")


PARSERS = {"questions": _question, "regions": _region}


def add_command(commands: Any) -> None:
    parser = new_command(
        commands,
        "vg",
        examples=["vg --src VG --what questions --out shards/vg"],
    )
    parser.add_argument(
        "--src", type=Path, required=True, metavar="DIR", help="folder of the official files"
    )
    parser.add_argument("--what", choices=tuple(FILES), required=True)
    parser.add_argument("--images", type=Path, metavar="DIR", help="pictures (default: --src)")
    parser.add_argument("--name", help="name of the data set (default: vg_questions or vg_regions)")
    parser.add_argument(
        "--without-coco",
        **other_file(
            "dataset_coco.json: leave out the pictures of its val and test splits, because half of "
            "Visual Genome is COCO's, and a test on COCO must not see them in training (needs "
            "image_data.json)"
        ),
    )
    add_shard_options(parser)
    packs(parser, parse_vg)

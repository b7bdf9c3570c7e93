"""`lxmert`: LXMERT's aggregate of captions and questions, for pre-training as VL-T5 and VL-BART.

OUT/mscoco, OUT/vg                 captions
OUT/vqa, OUT/gqa, OUT/visual7w     questions with soft-scored answers
OUT/regions                        names of the boxes, if the features are a detector's
OUT/excluded.txt                   ids of the evaluation pictures that were left out

Sentences and answers are chosen by the rules of VL-T5's preprocessing (github.com/j-min/VL-T5,
MIT), but for two: answers that become one name add up here, where there the last one replaces the
others; and a question without answers is left out, where there it would be a caption.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vlds.data.shards.remote_folder import write_into
from vlds.runtime.terminal import tell

from ..command import add_shard_options, new_command, shard_options
from ..json_rows import JsonRow, clean, open_text, read_list, shown
from ..packing.file_check import VOCABULARIES, locate_boxes, names_in
from ..packing.pack import pack_ready, ready
from ..packing.source import Annotation, Dropped, SourceSample, SourceSet, find_file
from .coco import karpathy_ids
from .lxmert import coco_picture
from .vg import FOLDERS

CAPTIONS = ("mscoco", "vg")
QUESTIONS = ("vqa", "gqa", "visual7w")
MOST_WORDS_LEFT_OUT = 2
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
ANSWER_NAMES = {word: str(number) for number, word in enumerate(NUMBERS, 1)} | {"grey": "gray"}


class Sentence(NamedTuple):
    id: str
    source: str
    text: str
    label: Mapping[str, float]
    """Answer -> score; empty for a caption."""
    fault: str = ""
    """Why it is left out; "" if it is used."""


def sentences_of(row: JsonRow, answers: Collection[str]) -> Iterator[Sentence]:
    """The sentences about a picture in the file's order. `answers`: those that may be learnt.

    Errors: ValueError for an unknown source, or labels that do not fit the sentences.
    """
    image_id, labels = row.id("img_id"), row.object("labelf")
    # Over all sources: a sentence of VQA may come again in GQA.
    seen = set[str]()
    for source, texts in row.object("sentf").items():
        if source not in (*CAPTIONS, *QUESTIONS):
            known = ", ".join((*CAPTIONS, *QUESTIONS))
            raise ValueError(f"{row.place}: unknown source {source!r}; known are {known}")
        # Captions have no labels.
        of_source = labels.get(source, [{}] * len(texts))
        if not isinstance(texts, list) or len(texts) != len(of_source):
            raise ValueError(
                f"{row.place}: {source} has {len(of_source)} labels for {shown(texts)}; expected "
                "one for each sentence"
            )
        for number, (text, raw) in enumerate(zip(texts, of_source, strict=True)):
            if not isinstance(text, str) or not isinstance(raw, dict):
                raise ValueError(
                    f"{row.place}: {source} {number} is {shown(text)} with label {shown(raw)}; "
                    "expected text and an object of answers"
                )
            sentence = clean(text)
            label = converted_label(raw, answers) if source in QUESTIONS else {}
            # In VL-T5's order: a sentence that is left out does not make a later one a repeat.
            fault = ""
            if len(sentence.split()) <= MOST_WORDS_LEFT_OUT:
                fault = f"{MOST_WORDS_LEFT_OUT} words or fewer"
            elif sentence in seen:
                fault = "the same sentence was said of the picture before"
            elif source in QUESTIONS and not label:
                fault = "no answer of the list"
            else:
                seen.add(sentence)
            yield Sentence(f"{image_id}_{source}_{number:03d}", source, sentence, label, fault)


def converted_label(raw: Mapping[str, float], answers: Collection[str]) -> dict[str, float]:
    """Answer -> score, of the answers that may be learnt. Scores of answers that become one name
    add up to at most 1, as votes do: "a man" and "man" are given by different people."""
    label: dict[str, float] = {}
    for given, score in raw.items():
        if (answer := converted_answer(given)) in answers:
            label[answer] = min(label.get(answer, 0.0) + score, 1.0)
    return label


def converted_answer(text: str) -> str:
    """An answer as it is learnt: lower case, without article and full stop, digits up to ten."""
    text = text.lower()
    if text.endswith("."):
        text = text[:-1].strip()
    for article in ("a ", "an ", "the "):
        if text.startswith(article):
            text = text.removeprefix(article).strip()
    return ANSWER_NAMES.get(text, text)


COCO = "COCO_"
FEATURE_FILES = {"train2014": "train2014_obj36.h5", "val2014": "val2014_obj36.h5"}
"""Subset of COCO -> the file with all its features in VL-T5's download."""
VG_FEATURES = "vg_gqa_obj36.h5"
REGIONS = "regions"
EXCLUDED = "excluded.txt"
SPLITS = {"train": ("val", "test"), "val": ("test",)}
"""Our split -> Karpathy's whose pictures it must not have."""


class PictureSource(NamedTuple):
    """Where pictures or their features are, and the names of boxes."""

    images: Path | None = None
    features: Path | None = None
    vocabulary: Path | None = None

    def sample(
        self, image_id: str, annotations: list[Annotation], named: bool = False
    ) -> SourceSample:
        """A picture or its features; if `named`, each annotation gets the names of the boxes."""
        if self.features is not None:
            # VL-T5's three files have many pictures each; others have one.
            subset = image_id.split("_")[1] if image_id.startswith(COCO) else ""
            whole = self.features / FEATURE_FILES.get(subset, VG_FEATURES)
            place = whole if whole.is_file() else self.features
            file = locate_boxes(place, image_id, self.vocabulary if named else None)
            return SourceSample(image_id, (), annotations, features=(file,))
        assert self.images is not None
        if image_id.startswith(COCO):
            path = coco_picture(self.images, image_id)
        else:
            path = find_file(self.images, FOLDERS, f"{image_id}.jpg")
        return SourceSample(image_id, (path,), annotations)


def parse_aggregate(
    files: Sequence[Path],
    split: str,
    answers: Collection[str],
    evaluated: Collection[str],
    places: PictureSource,
) -> tuple[list[SourceSet], list[str]]:
    """The data sets of an aggregate, and the ids of the evaluation pictures that are left out.
    `evaluated`: ids to leave out, of pictures as the aggregate has them, or COCO's own."""
    samples: dict[str, list[SourceSample]] = defaultdict(list)
    dropped: dict[str, list[Dropped]] = defaultdict(list)
    excluded = []
    for row in (row for path in files for row in read_list(path, "picture")):
        image_id = row.id("img_id")
        # Karpathy's file has COCO's numbers, other lists may have the aggregate's names.
        if image_id in evaluated or coco_id(image_id) in evaluated:
            excluded.append(image_id)
            continue
        annotations: dict[str, list[Annotation]] = defaultdict(list)
        for sentence in sentences_of(row, answers):
            if sentence.fault:
                dropped[sentence.source].append(Dropped(sentence.id, sentence.fault))
            else:
                words: Annotation = {"caption": sentence.text}
                if sentence.source in QUESTIONS:
                    words = {"question": sentence.text, "label": dict(sentence.label)}
                annotations[sentence.source].append({"id": sentence.id, **words})
        for source, of_source in annotations.items():
            samples[source].append(places.sample(image_id, of_source))
        if places.features is not None:  # only detectors' files have boxes to name
            region: Annotation = {"id": f"{image_id}_{REGIONS}"}
            samples[REGIONS].append(places.sample(image_id, [region], named=True))
    left_out = tuple(Dropped(image_id, "evaluation picture") for image_id in excluded)
    kinds = dict.fromkeys(CAPTIONS, "caption") | dict.fromkeys(QUESTIONS, "vqa")
    kinds[REGIONS] = "regions"
    datasets = [
        SourceSet(
            f"lxmert-{source}", kind, split, tuple(files), samples[source], tuple(dropped[source]),
            left_out,
        )
        for source, kind in kinds.items()
        if samples[source]
    ]  # fmt: skip
    return datasets, excluded


def coco_id(image_id: str) -> str:
    """COCO's id of COCO_val2014_000000000042: "42"; "" for other pictures."""
    # int, because COCO's own files write ids without leading zeros.
    number = image_id.rpartition("_")[2]
    return str(int(number)) if image_id.startswith(COCO) and number.isdecimal() else ""


def read_answers(path: Path) -> frozenset[str]:
    """The answers of LXMERT's all_ans.json: a list of {"ans": ANSWER, "dsets": [...]}."""
    return frozenset(row.text("ans") for row in read_list(path, "answer"))


def add_command(commands: Any) -> None:
    parser = new_command(
        commands,
        "lxmert",
        "Writes a data set of each source: mscoco and vg (captions), vqa, gqa and visual7w "
        "(questions), regions (names of boxes; only with --features). Evaluation pictures are left "
        "out; OUT/excluded.txt lists them.",
        examples=[
            "lxmert --annotations mscoco.json vgnococo.json \\\n      --answers "
            "all_ans.json --without-coco dataset_coco.json \\\n      --features FEATURES "
            "--vocabulary VG --out shards/lxmert"
        ],
    )
    add = parser.add_argument
    add("--annotations", type=Path, nargs="+", required=True, metavar="FILE")
    add("--answers", type=Path, required=True, metavar="FILE", help="all_ans.json")
    add(
        "--without-coco",
        type=Path,
        required=True,
        metavar="FILE",
        help="dataset_coco.json: leave out the pictures of its val and test splits, or, with "
        "--split val, of test alone",
    )
    add(
        "--exclude",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="leave out more pictures: their ids, one a line, or COCO's own",
    )
    add("--split", choices=tuple(SPLITS), default="train", help="train (default) or val")
    add("--images", type=Path, metavar="DIR", help="pictures of COCO and Visual Genome")
    add(
        "--vocabulary",
        type=Path,
        metavar="DIR",
        help=f"folder of {' and '.join(VOCABULARIES.values())}, with --features",
    )
    add_shard_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Errors: ValueError for options that do not go together, before anything is read."""
    if (args.images is None) == (args.features is None):
        raise ValueError("--images, --features: give one of them")
    if (args.vocabulary is None) == (args.features is not None):
        raise ValueError("--vocabulary names the boxes of --features; give both or neither")
    # Read now for its errors: packing comes much later.
    if args.vocabulary is not None:
        for name in VOCABULARIES.values():
            names_in(args.vocabulary / name)
    held_out = [karpathy_ids(args.without_coco, part) for part in SPLITS[args.split]]
    for path in args.exclude:
        with open_text(path) as file:
            held_out.append(set(filter(None, map(str.strip, file))))
    datasets, excluded = parse_aggregate(
        args.annotations,
        args.split,
        read_answers(args.answers),
        set().union(*held_out),
        PictureSource(args.images, args.features, args.vocabulary),
    )
    if not datasets:
        raise ValueError(f"{args.annotations[0]}: no picture is left; all are evaluation pictures")
    # All are checked before the first is written, which takes hours.
    options = shard_options(args)
    for dataset in ready(datasets, options):
        pack_ready(dataset, args.out / dataset.name.removeprefix("lxmert-"), options)
    write_into(args.out, EXCLUDED, "".join(f"{image_id}\n" for image_id in sorted(excluded)))
    tell(f"left out {len(excluded):,} evaluation pictures: {args.out / EXCLUDED}")

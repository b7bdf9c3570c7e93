"""The commands in the comments of VL-Adapter's recipes make their data from official files."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.cli import main
from tests.toys.files import json_lines, write
from tests.toys.official import gqa_question, karpathy_row
from tests.toys.pictures import jpeg, png
from tests.toys.shards import packed
from vlds.evaluation.sources import evaluation_sources, training_sources
from vlds.recipe.config import Recipe, parse_recipe
from vlds.runtime.process import find
from vlds.tasks.base import SPLITS

FIRST = 500
"""COCO's id of the first picture."""
KARPATHY = ("train", "train", "restval", "val", "val", "test")
"""Split of each picture; the first two are of train2014, the others of val2014."""


def write_coco(src: Path) -> None:
    """Pictures, Karpathy's split, two questions per picture with ten answers each, answer list."""
    images, asked = [], {"train2014": [], "val2014": []}  # type: ignore[var-annotated]
    for number, split in enumerate(KARPATHY):
        subset = "train2014" if split == "train" else "val2014"
        row = karpathy_row(number, split, subset, [f"thing {number}", f"{number} again"])
        write(src / subset / row["filename"], jpeg())
        images.append(row)
        for n in range(2):
            ids = {"image_id": row["cocoid"], "question_id": 1000 * row["cocoid"] + n}
            asked[subset].append(ids)
    write(src / "dataset_coco.json", {"dataset": "coco", "images": images})
    for subset, rows in asked.items():
        questions = [ids | {"question": "What is it?"} for ids in rows]
        labels = [ids | answered(ids["question_id"]) for ids in rows]
        write(src / f"v2_OpenEnded_mscoco_{subset}_questions.json", {"questions": questions})
        write(src / f"v2_mscoco_{subset}_annotations.json", {"annotations": labels})
    write(src / "trainval_ans2label.json", {"net": 0, "fence": 1})


def answered(number: int) -> dict[str, Any]:
    """Six people say "net", four an answer outside the list; for odd questions, none says "net"."""
    given = ["net" if number % 2 == 0 else "web"] * 6 + ["mesh"] * 4
    answers = [
        {"answer": text, "answer_confidence": "yes", "answer_id": n}
        for n, text in enumerate(given, 1)
    ]
    return {
        "question_type": "what is",
        "answer_type": "other",
        "multiple_choice_answer": given[0],
        "answers": answers,
    }


def write_gqa(src: Path) -> None:
    """A picture with two questions in each split."""
    for n, split in enumerate(("train", "val", "testdev")):
        questions = {f"0{n}{k}": gqa_question(f"{n}") for k in range(2)}
        write(src / f"{split}_balanced_questions.json", questions)
        write(src / "images" / f"{n}.jpg", jpeg())


def write_nlvr2(src: Path) -> None:
    """A pair with two sentences in each split; train's pictures are in numbered folders."""
    for split in ("train", "dev", "test1"):
        directory = {"directory": 57} if split == "train" else {}
        rows = [
            {"identifier": f"{split}-4-0-{n}", "sentence": "Both.", "label": "True", **directory}
            for n in range(2)
        ]
        write(src / "data" / f"{split}.json", "\n".join(map(json.dumps, rows)))
        place = src / "images/train/57" if split == "train" else src / split
        for side in (0, 1):
            write(place / f"{split}-4-0-img{side}.png", png())


def write_value(src: Path) -> None:
    """A clip with a question or a moment in each split of VALUE's tasks; test has no labels."""
    for place, rows in value_rows().items():
        write(src / "ann" / f"{place}.jsonl", json_lines(rows))
    for videos in ("tv", "how2", "yc2"):
        write(src / f"ann/{videos}_subtitles.jsonl", json.dumps({"vid_name": "s1", "sub": []}))
        folder = src / "vis_features" / videos / "clip-vit"
        folder.mkdir(parents=True)
        np.savez(folder / "s1.npz", features=np.ones((10, 512), np.float16))


def value_rows() -> dict[str, list[dict[str, Any]]]:
    """File of annotations -> its rows, in VALUE's names."""
    moment = {"vid_name": "s1", "duration": 9.5, "ts": [1, 2.5], "clip_id": 4}
    step = {"vid_name": "s1", "duration": 9, "clip_id": 6}
    told = [{"desc": "Ann waves.", "desc_id": 31, "type": "v"}]
    found: dict[str, list[dict[str, Any]]] = {}
    for task, choices, files in (
        ("tvqa", 5, ("tvqa_train", "tvqa_val", "tvqa_test_release")),
        ("how2qa", 4, (f"how2qa_{s}_release" for s in ("train", "val", "test_public"))),
    ):
        asked = {f"a{n}": f"Choice {n}." for n in range(choices)}
        row = {"qid": 7, "q": "Who?", "ts": "1-2", "vid_name": "s1", **asked}
        for file in files:
            found[f"{task}/{file}"] = [row if "test" in file else row | {"answer_idx": 1}]
    for task, row in (("tvc", moment), ("yc2c", step)):
        for split in ("train", "val", "test"):
            labels = {} if split == "test" else {"descs": told}
            found[f"{task}/{task}_{split}_release"] = [row | labels]
    return found


WRITERS = {
    "bart_image": {"COCO": write_coco, "GQA": write_gqa, "NLVR2": write_nlvr2},
    "bart_video": {"VALUE": write_value},
}
"""Recipe -> folder of official files in its comment -> function that writes a small copy."""


def comment(name: str) -> str:
    """The comment at the top of a recipe, without the #."""
    lines = find(f"recipes/vl_adapter/{name}.yaml").read_text("utf-8").split("output:")[0]
    return re.sub(r"^# ?", "", lines, flags=re.MULTILINE)


def commands(name: str) -> list[list[str]]:
    """The commands in a recipe's comment, split into words."""
    text = comment(name).replace("\\\n", " ")
    return [shlex.split(line) for line in re.findall(r"^ +(vlds data .*)$", text, re.MULTILINE)]


@pytest.fixture(scope="module", params=WRITERS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A recipe's name; its commands have run on small official files in the working directory."""
    folder = tmp_path_factory.mktemp(request.param)
    for place, writer in WRITERS[request.param].items():
        writer(folder / place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in commands(request.param):
            assert main([*words[2:], "--workers", "1"]) == 0, words
        yield request.param


def named(recipe: Recipe) -> set[str]:
    """The folders that a recipe's tasks read."""
    lists = ((*task.train, *task.evaluate, *task.test) for task in recipe.tasks.values())
    return {folder for folders in lists for folder in folders}


@pytest.mark.slow
def test_the_commands_make_what_the_recipe_reads(made: str) -> None:
    """The commands make the data sets that the recipe names, of the kind that its tasks read."""
    recipe = parse_recipe([str(find(f"recipes/vl_adapter/{made}.yaml"))])
    outs = [words[words.index("--out") + 1] for words in commands(made)]
    assert sorted(outs) == sorted(named(recipe))
    lists = {"train": training_sources(recipe)}
    lists |= {split: evaluation_sources(recipe, split) for split in SPLITS}
    for field, sources in lists.items():
        for source, task in zip(sources, recipe.tasks.values(), strict=True):
            assert len(source.datasets) == len(getattr(task, field)) > 0


def ids(folder: str) -> set[str]:
    """Ids of a data set's annotations."""
    return {a["id"] for sample in packed(Path(folder)).values() for a in sample.annotations}


@pytest.mark.parametrize("made", ["bart_image"], indirect=True)
def test_questions_are_split_as_karpathy_splits_pictures(made: str) -> None:
    expected: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    captions: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    for number, split in enumerate(KARPATHY):
        part = "train" if split == "restval" else split
        expected[part] |= {str(1000 * (FIRST + number) + n) for n in range(2)}
        captions[part] |= {str(100 * number + n) for n in range(2)}
    for part, questions in expected.items():
        assert ids(f"shards/vqav2-karpathy-{part}") == questions
        assert ids(f"shards/coco-{part}") == captions[part]
    for sample in packed(Path("shards/vqav2-karpathy-train")).values():
        for annotation in sample.annotations:
            even = int(annotation["id"]) % 2 == 0
            assert annotation["label"] == ({"net": 1.0} if even else {})
            assert len(annotation["answers"]) == 10


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", ["image", "video"])
def test_t5_reads_the_same_data(kind: str) -> None:
    first, second = (
        parse_recipe([str(find(f"recipes/vl_adapter/{family}_{kind}.yaml"))])
        for family in ("bart", "t5")
    )
    assert named(first) == named(second)
    assert f"bart_{kind}.yaml" in comment(f"t5_{kind}")
    assert commands(f"t5_{kind}") == []


OFFICIAL = {
    "vqa": (443_757 + 214_354 - 26_729 - 26_280, 26_729, 26_280),
    "gqa": (943_000 + 132_062, 12_578, 12_578),
    "nlvr": (86_373, 6_982, 6_967),
    "caption": (566_747, 5_000, 5_000),
    "tvqa": (122_039, 15_253, 15_253),
    "how2qa": (34_187, 3_115, 3_095),
    "tvc": (2 * 86_603, 10_895, 15_253),
    "yc2c": (10_337, 3_492, 1_604),
}
"""Examples that the publishers' files have. VQA v2: the questions of train2014 and of val2014,
without those about the 5,000 pictures each of Karpathy's val and test."""


@pytest.mark.parametrize("name", WRITERS)
def test_the_counts_are_the_official_ones(name: str) -> None:
    """The comment's table has them."""
    told = {}
    for line in re.findall(r"^\| (\w+) \| (\d.*) \|$", comment(name), re.MULTILINE):
        cells = [
            re.sub(r" on .*| pictures| clips|,| \(.*", "", cell) for cell in line[1].split("|")
        ]
        told[line[0]] = tuple(sum(map(int, cell.split("+"))) for cell in cells)
    recipe = parse_recipe([str(find(f"recipes/vl_adapter/{name}.yaml"))])
    assert told == {task: OFFICIAL[task] for task in recipe.tasks}

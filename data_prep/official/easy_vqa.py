"""easy-VQA (github.com/vzhou842/easy-VQA): the Python package easy-vqa contains its pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..command import add_shard_options, new_command, shard_options
from ..packing.pack import answer_fields, pack
from ..packing.source import Annotation, SourceSample, SourceSet

SUBSETS = ("all", "plain", "negated")
"""Every question; those without a word of negation; those with one."""


def load_easy_vqa() -> list[tuple[str, SourceSet]]:
    """Train and test, each in all three subsets: (subset, data set)."""
    try:
        import easy_vqa  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise ValueError(
            "the package easy-vqa, which contains the data, is not installed: pip install easy-vqa"
        ) from None
    folder = Path(easy_vqa.__file__).parent / "data"
    parts = {
        "train": (easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths()),
        "test": (easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()),
    }
    datasets = []
    for split, (rows, pictures) in parts.items():
        for subset in SUBSETS:
            samples: dict[int, SourceSample] = {}
            for number, (question, answer, image) in enumerate(zip(*rows, strict=True)):
                if subset != "all" and is_negated(question) != (subset == "negated"):
                    continue
                # All questions about a picture share its sample.
                new = SourceSample(str(image), (Path(pictures[image]),), [])
                annotation = _annotation(str(number), question, answer)
                samples.setdefault(image, new).annotations.append(annotation)
            name = "easy_vqa" if subset == "all" else f"easy_vqa_{subset}"
            files = (folder / split / "questions.json",)
            datasets.append((subset, SourceSet(name, "vqa", split, files, list(samples.values()))))
    return datasets


def is_negated(question: str) -> bool:
    """True for `is there not a red shape?` and `is no red shape present?`."""
    return not {"no", "not"}.isdisjoint(question.lower().rstrip("?").split())


def _annotation(annotation_id: str, question: str, answer: str) -> Annotation:
    """Reports group by question type: what, or yes/no with and without negation."""
    kind = "negated" if is_negated(question) else "plain"
    if answer not in ("yes", "no"):
        kind = "what"
    return {
        "id": annotation_id,
        "question": question,
        **answer_fields([answer]),
        "answer_type": "other" if kind == "what" else "yes/no",
        "question_type": kind,
    }


def add_command(commands: Any) -> None:
    parser = new_command(
        commands,
        "easy-vqa",
        "Writes OUT/train and OUT/test, and of each the questions without and with a negation: "
        "OUT/plain-train, OUT/negated-train, OUT/plain-test, OUT/negated-test. "
        "Needs `pip install easy-vqa`.",
        examples=["easy-vqa --out runs/easy_vqa/data"],
    )
    add_shard_options(parser)

    def run(args: argparse.Namespace) -> None:
        for subset, dataset in load_easy_vqa():
            folder = dataset.split if subset == "all" else f"{subset}-{dataset.split}"
            pack(dataset, args.out / folder, shard_options(args))

    parser.set_defaults(run=run)

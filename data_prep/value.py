"""VALUE's video tasks: TVQA, How2QA, TVC and YC2C, with their feature files and subtitles.

Layout below --src, as VALUE's download script makes it:

    ann/{tvqa,how2qa,tvc,yc2c}/*.jsonl (or ann/*.jsonl)
    ann/{tv,how2,yc2}_subtitles.jsonl (or in the task's folder)
    vis_features/{tv,how2,yc2}/clip-vit/{vid_name}.npz
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_prep.command import add_shard_options, new_command, shard_options
from data_prep.feature_file import locate
from data_prep.pack import pack
from data_prep.source import (
    Annotation,
    SourceSample,
    SourceSet,
    clean,
    first_existing,
    read_json_lines,
    rest,
    take,
    with_source,
)

FRAMES = 64
"""As VL-Adapter: shorter clips end in zeros, longer ones are pooled over time."""
MOST_CHOICES = 5


@dataclass(frozen=True)
class Release:
    """One task of VALUE."""

    videos: str
    """Folder of the features and name of the subtitles."""
    files: Mapping[str, str]
    """Split -> file of annotations."""
    kind: Literal["video_qa", "video_caption"]
    summary: str


RELEASES = {
    "tvqa": Release(
        "tv",
        {"train": "tvqa_train", "val": "tvqa_val", "test": "tvqa_test_release"},
        "video_qa",
        "TVQA: questions with five choices about clips of TV series",
    ),
    "how2qa": Release(
        "how2",
        {
            "train": "how2qa_train_release",
            "val": "how2qa_val_release",
            "test": "how2qa_test_public_release",
        },
        "video_qa",
        "How2QA: questions with four choices about clips of instructions",
    ),
    "tvc": Release(
        "tv",
        {"train": "tvc_train_release", "val": "tvc_val_release", "test": "tvc_test_release"},
        "video_caption",
        "TVC: descriptions of moments of TV series",
    ),
    "yc2c": Release(
        "yc2",
        {"train": "yc2c_train_release", "val": "yc2c_val_release", "test": "yc2c_test_release"},
        "video_caption",
        "YC2C: descriptions of steps in cooking videos",
    ),
}


def parse_value(
    task: str,
    src: Path,
    split: str,
    name: str | None = None,
    annotations: Path | None = None,
    subtitles: Path | None = None,
    features: Path | None = None,
) -> SourceSet:
    """Read a split; all questions about a clip become one sample, and so does each moment."""
    release = RELEASES[task]
    asks = release.kind == "video_qa"
    file = f"{release.files[split]}.jsonl"
    path = annotations or first_existing([src / "ann" / task / file, src / "ann" / file])
    spoken = f"{release.videos}_subtitles.jsonl"
    subtitles = subtitles or first_existing(
        [src / "ann" / spoken, src / "ann" / task / spoken, src / "subtitles" / spoken]
    )
    said = read_subtitles(subtitles)
    place = features or src / "vis_features" / release.videos / "clip-vit"
    samples: dict[str, SourceSample] = {}
    for row in read_json_lines(path):
        video = str(take(row, "vid_name", str(path)))
        sample_id = video if asks else str(take(row, "clip_id", str(path)))
        extra: dict[str, Any] = {"subtitles": said.get(video, [])}
        if "ts" in row and not asks:
            extra["span"] = [float(second) for second in row["ts"]]
        sample = samples.setdefault(
            sample_id,
            SourceSample(
                sample_id, (), [], features=(locate(place, video, FRAMES),), extra=extra,
                source={} if asks else {"vid_name": video},
            ),
        )  # fmt: skip
        sample.annotations.extend([question(row)] if asks else descriptions(row))
    return SourceSet(name or task, release.kind, split, (path, subtitles), list(samples.values()))


def read_subtitles(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Video -> its lines; some videos have none."""
    return {
        str(take(row, "vid_name", str(path))): [
            {"text": clean(line["text"]), "start": line["start"], "end": line["end"]}
            for line in take(row, "sub", str(path))
        ]
        for row in read_json_lines(path)
    }


def question(row: Mapping[str, Any]) -> Annotation:
    """Four choices or five; test splits do not say which is right."""
    number = take(row, "qid", "question")
    place = f"question {number}"
    choices = [f"a{n}" for n in range(MOST_CHOICES) if f"a{n}" in row]
    annotation: Annotation = {
        "id": str(number),
        "question": take(row, "q", place),
        "choices": [row[choice] for choice in choices],
        "span": take(row, "ts", place),
    }
    if "answer_idx" in row:
        index = int(row["answer_idx"])
        if not 0 <= index < len(choices):
            raise ValueError(f"{place}: answer_idx is {index}, but it has {len(choices)} choices")
        annotation["answer_index"] = index
    return with_source(annotation, rest(row, "qid", "q", "ts", "answer_idx", "vid_name", *choices))


def descriptions(row: Mapping[str, Any]) -> list[Annotation]:
    """All descriptions of a moment; a test split has one annotation without any."""
    clip = str(row["clip_id"])
    told = row.get("descs")
    if not told:
        return [{"id": clip}]
    return [
        with_source(
            {"id": str(take(given, "desc_id", f"clip {clip}")), "caption": clean(given["desc"])},
            rest(given, "desc_id", "desc"),
        )
        for given in told
    ]


def add_command(commands: Any) -> None:
    """Add one command a task."""
    for task, release in RELEASES.items():
        parser = new_command(commands, f"value-{task}", release.summary)
        parser.add_argument(
            "--src", type=Path, required=True, metavar="DIR", help="folder of ann/, vis_features/"
        )
        parser.add_argument("--split", choices=tuple(release.files), required=True)
        parser.add_argument("--out", type=Path, required=True, metavar="DIR")
        parser.add_argument("--name", default=task, help=f"of the data set (default: {task})")
        parser.add_argument("--annotations", type=Path, metavar="FILE", help="another file")
        parser.add_argument("--subtitles", type=Path, metavar="FILE", help="another file")
        add_shard_options(parser)

        def run(args: argparse.Namespace, task: str = task) -> None:
            dataset = parse_value(
                task,
                args.src,
                args.split,
                args.name,
                args.annotations,
                args.subtitles,
                args.features,
            )
            pack(dataset, args.out, shard_options(args))

        parser.set_defaults(run=run)

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
from data_prep.packing.feature_file import locate
from data_prep.packing.pack import pack
from data_prep.packing.source import (
    Annotation,
    SourceSample,
    SourceSet,
    clean,
    first_existing,
    numbered_json_lines,
    rest,
    shown,
    take,
    take_id,
    take_list,
    take_text,
    take_whole,
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
    dropped = []
    for number, row in numbered_json_lines(path):
        where = f"{path}, line {number}"
        video = take_id(row, "vid_name", where)
        sample_id = video if asks else take_id(row, "clip_id", where)
        extra: dict[str, Any] = {"subtitles": said.get(video, [])}
        if "ts" in row and not asks:
            extra["span"] = _span(row, where)
        sample = samples.setdefault(
            sample_id,
            SourceSample(
                sample_id, (), [], features=(locate(place, video, FRAMES),), extra=extra,
                source={} if asks else {"vid_name": video},
            ),
        )  # fmt: skip
        for found in [question(row, where)] if asks else descriptions(row, where):
            if found.get("caption") == "":
                dropped.append({"id": found["id"], "reason": "empty caption"})
            else:
                sample.annotations.append(found)
    return SourceSet(
        name or task, release.kind, split, (path, subtitles), list(samples.values()), tuple(dropped)
    )


def read_subtitles(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Video -> its lines; some videos have none."""
    return {
        take_id(row, "vid_name", f"{path}, line {number}"): [
            _line(line, f"{path}, line {number}")
            for line in take_list(row, "sub", f"{path}, line {number}")
        ]
        for number, row in numbered_json_lines(path)
    }


def _line(line: Mapping[str, Any], place: str) -> dict[str, Any]:
    times = {key: take(line, key, place) for key in ("start", "end")}
    return {"text": clean(take_text(line, "text", place)), **times}


def _span(row: Mapping[str, Any], place: str) -> list[float]:
    """Start and end of a moment, in seconds."""
    span = take_list(row, "ts", place)
    if not all(isinstance(second, (int, float)) for second in span):
        raise ValueError(f"{place}: 'ts' is {shown(span)}; expected numbers of seconds")
    return [float(second) for second in span]


def question(row: Mapping[str, Any], place: str) -> Annotation:
    """Four choices or five; test splits do not say which is right."""
    number = take_id(row, "qid", place)
    place = f"{place}, question {number}"
    choices = [f"a{n}" for n in range(MOST_CHOICES) if f"a{n}" in row]
    annotation: Annotation = {
        "id": number,
        "question": take_text(row, "q", place),
        "choices": [take_text(row, choice, place) for choice in choices],
        "span": take_text(row, "ts", place),
    }
    if "answer_idx" in row:
        index = take_whole(row, "answer_idx", place)
        if not 0 <= index < len(choices):
            raise ValueError(f"{place}: answer_idx is {index}, but it has {len(choices)} choices")
        annotation["answer_index"] = index
    return with_source(annotation, rest(row, "qid", "q", "ts", "answer_idx", "vid_name", *choices))


def descriptions(row: Mapping[str, Any], place: str) -> list[Annotation]:
    """All descriptions of a moment; a test split has one annotation without any."""
    told = take_list(row, "descs", place) if "descs" in row else []
    return [
        with_source(
            {
                "id": take_id(given, "desc_id", place),
                "caption": clean(take_text(given, "desc", place)),
            },
            rest(given, "desc_id", "desc"),
        )
        for given in told
    ] or [{"id": take_id(row, "clip_id", place)}]


def add_command(commands: Any) -> None:
    """Add one command a task."""
    for task, release in RELEASES.items():
        example = f"value-{task} --src VALUE --split train --out shards/{task}"
        parser = new_command(commands, f"value-{task}", release.summary, examples=[example])
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

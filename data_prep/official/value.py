"""VALUE's video tasks: TVQA, How2QA, TVC and YC2C, with their feature files and subtitles.

Layout below --src, as VALUE's download script creates it:

    ann/{tvqa,how2qa,tvc,yc2c}/*.jsonl (or ann/*.jsonl)
    ann/{tv,how2,yc2}_subtitles.jsonl (or in the task's folder)
    vis_features/{tv,how2,yc2}/clip-vit/{vid_name}.npz
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from ..json_rows import JsonRow, read_lines, shown
from ..packing.source import Annotation, Dropped, SourceSample, SourceSet, find_file, locate
from .published import Download, OfficialSet, other_file

FRAMES = 64
"""As VL-Adapter: shorter clips are padded with zeros, longer ones pooled over time."""


@dataclass(frozen=True)
class ValueTask:
    videos: str
    """Folder of the features and prefix of the subtitle file."""
    files: tuple[str, str, str]
    """Annotations of train, val and test."""
    kind: Literal["video_qa", "video_caption"]


SPLITS = ("train", "val", "test")
RELEASES = {
    "tvqa": ValueTask(
        "tv",
        ("tvqa_train", "tvqa_val", "tvqa_test_release"),
        "video_qa",
    ),
    "how2qa": ValueTask(
        "how2",
        ("how2qa_train_release", "how2qa_val_release", "how2qa_test_public_release"),
        "video_qa",
    ),
    "tvc": ValueTask(
        "tv",
        ("tvc_train_release", "tvc_val_release", "tvc_test_release"),
        "video_caption",
    ),
    "yc2c": ValueTask(
        "yc2",
        ("yc2c_train_release", "yc2c_val_release", "yc2c_test_release"),
        "video_caption",
    ),
}

ADDRESS = "https://github.com/VALUE-Leaderboard/DataRelease"


def parse_value(
    task: str,
    src: Path,
    split: str,
    name: str | None = None,
    annotations: Path | None = None,
    features: Path | None = None,
) -> SourceSet:
    """Read a split; all questions about a clip become one sample, and so does each moment."""
    release = RELEASES[task]
    asks = release.kind == "video_qa"
    file = f"{release.files[SPLITS.index(split)]}.jsonl"
    path = annotations or find_file(src, (f"ann/{task}", "ann"), file)
    subtitles = find_file(
        src, ("ann", f"ann/{task}", "subtitles"), f"{release.videos}_subtitles.jsonl"
    )
    # Video -> its lines with their seconds; some videos have none.
    spoken = {
        row.id("vid_name"): [
            {"text": line.line("text"), "start": line.value("start"), "end": line.value("end")}
            for line in row.rows("sub", "subtitle")
        ]
        for _, row in read_lines(subtitles)
    }
    feature_folder = features or src / "vis_features" / release.videos / "clip-vit"
    samples: dict[str, SourceSample] = {}
    dropped = []
    for _, row in read_lines(path):
        video = row.id("vid_name")
        sample = SourceSample(
            id=video if asks else row.id("clip_id"),
            images=(),
            annotations=[],
            features=(locate(feature_folder, video, FRAMES),),
            extra={"subtitles": spoken.get(video, [])},
        )
        if not asks:
            sample.source["vid_name"] = video
            if "ts" in row:
                span = row.array("ts")
                if not all(isinstance(second, (int, float)) for second in span):
                    raise ValueError(
                        f"{row.place}: 'ts' is {shown(span)}; expected numbers of seconds"
                    )
                sample.extra["span"] = [float(second) for second in span]
        # Questions about a clip share its sample; each moment has one.
        sample = samples.setdefault(sample.id, sample)
        for annotation in [_question(row)] if asks else _descriptions(row):
            if annotation.get("caption") == "":
                dropped.append(Dropped(annotation["id"], "empty caption"))
            else:
                sample.annotations.append(annotation)
    return SourceSet(
        name or task, release.kind, split, (path, subtitles), list(samples.values()), tuple(dropped)
    )


def _question(row: JsonRow) -> Annotation:
    """A question with four or five choices; test splits do not say which is right."""
    question_id = row.id("qid")
    row = row.at(f"{row.place}, question {question_id}")
    # TVQA has a0 to a4, How2QA a0 to a3.
    choices = [f"a{n}" for n in range(5) if f"a{n}" in row]
    annotation: Annotation = {
        "id": question_id,
        "question": row.text("q"),
        "choices": [row.text(choice) for choice in choices],
        "span": row.text("ts"),
    }
    if "answer_idx" in row:
        index = row.whole("answer_idx")
        if not 0 <= index < len(choices):
            raise ValueError(
                f"{row.place}: answer_idx is {index}, but it has {len(choices)} choices"
            )
        annotation["answer_index"] = index
    return row.annotate(annotation, "qid", "q", "ts", "answer_idx", "vid_name", *choices)


def _descriptions(row: JsonRow) -> list[Annotation]:
    """All descriptions of a moment; a test split has one annotation without a caption."""
    given = row.rows("descs", "description") if "descs" in row else ()
    return [
        entry.annotate(
            {"id": entry.id("desc_id"), "caption": entry.line("desc")}, "desc_id", "desc"
        )
        for entry in given
    ] or [{"id": row.id("clip_id")}]


SETS = tuple(
    OfficialSet(
        # TVQA, How2QA, TVC, YC2C
        title=task.upper().replace("HOW", "How"),
        command=f"value-{task}",
        name=task,
        folders="--src VALUE",
        needs={
            split: tuple(
                Download(f"VALUE/{place}", ADDRESS, licence="that of each publisher")
                for place in (
                    f"ann/{task}/{file}.jsonl",
                    f"ann/{release.videos}_subtitles.jsonl",
                    f"vis_features/{release.videos}/clip-vit",
                )
            )
            for split, file in zip(SPLITS, release.files, strict=True)
        },
        parse=partial(parse_value, task),
        holds="ann/, vis_features/",
        options={"--annotations": other_file("another file")},
    )
    for task, release in RELEASES.items()
)

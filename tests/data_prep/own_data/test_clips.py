"""Rows about clips of video: kept with their frames in place, or dropped and counted."""

from __future__ import annotations

import base64
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.cli import main
from tests.toys.files import write
from tests.toys.films import color_of, film
from tests.toys.own_rows import photos
from tests.toys.shards import packed
from vlds.data.shards.info import DatasetInfo
from vlds.data.shards.store import open_dataset
from vlds.schema import Clip, Sample
from vlds.tasks import Chat

QUESTION, ANSWER = {"role": "user", "content": "<video>q"}, {"role": "assistant", "content": "a"}
PART = {"type": "video", "times": [1.0, 3.0], "duration": 4.0}
TEXT = {"type": "text", "text": "q"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("one.mp4", "two.mp4"):
        film(tmp_path / "clips" / name, 4 if name == "one.mp4" else 8)
    photos(tmp_path / "photos", "a.jpg", "b.jpg")
    return tmp_path


def prepare(folder: Path, rows: object, *more: str, name: str = "rows.jsonl") -> int:
    if isinstance(rows, list):
        rows = "\n".join(map(json.dumps, rows))
    places = ["--images", str(folder / "photos"), "--videos", str(folder / "clips")]
    words = ["--annotations", str(write(folder / name, rows)), "--out", str(folder / "out")]
    return main(["video", *words, *places, "--frames", "2", "--workers", "1", *more])


def clips_in(sample: Sample) -> list[Clip]:
    example = Chat().example("chat", sample, 0, None)
    return [clip for turn in example.turns for clip in turn.clips]


def asked(*content: Any) -> dict[str, Any]:
    """A conversation whose question has these parts."""
    return {"messages": [{"role": "user", "content": list(content)}, ANSWER]}


ROWS: dict[str, dict[str, Any]] = {
    "marks": {"messages": [QUESTION, ANSWER], "videos": ["one.mp4"]},
    "llava": {
        "conversations": [{"from": "human", "value": "<video>q"}, {"from": "gpt", "value": "a"}],
        "video": "one",
    },
    "parts": asked({"type": "video", "video": "one.mp4"}, TEXT),
    "urls": asked({"type": "video_url", "video_url": {"url": "one.mp4"}}, TEXT),
    "unplaced": {"messages": [{"role": "user", "content": "q"}, ANSWER], "video": "one.mp4"},
    "plain": {"video": "one.mp4", "question": "q", "answer": "a"},
    "alpaca": {"instruction": "<video>q", "output": "a", "videos": ["one.mp4"]},
}  # fmt: skip


@pytest.mark.parametrize("form", ROWS)
def test_forms_of_rows(form: str, folder: Path) -> None:
    assert prepare(folder, [ROWS[form] | {"patient": "p7"}]) == 0
    (sample,) = packed(folder / "out").values()
    assert sample.id == "one.mp4"
    assert sample.annotations[0] == {
        "id": "1",
        "turns": [{"role": "user", "content": [PART, TEXT]}],
        "answer": "a",
        "source": {"patient": "p7"},
    }
    assert [color_of(bytes(image)) for image in sample.images] == [1, 3]
    assert clips_in(sample) == [Clip((1.0, 3.0), 4.0)]
    image = DatasetInfo.load(folder / "out").image
    assert image is not None
    assert image["frames"] == {"num": 2}


def test_pictures_and_clips_between_the_words(folder: Path) -> None:
    row = {
        "messages": [
            {"role": "user", "content": "see <image> and <video>, <video> or <image>?"}, ANSWER,
            {"role": "user", "content": "<video>so?"}, {"role": "assistant", "content": "b"},
        ],
        "images": ["a.jpg", "b.jpg"], "videos": ["two.mp4", "one.mp4", "two.mp4"],
    }  # fmt: skip
    text = {"messages": [{"role": "user", "content": "only text"}, ANSWER]}
    assert prepare(folder, [row, text], "--each-turn") == 0
    samples = packed(folder / "out")
    assert set(samples) == {"row 1-0", "row 1-1", "row 2"}
    last = samples["row 1-1"]
    example = Chat().example("chat", last, 0, None)
    two, one = Clip((2.0, 6.0), 8.0), Clip((1.0, 3.0), 4.0)
    assert example.turns[0].content == ("see ", None, " and ", two, ", ", one, " or ", None, "?")
    assert example.turns[2].content == (two, "so?")
    pictures = [bytes(image) for image in last.images]
    assert pictures[0] == (folder / "photos" / "a.jpg").read_bytes()
    assert pictures[5] == (folder / "photos" / "b.jpg").read_bytes()
    shown = [color_of(pictures[n]) for n in (1, 2, 3, 4, 6, 7)]
    assert shown == [2, 6, 1, 3, 2, 6]
    assert [bytes(image) for image in samples["row 1-0"].images] == pictures[:6]


def test_spans_of_clips(folder: Path) -> None:
    rows = [
        {"video": "two.mp4", "question": "q", "answer": "a", "video_start": 2, "video_end": 6.0},
        {"video": "two.mp4", "question": "q", "answer": "b"},
        asked({"type": "video", "video": "two.mp4", "video_start": 4}, TEXT),
    ]
    assert prepare(folder, rows) == 0
    samples = packed(folder / "out")
    found = {name: clips_in(sample) for name, sample in samples.items()}
    assert found == {
        "two.mp4 2-6 s": [Clip((3.0, 5.0), 4.0)],
        "two.mp4": [Clip((2.0, 6.0), 8.0)],
        "two.mp4 4-end s": [Clip((5.0, 7.0), 4.0)],
    }


def test_a_picture_and_a_clip_of_one_name_are_two(folder: Path) -> None:
    film(folder / "clips" / "both.gif", 4)
    write(folder / "photos" / "both.gif", (folder / "clips" / "both.gif").read_bytes())
    rows = [
        {"video": "both.gif", "question": "q", "answer": "a"},
        {"image": "both.gif", "question": "q", "answer": "a"},
    ]
    assert prepare(folder, rows) == 0
    samples = packed(folder / "out")
    found = {name: (len(s.images), clips_in(s)) for name, s in samples.items()}
    assert found == {"both.gif": (1, []), "both.gif 0-end s": (2, [Clip((1.0, 3.0), 4.0)])}
    # A picture that is missing is not a clip that is there.
    assert prepare(folder, [*rows, {"image": "one.mp4", "question": "q", "answer": "a"}]) == 2


DROPPED: dict[str, tuple[dict[str, Any], str]] = {
    "marks": ({"messages": [QUESTION, ANSWER]}, "1 mark for 0 clips"),
    "clips": ({"messages": [QUESTION, ANSWER], "videos": ["one", "two"]}, "1 mark for 2 clips"),
    "server": (ROWS["plain"] | {"video": "https://x.org/a.mp4"}, "a clip on a server"),
    "frames": (ROWS["plain"] | {"video": [["a.jpg"]]}, 'a clip that is ["a.jpg"]'),
    "both": (ROWS["marks"] | {"video": "one.mp4"}, "clips in videos and video"),
    "span": (ROWS["plain"] | {"video_start": 5, "video_end": 2}, "that end before they begin"),
    "seconds": (ROWS["plain"] | {"video_start": "x"}, "that are not seconds"),
    "answer": (ROWS["plain"] | {"answer": ["a", "b"]}, "an answer that is not text"),
    "painted": (
        {"messages": [QUESTION | {"content": "q"}, ANSWER | {"content": "<video>"}],
         "video": "one"},
        "a clip in an answer",
    ),
    "damaged": (ROWS["plain"] | {"video": "cut.mp4"}, "clip: truncated or damaged"),
    "text": (ROWS["plain"] | {"video": "text.mp4"}, "clip: not a clip, or damaged"),
    "late": (ROWS["plain"] | {"video_start": 99}, "clip: a span that begins behind the clip's end"),
}  # fmt: skip


def test_what_cannot_be_kept_is_dropped_and_counted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = film(folder / "whole.mp4", 8, gop=1, movflags="faststart").read_bytes()
    write(folder / "clips" / "cut.mp4", whole[: len(whole) // 2])
    write(folder / "clips" / "text.mp4", b"no clip " * 99)
    rows = [ROWS["plain"], *(row for row, _ in DROPPED.values())]
    assert prepare(folder, rows, "--strict") == 2
    told = capsys.readouterr().err
    assert f"--strict: {len(DROPPED)} rows cannot be kept whole" in told
    assert not (folder / "out").exists()
    assert prepare(folder, rows) == 0
    told = capsys.readouterr().out
    for reason in (reason for _, reason in DROPPED.values()):
        assert any(f"dropped: {reason}" in line or reason in line for line in told.splitlines())
    assert len(packed(folder / "out")) == 1
    dropped = DatasetInfo.load(folder / "out").dropped
    assert {"id": "cut.mp4", "reason": "clip: truncated or damaged"} in dropped


def test_missing_clips_are_named_before_any_work(folder: Path, refused: Any) -> None:
    rows = [ROWS["plain"], ROWS["plain"] | {"video": "no.mp4"}]
    told = refused(prepare(folder, rows), "no.mp4 is missing; line 2 of rows.jsonl names it.")
    assert "Check --videos" in told
    film(folder / "secret.mp4", 1)
    refused(prepare(folder, [ROWS["plain"] | {"video": "../secret.mp4"}]), "is outside")
    assert prepare(folder, rows, "--skip-missing") == 0
    assert DatasetInfo.load(folder / "out").dropped == (
        {"id": "no.mp4", "reason": "clip: missing"},
    )


@pytest.mark.parametrize("form", ["base64", "tar"])
def test_clips_in_rows_and_tar_files(form: str, folder: Path) -> None:
    path = folder / "clips" / "one.mp4"
    row = ROWS["plain"]
    if form == "base64":
        row = row | {"video": base64.b64encode(path.read_bytes()).decode()}
        assert prepare(folder, [row]) == 0
    else:
        with tarfile.open(folder / "clips.tar", "w") as archive:
            archive.add(path, "one.mp4")
        assert prepare(folder, [row], "--videos", str(folder / "clips.tar")) == 0
    (sample,) = packed(folder / "out").values()
    assert [color_of(bytes(image)) for image in sample.images] == [1, 3]


def test_other_numbers_of_frames_are_bad_samples(folder: Path) -> None:
    assert prepare(folder, [ROWS["plain"]]) == 0
    sample = open_dataset(folder / "out").read(0)
    (annotation,) = sample.annotations
    for part in (
        PART | {"times": [1.0]},
        PART | {"times": [3.0, 1.0]},
        PART | {"times": [1.0, "3"]},
        PART | {"times": []},
        PART | {"duration": -1.0},
        PART | {"times": [1.0, float("nan")]},
    ):
        turns = [{"role": "user", "content": [part, TEXT]}]
        changed = Sample(**{**vars(sample), "annotations": ({**annotation, "turns": turns},)})
        with pytest.raises(ValueError, match=r"seconds expected|its turns name 1 pictures"):
            Chat().example("chat", changed, 0, np.random.default_rng(0))

"""Frames of clips: the right ones at the right times, however a clip is stored."""

from __future__ import annotations

import random
import struct
import wave
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from data_prep.packing import clip
from data_prep.packing.clip import BadClip, Frames, read_clip
from data_prep.packing.picture import FrameRule, PictureRule
from data_prep.packing.source import Span
from tests.toys.films import CODECS, color_of, film, write_film


def frames_of(path: Path, num: int = 4, span: Span | None = None, **rule: Any) -> Frames:
    frames = FrameRule(num, rule.pop("fps", None), rule.pop("most", FrameRule.most))
    return read_clip(path, PictureRule(frames=frames, **rule), *([] if span is None else [span]))


def colors(found: Frames) -> list[int]:
    return [color_of(picture.data) for picture in found.pictures]


@pytest.mark.parametrize("ending", CODECS)
def test_the_frame_in_the_middle_of_each_stretch(ending: str, tmp_path: Path) -> None:
    """Stretches of two seconds: the frames at 1, 3, 5 and 7 seconds."""
    found = frames_of(film(tmp_path / f"a.{ending}", 8))
    assert found.times == pytest.approx([1, 3, 5, 7], abs=0.002)
    assert found.duration == pytest.approx(8, abs=0.11)
    assert colors(found) == [1, 3, 5, 7]
    assert [(p.width, p.height, p.extension) for p in found.pictures] == [(48, 32, "jpg")] * 4


@pytest.mark.parametrize(
    ("seconds", "rule", "times"),
    [
        (8, {"fps": 0.5}, [1, 3, 5, 7]),
        (8, {"fps": 1.0}, [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5]),
        (8, {"fps": 1.0, "most": 2}, [2, 6]),
        (8, {"fps": 0.01}, [4]),
        (8, {"num": 1}, [4]),
        (0.3, {"num": 8}, [0, 0.1, 0.2]),
        (0.1, {"num": 8}, [0]),
        (8, {"span": Span(2, 6)}, [2.5, 3.5, 4.5, 5.5]),
        (8, {"span": Span(6)}, [6.2, 6.7, 7.2, 7.7]),
        (8, {"span": Span(6, 99)}, [6.2, 6.7, 7.2, 7.7]),
    ],
)
def test_how_many_and_when(
    seconds: float, rule: dict[str, Any], times: list[float], tmp_path: Path
) -> None:
    found = frames_of(film(tmp_path / "a.mp4", seconds), **rule)
    assert found.times == pytest.approx(times)
    assert colors(found) == [int(time + 1e-6) for time in times]
    span = rule.get("span", Span())
    assert found.duration == pytest.approx(min(span.end or seconds, seconds) - span.start)


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_frames_of_unlike_lengths(ending: str, tmp_path: Path) -> None:
    """Each is shown until the next one comes: at 1.25, 3.75, 6.25 and 8.75 of ten seconds."""
    path = write_film(tmp_path / f"a.{ending}", [0, 0.1, 3, 3.1, 3.2, 7.5, 9.9])
    found = frames_of(path)
    assert found.times == pytest.approx([0.1, 3.2, 7.5], abs=0.002)
    assert colors(found) == [0, 3, 7]


@pytest.mark.parametrize("gop", [20, 10_000])
@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
def test_frames_of_long_clips_are_those_of_a_whole_decoding(
    ending: str, gop: int, tmp_path: Path
) -> None:
    path = film(tmp_path / f"a.{ending}", 120, gop=gop)
    rule = PictureRule(frames=FrameRule(6))
    found = read_clip(path, rule)
    whole = clip._sampled(path, rule, Span(), jumps=False)
    assert found == whole
    assert found.times == pytest.approx([10, 30, 50, 70, 90, 110], abs=0.002)


QUARTERS = np.zeros((32, 48, 3), np.uint8)
QUARTERS[:16, :24], QUARTERS[:16, 24:] = (220, 30, 30), (30, 200, 30)
QUARTERS[16:, :24], QUARTERS[16:, 24:] = (30, 30, 220), (220, 220, 30)
TURNS = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}
"""Degrees to the right -> a, b, c and d of the matrix in MP4's head of a track."""


@pytest.mark.parametrize("degrees", TURNS)
def test_clips_of_phones_are_turned_upright(degrees: int, tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mp4", [0, 0.1], pictures=[QUARTERS] * 2)
    data = bytearray(path.read_bytes())
    # "tkhd", version and flags, 5 numbers, 8 bytes, 4 short numbers, then the matrix.
    begin = data.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
    a, b, c, d = (value << 16 for value in TURNS[degrees])
    struct.pack_into(">9i", data, begin, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    (picture, *_) = frames_of(path).pictures
    upright = np.rot90(QUARTERS, -degrees // 90)
    assert (picture.height, picture.width) == upright.shape[:2]
    (tmp_path / "a.jpg").write_bytes(picture.data)
    seen = np.asarray(Image.open(tmp_path / "a.jpg"), int)
    corners = (4, -4)
    for row in corners:
        for column in corners:
            assert np.abs(seen[row, column] - upright[row, column]).max() < 40


def test_frames_are_resized_as_pictures_are(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", 1)
    for form, extension in (("webp", "webp"), ("jpeg", "jpg")):
        (picture,) = frames_of(path, 1, size=16, format=form).pictures
        assert (picture.width, picture.height, picture.extension) == (24, 16, extension)
        assert color_of(picture.data) == 0
    (square,) = frames_of(path, 1, size=20, square=True).pictures
    assert (square.width, square.height) == (20, 20)


def sound(path: Path) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(16_000))
    with av.open(str(path)) as source, av.open(str(path.with_suffix(".mp4")), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        for frame in source.decode(audio=0):
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.with_suffix(".mp4")


def test_what_is_no_clip(tmp_path: Path) -> None:
    whole = film(tmp_path / "whole.mp4", 8, movflags="faststart").read_bytes()
    film(tmp_path / "other.mp4", 8)
    content = {
        "empty.mp4": (b"", "empty file"),
        "text.mp4": (b"no clip at all\n" * 99, "not a clip, or damaged"),
        # FFmpeg would open what these name.
        "list.m3u8": (b"#EXTM3U\n#EXTINF:8,\nother.mp4\n#EXT-X-ENDLIST\n", "not a clip"),
        "list.ffconcat": (b"ffconcat version 1.0\nfile other.mp4\n", "not a clip, or damaged"),
        "cut.mp4": (whole[: len(whole) // 2], "truncated or damaged"),
        "head.mp4": (whole[:200], "not a clip, or damaged|no video in it"),
    }
    for name, (data, reason) in content.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BadClip, match=reason):
            frames_of(tmp_path / name)
    with pytest.raises(BadClip, match="no video in it"):
        frames_of(sound(tmp_path / "sound.wav"))
    with pytest.raises(BadClip, match="begins behind the clip's end"):
        frames_of(tmp_path / "whole.mp4", span=Span(8.5, 9))


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi", "webm"])
def test_damaged_bytes_raise_nothing_else(ending: str, tmp_path: Path) -> None:
    whole = film(tmp_path / f"a.{ending}", 4).read_bytes()
    noticed = 0
    for seed in range(30):
        draw, data = random.Random(seed), bytearray(whole)
        start = draw.randrange(len(data))
        data[start : start + 200] = draw.randbytes(len(data[start : start + 200]))
        (tmp_path / f"b.{ending}").write_bytes(data)
        try:
            found = frames_of(tmp_path / f"b.{ending}")
            assert sorted(set(found.times)) == found.times
        except BadClip:
            noticed += 1
    assert noticed

"""Clips of video: which of their frames a shard stores, and when these are shown.

A clip, or the span of it that a row names, is cut into equal stretches of time, and the frame that
is shown in the middle of each is stored: what LLaVA-Video's and others' "uniform sampling" does by
frame numbers. By presentation times it is right too where the frame rate varies. A frame that fills
several stretches is stored once, so a clip of fewer frames gives all that it has.

Frames are decoded in order. The reader jumps ahead to the key frame before the next wanted frame
where the file says where that is; a jump that lands behind the wanted frame is given up, and the
clip is read from its beginning. So frames are those of a whole decoding, and memory holds two of
them. FFmpeg hides most damage behind pixels of its own; here it is told to stop at it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vlds.data.shards.pictures import MAX_PIXELS
from vlds.runtime.files import open_file

from .picture import ENCODINGS, Picture, PictureRule, prepare_picture
from .source import WHOLE, Span

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "gif",
)  # fmt: skip
"""Containers that are read, in FFmpeg's names. Others, such as playlists, name further files or
addresses, which FFmpeg would open."""
OPTIONS = {
    "format_whitelist": ",".join(FORMATS),
    "protocol_whitelist": "none",
    "err_detect": "crccheck+bitstream+buffer+explode",
    "max_pixels": str(MAX_PIXELS),
    "threads": "1",  # packing has as many processes as it shall use
}
FAR = 2.0
"""Seconds: the reader decodes what lies nearer, rather than jump."""
BACK = (0.0, 4.0, 16.0)
"""Seconds before the wanted frame to which the reader jumps, one after the other."""
ROUNDING = 1e-6
"""Seconds that sums of times may be off."""
DIGITS = 6
"""Of times in seconds."""
DAMAGED = "truncated or damaged"


class BadClip(Exception):
    """An unusable clip; the message is the reason that the summary counts."""


class _Overshot(Exception):
    """A jump has led behind the wanted frame."""


@dataclass(frozen=True)
class Frames:
    """What a shard stores of a clip."""

    pictures: list[Picture]
    times: list[float]
    """Seconds from the clip's first frame at which each is shown first."""
    duration: float
    """Seconds of the clip, or of the span of it."""


class _Opened(NamedTuple):
    container: Any
    stream: Any


def check_av() -> None:
    """Errors: ValueError if the optional package av is missing."""
    try:
        import av  # noqa: F401
    except ImportError:
        raise ValueError("clips need the package av: pip install 'vlds[video]'") from None


def read_clip(path: Path, rule: PictureRule, span: Span = WHOLE) -> Frames:
    """The frames of a clip that `rule.frames` chooses, upright.

    Errors: BadClip.
    """
    import av

    try:
        try:
            return _sampled(path, rule, span, jumps=True)
        except _Overshot:
            return _sampled(path, rule, span, jumps=False)
    except BadClip:
        raise
    except OSError as error:
        if not isinstance(error, av.FFmpegError):
            raise
        raise BadClip(DAMAGED) from None
    except Exception:  # damaged bytes make decoders raise anything
        raise BadClip(DAMAGED) from None


def _sampled(path: Path, rule: PictureRule, span: Span, jumps: bool) -> Frames:
    with _open(path) as opened:
        begin, end = _extent(opened)
    length = end - begin
    if not (math.isfinite(length) and length > 0):
        raise BadClip("no duration")
    start, stop = span.start, length if span.end is None else min(span.end, length)
    if start >= stop:
        raise BadClip("a span that begins behind the clip's end")
    count = rule.frames.count(stop - start)
    stretch = (stop - start) / count
    wanted = [begin + start + (n + 0.5) * stretch for n in range(count)]
    pictures: list[Picture] = []
    times: list[float] = []
    with _open(path) as opened:
        for time, frame in _frames_at(opened, wanted, jumps):
            if (shown := round(time - begin, DIGITS)) not in times[-1:]:
                pictures.append(_picture(frame, rule))
                times.append(shown)
    return Frames(pictures, times, round(stop - start, DIGITS))


@contextmanager
def _open(path: Path) -> Iterator[_Opened]:
    import av

    # By an open file and not by its name: FFmpeg reads many names as addresses.
    with open_file(path) as file:
        if not file.peek(1):
            raise BadClip("empty file")
        # A title may have any encoding. PyAV reads it as it is from version 19 on; older ones raise
        # an error unless they are told to ignore it.
        old = int(av.__version__.partition(".")[0]) < 19
        titles: dict[str, Any] = {"metadata_errors": "ignore"} if old else {}
        try:
            container = av.open(file, options=dict(OPTIONS), **titles)
        except av.FFmpegError:
            raise BadClip("not a clip, or damaged") from None
        with container:
            streams = [
                stream
                for stream in container.streams.video
                if not stream.disposition & av.stream.Disposition.attached_pic  # a cover
            ]
            if not streams:
                raise BadClip("no video in it")
            yield _Opened(container, streams[0])


def _extent(opened: _Opened) -> tuple[float, float]:
    """When a clip's first frame is shown, and when its last one ends, in the stream's seconds."""
    container, stream = opened
    base = stream.time_base
    first = next(container.decode(stream), None)
    if first is None:
        raise BadClip("no frame in it")
    begin = _time(first)
    end = 0.0
    if stream.duration:
        start = begin if stream.start_time is None else float(stream.start_time * base)
        end = start + float(stream.duration * base)
    # Matroska, MPEG-TS and others say it of the whole file alone, where sound may go on for longer,
    # and MP4 counts in the order of decoding: the packets behind the last key frame say it better.
    # But a file that was cut off has none where its header says.
    if container.duration:
        container.seek(container.duration + (container.start_time or 0), backward=True)
        end = max(end, _last_end(opened))
    if not end:
        container.seek(container.start_time or 0, backward=True)
        end = _last_end(opened)
    return begin, end


def _last_end(opened: _Opened) -> float:
    """When the last of the packets from here on ends; 0 without any."""
    container, stream = opened
    end = 0.0
    for packet in container.demux(stream):
        if packet.pts is not None:
            usual = 1 / stream.average_rate if stream.average_rate else 0
            length = packet.duration * stream.time_base if packet.duration else usual
            end = max(end, float(packet.pts * stream.time_base + length))
    return end


def _frames_at(
    opened: _Opened, wanted: Sequence[float], jumps: bool
) -> Iterator[tuple[float, Any]]:
    """For each time, in ascending order, the frame that is shown then, and when that begins.

    Errors: BadClip if the frames end too early, _Overshot.
    """
    container, stream = opened
    usual = 2 / float(stream.average_rate) if stream.average_rate else 1.0
    decoded = container.decode(stream)
    shown, ahead = next(decoded, None), next(decoded, None)
    if shown is None:
        raise BadClip("no frame in it")
    for time in wanted:
        if jumps and ahead is not None and time - _time(ahead) > FAR:
            position = _time(ahead)
            for back in BACK:  # some containers know roughly where a time is
                target = int((time - back) / stream.time_base)
                container.seek(target, stream=stream, backward=True)
                decoded = container.decode(stream)
                shown, ahead = next(decoded, None), next(decoded, None)
                if shown is not None and _time(shown) <= time + ROUNDING:
                    break
            else:
                raise _Overshot
            # A clip whose next key frame is behind the wanted frame: there is nothing to gain.
            jumps = _time(shown) > position
        assert shown is not None
        while ahead is not None and _time(ahead) <= time + ROUNDING:
            shown, ahead = ahead, next(decoded, None)
        length = float((shown.duration or 0) * shown.time_base)
        if ahead is None and time > _time(shown) + max(length, usual):
            raise BadClip(DAMAGED)  # it is shorter than its header says
        if shown.is_corrupt:
            raise BadClip(DAMAGED)
        yield _time(shown), shown


def _time(frame: Any) -> float:
    number = frame.dts if frame.pts is None else frame.pts
    if number is None:
        raise BadClip("frames without times")
    return float(number * frame.time_base)


def _picture(frame: Any, rule: PictureRule) -> Picture:
    """A frame as shards store it: as JPEG, or resized as other pictures are."""
    pixels = frame.to_ndarray(format="rgb24")
    # Phones store how the picture lay on the sensor, and the turn that makes it upright.
    pixels = np.rot90(pixels, round(frame.rotation / 90) % 4)
    image, buffer = Image.fromarray(np.ascontiguousarray(pixels)), io.BytesIO()
    if rule.target(*image.size) == image.size:
        image.save(buffer, "jpeg", **ENCODINGS["jpeg"])
        return Picture(buffer.getvalue(), "jpg", *image.size)
    image.save(buffer, "bmp")
    return prepare_picture(buffer.getvalue(), rule)

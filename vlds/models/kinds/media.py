"""What the processors of image-text models make of pictures and clips, and how the rows of a batch
put it together. A clip is a video of the processor where it has such."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from inspect import signature
from itertools import islice
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vlds.models.kinds.chat_format import ChatFormat
from vlds.schema import Clip, Piece, Turn

READ_CLIPS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl", "smolvlm")
"""Types that read a clip as a video, if their chat template has a place for one. For others, its
frames are pictures."""
APART = ("smolvlm",)
"""Types whose processor loses the pictures of a row that has a clip too: there, the frames are
pictures."""
EXACT = ("second_per_grid_ts",)
"""Numbers beside pixels that stay float32, since positions are computed of them."""
PADDED = ("llava_onevision",)
"""Types that read clips as one tensor, and so with as many frames each."""
TICKS = 1_000_000
"""Per second: processors take the times of frames as numbers of frames at a rate."""


SHORT = Clip((0.0,), 1.0)
"""A clip of one frame."""


class ShownClip(NamedTuple):
    """A clip with its frames (3, h, w)."""

    clip: Clip
    frames: Sequence[Tensor]

    @property
    def metadata(self) -> dict[str, Any]:
        """When the frames are shown, as Hugging Face's VideoMetadata."""
        return {
            "fps": TICKS,
            "frames_indices": [round(time * TICKS) for time in self.clip.times],
            "total_num_frames": round(self.clip.duration * TICKS),
            "duration": self.clip.duration,
        }

    def of_least(self, num: int) -> ShownClip:
        """With at least so many frames: the last one is shown again."""
        missing = max(0, num - len(self.frames))
        times = self.clip.times + self.clip.times[-1:] * missing
        frames = [*self.frames, *[self.frames[-1]] * missing]
        return ShownClip(self.clip._replace(times=times), frames)


def has_place(chat: ChatFormat, processor: Any, model_type: str) -> bool:
    """True if the processor of a model reads clips as videos, and its template has a place for
    them."""
    token = getattr(processor, "video_token", None)
    if model_type not in READ_CLIPS or token is None or not chat.has_template:
        return False
    with suppress(ValueError):
        return str(token) in chat.write((Turn("user", (SHORT, "what ?")),)).text
    return False


def videos_of(clips: Sequence[ShownClip], processor: Any) -> dict[str, Any]:
    """Clips as arguments of a processor."""
    if not clips:
        return {}
    # Qwen's models read frames in pairs, and Qwen3-VL's processor makes none of a single one.
    least = getattr(processor.video_processor, "temporal_patch_size", 1)
    shown = [clip.of_least(least) for clip in clips]
    return {
        "videos": [torch.stack(list(clip.frames)) for clip in shown],
        "video_metadata": [clip.metadata for clip in shown],
        "do_sample_frames": False,  # they are chosen already
    }


def pieces_of(turns: Sequence[Turn]) -> list[Piece]:
    """What the turns say, one after the other."""
    return [piece for turn in turns for piece in turn.content]


def shown_in(
    turns: Sequence[Turn], pictures: Sequence[Tensor]
) -> tuple[list[Tensor], list[ShownClip]]:
    """The pictures of a conversation, apart from its clips with their frames."""
    rest = iter(pictures)
    alone: list[Tensor] = []
    clips: list[ShownClip] = []
    for piece in pieces_of(turns):
        if piece is None:
            alone.append(next(rest))
        elif isinstance(piece, Clip):
            clips.append(ShownClip(piece, list(islice(rest, len(piece.times)))))
    return alone, clips


def in_type(name: str, values: Tensor, dtype: torch.dtype) -> Tensor:
    """A processor's tensor as the model reads it."""
    is_pixels = values.is_floating_point() and name not in EXACT
    return values.to(dtype) if is_pixels else values


def joined(media: Sequence[Mapping[str, Tensor]], dtype: torch.dtype) -> dict[str, Tensor]:
    """The rows' media in one tensor each: along dimension 0, other dimensions padded with zeros to
    the largest. All types of models read this (they drop empty tiles)."""
    whole: dict[str, Tensor] = {}
    for name in dict.fromkeys(name for row in media for name in row):
        tensors = [row[name] for row in media if name in row]
        largest = [max(sizes) for sizes in zip(*(t.shape[1:] for t in tensors), strict=True)]
        padded = []
        for tensor in tensors:
            gaps = [most - size for most, size in zip(largest, tensor.shape[1:], strict=True)]
            # F.pad takes (before, after) of each dimension, the last one first.
            padded.append(F.pad(tensor, [n for gap in reversed(gaps) for n in (0, gap)]))
        whole[name] = in_type(name, torch.cat(padded), dtype)
    return whole


class WholeClips:
    """Stands before a model's `get_video_features` and drops what belongs to the frames with which
    shorter clips of a batch are padded."""

    def __init__(self, read: Callable[..., Any]) -> None:
        self.read = read
        self.__signature__ = signature(read)  # `generate` passes what it names
        self.num_frames: list[int] = []
        """Of each clip of the batch, in their order."""

    def expect(self, media: Sequence[Mapping[str, Tensor]]) -> None:
        """Note the clips of the batch that the model is about to read."""
        clips = [row["pixel_values_videos"] for row in media if "pixel_values_videos" in row]
        self.num_frames = [pixels.shape[1] for pixels in clips for _ in pixels]

    def __call__(self, pixel_values_videos: Tensor, **options: Any) -> Any:
        output = self.read(pixel_values_videos, **options)
        clips, longest = pixel_values_videos.shape[:2]
        # Beam search repeats each clip.
        copies = clips // len(self.num_frames)
        counts = [count for count in self.num_frames for _ in range(copies)]
        if all(count == longest for count in counts):
            return output
        # (clips, frames * tokens + 1, d): the last one is the line break behind a clip.
        per_frame = (output.pooler_output.shape[1] - 1) // longest
        kept = [
            torch.cat([states[: count * per_frame], states[-1:]])
            for states, count in zip(output.pooler_output, counts, strict=True)
        ]
        # Each token stands alone, so that beam search can repeat those of a row.
        output.pooler_output = torch.cat(kept)[:, None]
        return output

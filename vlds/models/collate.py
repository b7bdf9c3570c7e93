"""Rows and their pictures -> Batch: what the collators of all kinds are made of, and the collator
of models whose answers are the decoder's. Last, augmented views of pictures.

b examples, u distinct images, n images an example, l prompt tokens, t target tokens.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import accumulate, zip_longest
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vlds.schema import IGNORED_LABEL, NO_IMAGE, Batch, Images, Row, Turn, plain_text

WHOLE = 1 << 20
"""More tokens than a text has."""


class Tokenizer(Protocol):
    """What batches need of a Hugging Face tokenizer."""

    pad_token_id: int

    def __call__(
        self, texts: list[str], /, *, add_special_tokens: bool, truncation: bool, max_length: int
    ) -> Mapping[str, list[list[int]]]: ...


@dataclass(frozen=True)
class JointCollator:
    """Puts rows together, padded on the right; labels are those of the decoder."""

    tokenizer: Tokenizer
    features: bool
    """True if images are stored features."""

    def __call__(self, rows: Sequence[Row], images: Images, *, evaluation: bool) -> Batch:
        """`images`: the distinct images of the rows, of one size."""
        assert not isinstance(images, list)
        rows = [self.in_one_text(row) if row.example.turns else row for row in rows]
        prompts = token_ids(self.tokenizer, [(r.example.prompt, r.max_prompt_tokens) for r in rows])
        batch = batch_of(rows, prompts, self.tokenizer.pad_token_id, evaluation=evaluation)
        if any(row.example.target is not None for row in rows):
            targets = [(row.example.target or "", row.max_target_tokens) for row in rows]
            labels: list[Sequence[int]] = []
            for row, tokens in zip(rows, token_ids(self.tokenizer, targets), strict=True):
                if row.example.target is None or not row.example.learned:
                    labels.append([])
                elif row.example.class_scores is None:
                    labels.append(tokens)
                else:  # the end alone, before which T5 has nothing and BART <s>
                    labels.append(first_token_alone(tokens, len(tokens) - 1))
            batch.labels = padded(labels, IGNORED_LABEL)
        batch.images, batch.features = (None, images) if self.features else (images, None)
        return batch

    def in_one_text(self, row: Row) -> Row:
        """A row whose prompt is its conversation as plain text, without the oldest turns if it is
        too long, and without their pictures."""
        turns, pictures = recent(row.example.turns, row.max_prompt_tokens, self.turns_length)
        return row._replace(
            example=replace(row.example, prompt=plain_text(turns)),
            images=[row.images[n] for n in pictures],
        )

    def prompt_lengths(self, prompts: Sequence[tuple[str, int]]) -> list[int]:
        return [len(tokens) for tokens in token_ids(self.tokenizer, prompts)]

    def answer_lengths(self, answers: Sequence[tuple[str, int]]) -> list[int]:
        return self.prompt_lengths(answers)

    def turns_length(self, turns: Sequence[Turn]) -> int:
        return self.prompt_lengths([(plain_text(turns), WHOLE)])[0]


def batch_of(
    rows: Sequence[Row], tokens: Sequence[Sequence[int]], pad: int, *, evaluation: bool
) -> Batch:
    """The batch of rows with these token ids, without labels and pictures."""
    input_ids = padded(tokens, pad)
    # Lengths 2 and 3 give the masks 1 1 0 and 1 1 1 below.
    lengths = torch.tensor([len(ids) for ids in tokens])
    return Batch(
        ids=[row.example.id for row in rows],
        task_index=torch.tensor([row.task_index for row in rows]),
        input_ids=input_ids,
        attention_mask=torch.arange(input_ids.shape[1]) < lengths[:, None],
        labels=None,
        weights=torch.tensor([row.example.weight for row in rows], dtype=torch.float32),
        valid=torch.tensor([row.valid for row in rows]),
        image_index=padded([row.images for row in rows], NO_IMAGE),
        references=[row.example.reference for row in rows] if evaluation else [],
        samples=[row.example.sample for row in rows] if evaluation else [],
        class_targets=class_targets(rows),
    )


def only_used(rows: Sequence[Row], images: Images) -> tuple[list[Row], Images]:
    """Some rows, and of the images that they name by number those alone that they use."""
    used = list(dict.fromkeys(image for row in rows for image in row.images))
    place = {image: number for number, image in enumerate(used)}
    some: Images = None
    if isinstance(images, list):
        some = [images[image] for image in used]
    elif images is not None:
        some = images[used]
    return [row._replace(images=[place[image] for image in row.images]) for row in rows], some


def recent(
    turns: Sequence[Turn],
    limit: int,
    length: Callable[[Sequence[Turn]], int],
) -> tuple[Sequence[Turn], list[int]]:
    """A conversation without its oldest turns, as many as must go so that all texts have at most
    `limit` tokens; and the numbers of the pictures in it. System messages at the beginning and the
    last turn stay, and the first turn behind them is the user's. `length`: as
    `Collator.turns_length`."""
    num_pictures = [turn.num_pictures for turn in turns]
    pictures = list(range(sum(num_pictures)))
    begin = next((n for n, turn in enumerate(turns) if turn.speaker != "system"), 0)
    last = len(turns) - 1
    starts = [n for n in range(begin, last) if n == begin or turns[n].speaker == "user"]

    def fits(first: int) -> bool:
        return length([*turns[:begin], *turns[first:]]) <= limit

    # Later starts leave less, so that half of them can be ruled out at a time.
    chosen = bisect_left(starts, True, key=fits)
    first = starts[chosen] if chosen < len(starts) else last
    ends = list(accumulate(num_pictures, initial=0))
    shown = [*pictures[: ends[begin]], *pictures[ends[first] :]]
    return [*turns[:begin], *turns[first:]], shown


def class_targets(rows: Sequence[Row]) -> Tensor | None:
    """(b, c) float32 scores of classes, c up to the last one that an example names; None if no
    example has classes."""
    scores = [row.example.class_scores for row in rows]
    if all(of_row is None for of_row in scores):
        return None
    # As wide as the batch needs; a head has more columns if it has more classes.
    targets = torch.zeros(len(rows), 1 + max((max(s, default=0) for s in scores if s), default=0))
    for of_row, target in zip(scores, targets, strict=True):
        for number, score in (of_row or {}).items():
            target[number] = score
    return targets


def first_token_alone(tokens: Sequence[int], num_before: int) -> list[int]:
    """The labels of an example with classes: the first token behind those that stand before every
    answer."""
    return [*[IGNORED_LABEL] * num_before, tokens[num_before]]


def token_ids(tokenizer: Tokenizer, texts: Sequence[tuple[str, int]]) -> list[list[int]]:
    """Token ids of (text, most tokens) pairs: one call of the tokenizer for each limit.

    Equal texts, frequent among prompts and answers of one batch, are tokenized once.
    """
    ids_of: dict[tuple[str, int], list[int]] = {}
    # The tokenizer cuts all texts of one call at one length.
    for limit in {limit for _, limit in texts}:
        distinct = list(dict.fromkeys(text for text, its_limit in texts if its_limit == limit))
        tokens = tokenizer(distinct, add_special_tokens=True, truncation=True, max_length=limit)
        for text, ids in zip(distinct, tokens["input_ids"], strict=True):
            ids_of[text, limit] = ids
    return [ids_of[key] for key in texts]


def padded(lines: Sequence[Sequence[int]], value: int) -> Tensor:
    """(lines, longest) int64; one column of `value` where all lines are empty."""
    # Columns rather than rows: zip_longest pads them in C. `copy` makes the rows contiguous.
    columns = list(zip_longest(*lines, fillvalue=value)) or [(value,) * len(lines)]
    return torch.from_numpy(np.array(columns, np.int64).T.copy())


SMALLEST_AREA = 0.5
WIDEST_RATIO = 4 / 3


class View(NamedTuple):
    """An augmented view of a picture: a random part, stretched to the whole, and perhaps mirrored.

    As usual in few-shot training of CLIP, the part has half to all of the area, and an aspect ratio
    of 3/4 to 4/3. A view depends on the picture and on the view's number alone, so that its
    embedding can be kept. The original codes crop the stored picture; here it has the model's size
    already.
    """

    picture: Tensor
    """(3, h, w) uint8."""
    number: int = 0
    """0 is the picture itself."""
    on_host: Tensor | None = None
    """The picture on the host, if the other one is elsewhere."""

    def key(self) -> tuple[bytes, int]:
        """Identifies the view: a hash of the picture's pixels, and the number."""
        picture = self.picture.cpu() if self.on_host is None else self.on_host
        pixels = picture.contiguous().numpy().tobytes()
        return blake2b(pixels, digest_size=16).digest(), self.number

    def pixels(self) -> Tensor:
        """(3, h, w) uint8: the part that the view's key draws, in the picture's size."""
        if self.number == 0:
            return self.picture
        key, number = self.key()
        # 7 bytes: torch's seeds have 64 bits and a sign.
        name = blake2b(key + number.to_bytes(8, "big"), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(name, "big"))
        area, ratio, down, right, mirrored = torch.rand(5, generator=generator).tolist()
        area = SMALLEST_AREA + (1 - SMALLEST_AREA) * area
        # Evenly in the logarithm, so that 3/4 and 4/3 are as likely.
        ratio = math.exp((2 * ratio - 1) * math.log(WIDEST_RATIO))
        # rows * columns = area * height * width, and columns / rows = ratio * width / height.
        height, width = self.picture.shape[1:]
        rows = max(1, min(height, round(height * math.sqrt(area / ratio))))
        columns = max(1, min(width, round(width * math.sqrt(area * ratio))))
        top, left = round(down * (height - rows)), round(right * (width - columns))
        part = self.picture[:, top : top + rows, left : left + columns].float()
        whole = F.interpolate(part[None], (height, width), mode="bicubic", antialias=True)[0]
        seen = whole.round().clamp(0, 255).to(torch.uint8)  # bicubic overshoots
        return seen.flip(-1) if mirrored < 1 / 2 else seen

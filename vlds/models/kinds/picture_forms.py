"""How processors of image-text models take pictures: what is known of each type, and what is found
out by trying."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

PACKED = ("llava", "llava_onevision", "internvl", "smolvlm", "idefics3")
"""Types whose rows may stand beside each other: tokens have one position each, pictures find their
placeholders in the order of these, and the mask says which tokens are seen."""
FLAT = ("llava_onevision",)
"""Types whose processor loses tiles of two pictures that it gets as one row's list."""
TILED = ("perception_lm",)
"""Types that read the tiles of all pictures in one stack, (1, tiles, 3, h, w), and whose processors
make no tensor of pictures with unlike numbers of tiles."""
UNPARTITIONED: Mapping[str, str] = {
    "paddleocr_vl": "whose projector runs once for each picture, unlike often on each rank",
    "qwen3_vl_moe": "whose experts Hugging Face cannot read in parts",
}
"""Types that ZeRO stage 3 cannot partition, and why."""
NEED_PICTURES = ("paligemma", "got_ocr2", "blip-2")
"""Types that take no text without a picture."""
PLACES_PICTURES = ("florence2", "blip-2")
"""Types whose processor puts the placeholders of pictures before the text itself."""
ENDS_PICTURES = ("paligemma",)
"""Types whose processor itself writes what parts pictures from the text."""
ANSWER_TYPES: Mapping[str, Mapping[str, int]] = {
    "mm_token_type_ids": {},
    "token_type_ids": {"paligemma": 1},
}
"""Numbers of each token that a processor gives -> what the tokens of an answer have, by type of the
model; 0 for others. PaliGemma sees a prompt as a whole, and an answer from left to right."""

GREY = torch.full((3, 56, 56), 128, dtype=torch.uint8)
"""A small picture that every processor reads. Of half the side, Pixtral's processor makes a single
visual token, and Mistral 3 reads no batch with one."""
WIDE = torch.full((3, 56, 140), 96, dtype=torch.uint8)
"""Another one, of other sides: models that cut pictures into tiles make another number of it."""


class Layout(NamedTuple):
    """How a processor takes the pictures of a row."""

    nested: bool
    """A list for each row, in a list; else all pictures in one list."""
    pil: bool
    """As Pillow's images, in place of tensors, which most processors read without a copy."""

    def of(self, pictures: Sequence[Tensor]) -> list[Any]:
        shown: list[Any] = list(pictures)
        if self.pil:
            shown = [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in pictures]
        return [shown] if self.nested else shown


LAYOUTS = tuple(Layout(nested, pil) for pil in (False, True) for nested in (True, False))
"""In the order in which they are tried."""

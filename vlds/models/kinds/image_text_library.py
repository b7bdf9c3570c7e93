"""An image-text model as Hugging Face opens it, and rows as its own processor makes them: its chat
template's text, and pictures as Pillow's images. Shapes: l tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import ClassVar

import torch
from torch import Tensor

from vlds.models.kinds.library import LibraryModel
from vlds.models.kinds.picture_forms import ANSWER_TYPES, FLAT, Layout
from vlds.schema import Clip, Images, Row, SkipSample, Turn


class ImageTextLibrary(LibraryModel):
    """A model of `AutoModelForImageTextToText`, with its processor."""

    sees: ClassVar[bool] = True

    def comparable(self, row: Row) -> Row | None:
        """None also for a row with clips."""
        clips = [p for turn in row.example.turns for p in turn.content if isinstance(p, Clip)]
        return None if clips else super().comparable(row)

    def asked(self, row: Row, images: Images) -> dict[str, Tensor]:
        assert self.chat is not None
        text = self.text(row.example.asked(len(row.images)))
        pictures = [] if images is None else [images[number].cpu() for number in row.images]
        start = self.tokenizer.bos_token
        has_start = self.chat.has_template and start and text.startswith(start)
        # Some processors take the pictures of a row in a list of their own, others do not.
        nested = self.model.config.model_type not in FLAT
        for layout in (Layout(nested, pil=True), Layout(not nested, pil=True)):
            with suppress(ValueError, TypeError, RuntimeError, LookupError, AttributeError):
                output = self.processor(
                    text=[text],
                    images=layout.of(pictures) if pictures else None,
                    return_tensors="pt",
                    add_special_tokens=not has_start,
                )
                return {name: values for name, values in output.items() if name != "labels"}
        raise SkipSample(f"pictures that the processor of {self.name} refuses")

    def text(self, turns: Sequence[Turn]) -> str:
        assert self.chat is not None
        if self.chat.has_template:
            return super().text(turns)
        pieces = [p if isinstance(p, str) else self.chat.placeholder for p in turns[0].content]
        return "".join(pieces)

    def with_answer(self, inputs: dict[str, Tensor], answer: Tensor) -> dict[str, Tensor]:
        longer = {}
        for name in inputs.keys() & ANSWER_TYPES:
            number = ANSWER_TYPES[name].get(self.model.config.model_type, 0)
            types = [inputs[name][0], torch.full_like(answer, number)]
            longer[name] = torch.cat(types)[None]
        return longer

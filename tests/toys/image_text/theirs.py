"""What Hugging Face makes of a row: its processors, called as their pages show it, and the greedy
answer of its `generate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy import uint8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vlds.models.kinds.image_text_model import ImageTextModel
from vlds.schema import Turn

FLAT = ("llava_onevision", "got_ocr2")
"""Types whose processors get all pictures in one list: that of LLaVA-OneVision would not tile those
of one row, that of GOT-OCR2 refuses other lists."""
PLACES_PICTURES = ("florence2", "blip-2")
"""Types whose processors put the placeholders of pictures before a text themselves."""


def shown(model_type: str, pictures: Sequence[Tensor | NDArray[uint8]]) -> list[Any] | None:
    """The pictures of one row as images of Pillow, in the list that the processor takes."""
    if not pictures:
        return None
    arrays = [p.permute(1, 2, 0).numpy() if isinstance(p, Tensor) else p for p in pictures]
    images = [Image.fromarray(array) for array in arrays]
    return images if model_type in FLAT else [images]


def processed(
    model_type: str, processor: Any, text: str, pictures: Sequence[Tensor | NDArray[uint8]]
) -> dict[str, Any]:
    """One row. What a template begins with the start token gets no other."""
    start = processor.tokenizer.bos_token if processor.chat_template is not None else None
    output = processor(
        text=[text],
        images=shown(model_type, pictures),
        return_tensors="pt",
        add_special_tokens=not text.startswith(start or "\0"),
    )
    return dict(output)


def question(model_type: str, processor: Any, text: str, num_pictures: int) -> str:
    """The text that asks about pictures: as the template writes it, without thoughts, or behind
    their placeholders."""
    if processor.chat_template is not None:
        turn = Turn("user", ((None,) * num_pictures) + (text,))
        return conversation(processor, [turn], add_generation_prompt=True)
    if model_type in PLACES_PICTURES:
        return text
    word = str(processor.image_token)
    line = "" if model_type == "paligemma" else "\n"
    return f"{word}{line}" * num_pictures + text


def conversation(processor: Any, turns: Sequence[Turn], **how: Any) -> str:
    """Turns as the processor's template writes them. Answers are texts where it wants that."""
    said = []
    for turn in turns:
        parts = [
            {"type": "image"} if piece is None else {"type": "text", "text": piece}
            for piece in turn.content
        ]
        plain = all(turn.content) and "content is string" in processor.chat_template
        content = "".join(turn.texts) if plain else parts
        said.append({"role": turn.speaker, "content": content})
    written: str = processor.apply_chat_template(said, tokenize=False, enable_thinking=False, **how)
    return written


def generated(model: ImageTextModel, inputs: Mapping[str, Any], most: int) -> list[int]:
    """Greedy ids of the first row's answer, of at most so many tokens, the end included."""
    writer = model.writer
    start = 1 if model.answers_apart else inputs["input_ids"].shape[1]
    written: list[int] = model.backbone.generate(
        **inputs,
        max_new_tokens=most,
        do_sample=False,
        suppress_tokens=list(writer.forbidden) or None,
        eos_token_id=list(writer.ends),
        pad_token_id=writer.pad,
        decoder_start_token_id=writer.decoder_start,
    )[0, start:].tolist()
    return written

"""Rows and their pictures -> Batch, by the processor of an image-text model.

Each row goes through the processor alone: processors differ in how they take many rows, and a batch
of rows can be cut anywhere. b rows, l tokens of prompt and answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vlds.models.chat_format import ChatFormat
from vlds.models.collate import class_targets, first_token_alone
from vlds.schema import IGNORED_LABEL, NO_IMAGE, Batch, Images, RefusedRows, Row, SkipSample

FLAT = ("llava_onevision",)
"""Types whose processor loses tiles of two pictures that it gets as one row's list."""
NEED_PICTURES = ("paligemma",)
"""Types whose processors refuse a text without a picture."""
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


GREY = torch.full((3, 28, 28), 128, dtype=torch.uint8)
"""A small picture that every processor reads."""


class EncodedRow(NamedTuple):
    """One row, as the processor sees it."""

    prompt: Tensor
    """(p,) ids."""
    answer: Tensor
    """(a,) ids, the end of the turn included; empty in evaluation."""
    types: dict[str, Tensor]
    """More numbers of each token: name -> (p + a,), or (p,) where answers stand apart."""
    media: dict[str, Tensor]
    """What the processor has made of the pictures."""


@dataclass(frozen=True)
class ImageTextCollator:
    """Writes prompts as the model's chat template asks, and puts rows together, padded on the
    right."""

    processor: Any
    model_type: str
    """Of the model's config."""
    answers_apart: bool
    """True for encoder-decoders: answers are the decoder's, not the end of the sequence."""

    @cached_property
    def chat(self) -> ChatFormat:
        """How prompts and answers are written."""
        placeholder = str(getattr(self.processor, "image_token", ""))
        if self.model_type in PLACES_PICTURES:
            placeholder = ""
        elif self.model_type not in ENDS_PICTURES:
            placeholder += "\n"
        tokenizer = self.processor.tokenizer
        return ChatFormat.of(
            tokenizer, self.processor, placeholder, answers_apart=self.answers_apart
        )

    def __call__(self, rows: Sequence[Row], images: Images, *, evaluation: bool) -> Batch:
        """`images`: pictures (3, h, w) of any size.

        Errors: RefusedRows for pictures that the processor refuses.
        """
        encoded = self.encode_all(rows, images if images is not None else [], evaluation)
        sequences = [self.sequence(row) for row in encoded]
        lengths = torch.tensor([len(sequence) for sequence in sequences])
        input_ids = pad_sequence(sequences, batch_first=True, padding_value=self.chat.pad_id)
        return Batch(
            ids=[row.example.id for row in rows],
            task_index=torch.tensor([row.task_index for row in rows]),
            input_ids=input_ids,
            attention_mask=torch.arange(input_ids.shape[1]) < lengths[:, None],
            labels=None if evaluation else self.labels(encoded),
            weights=torch.tensor([row.example.weight for row in rows], dtype=torch.float32),
            valid=torch.tensor([row.valid for row in rows]),
            image_index=torch.full((len(rows), 1), NO_IMAGE),
            types={
                name: pad_sequence([row.types[name] for row in encoded], batch_first=True)
                for name in encoded[0].types
            },
            media=[row.media for row in encoded],
            labels_on_prompt=not self.answers_apart,
            references=[row.example.reference for row in rows] if evaluation else [],
            samples=[row.example.sample for row in rows] if evaluation else [],
            class_targets=class_targets(rows),
        )

    def sequence(self, row: EncodedRow) -> Tensor:
        """What `input_ids` hold of a row."""
        return row.prompt if self.answers_apart else torch.cat([row.prompt, row.answer])

    def labels(self, encoded: Sequence[EncodedRow]) -> Tensor:
        """(b, l), ignored on prompts; or (b, t) of answers that stand apart."""
        labels = [
            row.answer
            if self.answers_apart
            else torch.cat([torch.full_like(row.prompt, IGNORED_LABEL), row.answer])
            for row in encoded
        ]
        return pad_sequence(labels, batch_first=True, padding_value=IGNORED_LABEL)

    def encode_all(
        self, rows: Sequence[Row], pictures: Tensor | list[Tensor], evaluation: bool
    ) -> list[EncodedRow]:
        """Errors: RefusedRows that names all rows with a picture that the processor refuses."""
        encoded, refused = [], {}
        for index, row in enumerate(rows):
            try:
                encoded.append(self.encode(row, [pictures[n] for n in row.images], evaluation))
            except SkipSample as error:
                refused[index] = str(error)
        if refused:
            raise RefusedRows(refused)
        return encoded

    def encode(self, row: Row, pictures: Sequence[Tensor], evaluation: bool) -> EncodedRow:
        """One row; without its answer in evaluation.

        Errors: SkipSample for pictures that the processor refuses.
        """
        answer: list[int] = []
        if not evaluation and row.example.target is not None:
            answer = self.chat.answer_ids(row.example.target, row.max_target_tokens)
            if row.example.class_scores is not None:
                answer = first_token_alone(answer, len(self.chat.start_ids))
        question = self.chat.cut(self.chat.plain(row.example.prompt), row.max_prompt_tokens)
        prompt, types, media = self.process(question, pictures)
        if not self.answers_apart:
            types = {name: self.with_answer(name, values, answer) for name, values in types.items()}
        return EncodedRow(prompt, torch.tensor(answer, dtype=torch.long), types, media)

    def process(
        self, question: str, pictures: Sequence[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Ids of the prompt (p,), more numbers of its tokens, and the pictures' tensors.

        Errors: ValueError if the processor gives numbers of tokens that vlds does not know,
        SkipSample if it refuses the pictures.
        """
        text = self.chat.prompt(question, len(pictures))
        try:
            output = self.processed(text, pictures)
        except Exception as error:  # each processor has errors of its own
            if not pictures or not self.reads_grey(text, len(pictures)):
                raise
            sizes = " and ".join(f"{p.shape[2]} x {p.shape[1]}" for p in pictures)
            raise SkipSample(
                f"the model's processor refuses a picture ({sizes} pixels): {error}"
            ) from None
        prompt = output.pop("input_ids")[0]
        for name in ("attention_mask", "labels"):  # PaliGemma's labels are all ignored here
            output.pop(name, None)
        types, media = {}, {}
        for name, values in output.items():
            if name in ANSWER_TYPES:
                types[name] = values[0]
            elif pictures:
                media[name] = values
            else:
                raise ValueError(
                    f"model: the processor of {self.model_type} gives '{name}' for a text; vlds "
                    "does not know it, so choose another type of model"
                )
        return prompt, types, media

    def processed(self, text: str, pictures: Sequence[Tensor]) -> Any:
        """What the processor makes of one row."""
        images = list(pictures) if self.model_type in FLAT else [list(pictures)]
        return self.processor(
            text=[text],
            images=images if pictures else None,
            return_tensors="pt",
            add_special_tokens=self.chat.adds_special_tokens(text),
        )

    def reads_grey(self, text: str, num_pictures: int) -> bool:
        """True if the processor takes a text with grey pictures: where it refuses others, they are
        at fault."""
        with suppress(Exception):
            self.processed(text, [GREY] * num_pictures)
            return True
        return False

    def dummy(self, question: str = "", num_pictures: int = 1) -> EncodedRow:
        """A short row with small grey pictures, and without an answer."""
        prompt, types, media = self.process(question, [GREY] * num_pictures)
        return EncodedRow(prompt, prompt[:0], types, media)

    def with_answer(self, name: str, values: Tensor, answer: Sequence[int]) -> Tensor:
        """A prompt's numbers, and those of its answer."""
        number = ANSWER_TYPES[name].get(self.model_type, 0)
        return torch.cat([values, values.new_full((len(answer),), number)])

    def prompt_lengths(self, prompts: Sequence[tuple[str, int]]) -> list[int]:
        """Tokens of the questions (text, most tokens), without pictures and template."""
        ids = self.chat.tokenizer([text for text, _ in prompts], add_special_tokens=False)
        pairs = zip(ids["input_ids"], prompts, strict=True)
        return [min(len(tokens), most) for tokens, (_, most) in pairs]

    def answer_lengths(self, answers: Sequence[tuple[str, int]]) -> list[int]:
        """Tokens of (answer, most tokens) pairs, with the end of the turn."""
        return [len(self.chat.answer_ids(text, most)) for text, most in answers]

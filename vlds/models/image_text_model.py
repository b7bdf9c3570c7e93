"""A model of Hugging Face's `AutoModelForImageTextToText`, methods attached.

Shapes: b rows, l tokens of a row, t tokens of an answer that stands apart, w words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from vlds.methods.batch_loss import Predicted
from vlds.methods.extended import run_beside
from vlds.models.chat_format import ChatFormat
from vlds.models.generation.answer_positions import output_width, pick_positions, picking
from vlds.models.generation.written_answers import Writer, left_padded
from vlds.models.image_text_collate import EncodedRow, ImageTextCollator
from vlds.models.model import BACKBONE_PREFIX, Part
from vlds.models.token_nll import targets_of
from vlds.models.writing_model import WritingModel
from vlds.schema import IGNORED_LABEL, Batch

PLACEHOLDERS = ("image_token_id", "image_token_index", "video_token_id")
"""Fields of configs with ids that no answer may hold: a forward pass looks for a picture there."""


class ImageTextModel(WritingModel):
    """Text and pictures in one sequence, or in the encoder of an encoder-decoder."""

    def __init__(
        self,
        backbone: Any,
        parts: Mapping[str, Part],
        connector: Iterable[str],
        collator: ImageTextCollator,
    ) -> None:
        """`connector`: names of the backbone's parameters between vision and language."""
        super().__init__(collator.processor)
        self.collator = collator
        self.backbone = backbone
        self.answer_positions = pick_positions(backbone)
        self._dummy: EncodedRow | None = None
        self.answers_apart = bool(backbone.config.is_encoder_decoder)
        self.parts = dict(parts)
        self.connector = frozenset(BACKBONE_PREFIX + name for name in connector)

    def part_of(self, name: str) -> str:
        if name in self.trained_by:
            return self.trained_by[name]
        if name in self.connector:
            return "connector"
        return "vision" if name.startswith(f"{self.parts['vision'].path}.") else "backbone"

    def train(self, mode: bool = True) -> Self:
        """Training mode, but for a frozen vision tower: chance in it would move the loss."""
        super().train(mode)
        tower = self.parts["vision"].path
        trained = self.trained_by.keys() - self.connector  # which may lie inside the tower
        if not any(name.startswith(f"{tower}.") for name in trained):
            self.get_submodule(tower).eval()
        return self

    # Training.

    def predicted(self, batch: Batch) -> Predicted:
        labels = targets_of(batch)
        if not self.answers_apart:  # the token before each label predicts it
            labels = F.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)
        split = self.heads.split(batch, labels)
        is_token = split.is_token[split.is_label] if self.heads else None
        logits, states = self.read_at(batch, split.is_label, is_token)
        return Predicted(logits, labels, self.heads.predicted(states, split.rows, batch))

    def logits(self, batch: Batch) -> Tensor:
        """(b, l, w) after each token of the row, or (b, t, w) for each token of the answer."""
        rows = len(batch)
        batch = self.with_dummy(batch)
        self.begin(batch)
        logits: Tensor = self.backbone(**self.inputs(batch), use_cache=False).logits
        return logits[:rows]

    def read_at(self, batch: Batch, mask: Tensor, is_token: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits (n, w) at the k positions of a mask (b, l) or (b, t) that `is_token` (k,) says,
        without it at all, and states (m, d) at the others: both row by row."""
        rows = len(batch)
        batch = self.with_dummy(batch)
        self.begin(batch)
        mask = F.pad(mask, (0, 0, 0, len(batch) - rows), value=False)
        if not self.answers_apart:
            mask = F.pad(mask, (0, batch.input_ids.shape[1] - mask.shape[1]), value=False)
        with picking(self.answer_positions, mask, is_token) as read:
            logits: Tensor = self.backbone(**self.inputs(batch), use_cache=False).logits
        return logits, read.states

    def begin(self, batch: Batch) -> None:
        """Tell methods which tasks the rows have, and run what they have put beside the model."""
        self.context.set_rows(batch.task_index, None, batch.input_ids.device)
        self.context.token_mask = batch.attention_mask.bool()
        run_beside(self.get_submodule(self.parts["backbone"].path))

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """The arguments of Hugging Face's forward pass."""
        inputs = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask.long(),
            **batch.types,
            **self.joined(batch.media),
        }
        if self.answers_apart and batch.labels is not None:
            inputs["decoder_input_ids"] = self.shifted(batch.labels)
        return inputs

    def shifted(self, labels: Tensor) -> Tensor:
        """(b, t) what the decoder reads before it writes each label; what stands before every
        answer also where it is no label, as in examples with classes."""
        before = F.pad(labels[:, :-1], (1, 0), value=self.decoder_start)
        for column, token in enumerate(self.chat.start_ids, 1):
            hidden = before[:, column : column + 1]
            hidden.masked_fill_(hidden == IGNORED_LABEL, token)
        return before.masked_fill(before == IGNORED_LABEL, self.chat.pad_id)

    @property
    def decoder_start(self) -> int:
        """Id that a decoder of its own reads before an answer."""
        config = self.backbone.config.get_text_config()
        start = getattr(config, "decoder_start_token_id", None)
        return int(config.eos_token_id if start is None else start)

    def joined(self, media: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The rows' media in one tensor each: along dimension 0, other dimensions padded with zeros
        to the largest. All types of models read this (they drop empty tiles)."""
        names = dict.fromkeys(name for row in media for name in row)
        return {name: self.join([row[name] for row in media if name in row]) for name in names}

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """One medium of all rows."""
        largest = [max(sizes) for sizes in zip(*(t.shape[1:] for t in tensors), strict=True)]
        padded = []
        for tensor in tensors:
            gaps = [most - size for most, size in zip(largest, tensor.shape[1:], strict=True)]
            padded.append(F.pad(tensor, [n for gap in reversed(gaps) for n in (0, gap)]))
        whole = torch.cat(padded)
        return whole.to(self.dtype) if whole.is_floating_point() else whole

    @property
    def dtype(self) -> torch.dtype:
        """Type of the model's states."""
        dtype: torch.dtype = self.backbone.dtype
        return dtype

    def with_dummy(self, batch: Batch) -> Batch:
        """In training, the batch and one short row with a picture, if no row has one: ranks without
        a picture would skip the tower, and the others would wait for them under ZeRO-3."""
        if not self.training or any(batch.media):
            return batch
        if self._dummy is None:
            self._dummy = self.collator.dummy()
        dummy, device = self._dummy, batch.input_ids.device
        length = max(batch.input_ids.shape[1], len(dummy.prompt))

        def longer(rows: Tensor, row: Tensor, value: int) -> Tensor:
            rows = F.pad(rows, (0, length - rows.shape[1]), value=value)
            row = F.pad(row.to(device), (0, length - len(row)), value=value)
            return torch.cat([rows, row[None].to(rows)])

        ones = torch.ones(len(dummy.prompt), dtype=torch.bool)
        labels = batch.labels
        if labels is not None and not self.answers_apart:
            labels = F.pad(labels, (0, length - labels.shape[1]), value=IGNORED_LABEL)
        if labels is not None:
            labels = torch.cat([labels, torch.full_like(labels[:1], IGNORED_LABEL)])
        return replace(
            batch,
            ids=[*batch.ids, ""],
            task_index=torch.cat([batch.task_index, batch.task_index[:1]]),
            input_ids=longer(batch.input_ids, dummy.prompt, 0),
            attention_mask=longer(batch.attention_mask, ones, 0),
            labels=labels,
            types={n: longer(rows, dummy.types[n], 0) for n, rows in batch.types.items()},
            media=[*batch.media, {n: t.to(device) for n, t in dummy.media.items()}],
        )

    # Answers.

    @property
    def state_width(self) -> int:
        return output_width(self.backbone)

    def first_logits(self, batch: Batch) -> Tensor:
        return self.read_first(batch, logits=True)[0]

    def first_states(self, batch: Batch) -> Tensor:
        return self.read_first(batch.prompts(), logits=False)[1]

    def read_first(self, batch: Batch, *, logits: bool) -> tuple[Tensor, Tensor]:
        """Logits (b, w) of the token that an answer begins with, and no states; or no logits, and
        the states (b, d) that predict it."""
        if self.answers_apart:
            start = torch.tensor([*self.chat.start_ids, 0], device=batch.input_ids.device)
            batch = replace(batch, labels=start.expand(len(batch), -1))
            ends, length = torch.full_like(batch.task_index, len(start) - 1), len(start)
        else:
            ends, length = batch.attention_mask.sum(1) - 1, batch.input_ids.shape[1]
        mask = F.one_hot(ends.to(batch.input_ids.device), length).bool()
        nowhere = torch.zeros(len(batch), dtype=torch.bool, device=mask.device)
        return self.read_at(batch, mask, None if logits else nowhere)

    def choice_tokens(self, choice: str) -> list[int]:
        return self.chat.first_ids(choice)

    def answer_tokens(self, answers: Sequence[str]) -> list[list[int]]:
        return [self.chat.answer_ids(answer) for answer in answers]

    @property
    def chat(self) -> ChatFormat:
        """How prompts and answers are written."""
        return self.collator.chat

    @property
    def writer(self) -> Writer:
        config = self.backbone.config
        placeholders = {
            token for name in PLACEHOLDERS if (token := getattr(config, name, None)) is not None
        }
        ends = tuple(self.chat.end_ids)
        forbidden = tuple(sorted(placeholders.difference(ends)))
        start = self.decoder_start if self.answers_apart else None
        return Writer(self.backbone, ends, self.chat.pad_id, forbidden, start)

    def prompts(self, batch: Batch) -> dict[str, Tensor]:
        """The arguments of `generate`: rows padded on the left."""
        self.begin(batch)
        lengths = batch.attention_mask.sum(1)
        inputs = self.inputs(batch)
        if self.answers_apart:
            return inputs
        for name, value in (("input_ids", self.chat.pad_id), ("attention_mask", 0)):
            inputs[name] = left_padded(inputs[name], lengths, value)
        for name in batch.types:
            inputs[name] = left_padded(inputs[name], lengths, 0)
        return inputs

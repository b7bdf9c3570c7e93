"""A model of Hugging Face's `AutoModelForImageTextToText`.

Shapes: b rows, l tokens of a row (prompt and answer), t tokens of an answer that stands apart, w
words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from vlds.models.generation.answer_list import Writer, left_padded
from vlds.models.generation.positions import (
    Lines,
    drops_pairs,
    pick_positions,
    picking,
    share_starts,
)
from vlds.models.kernels.dropout import another_row_follows, lines_follow
from vlds.models.kinds.base import StatesModel
from vlds.models.kinds.chat_format import ChatFormat
from vlds.models.kinds.image_text_rows import EncodedRow, ImageTextCollator
from vlds.models.kinds.media import (
    APART,
    PADDED,
    WholeClips,
    joined,
)
from vlds.models.kinds.picture_forms import (
    TILED,
)
from vlds.models.loss import targets_of
from vlds.models.methods.context import Predicted, places_of
from vlds.models.methods.host import run_beside
from vlds.models.model import BACKBONE_PREFIX, Part
from vlds.schema import (
    IGNORED_LABEL,
    Batch,
)

SHOWN = {"pixel_values", "pixel_values_videos"}
"""Names of what the tower reads."""
PLACEHOLDERS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
"""Fields of configs with ids that no answer may hold: a forward pass looks for a picture there."""


class ImageTextModel(StatesModel):
    """Text and pictures in one sequence, or in the encoder of an encoder-decoder."""

    def __init__(
        self,
        backbone: Any,
        parts: Mapping[str, Part],
        connector: Iterable[str],
        collator: ImageTextCollator,
        packs: bool = False,
    ) -> None:
        """`connector`: names of the backbone's parameters between vision and language. `packs`: lay
        short rows out beside each other (`PACKED`)."""
        super().__init__(collator.processor)
        self.collator = collator
        self.backbone = backbone
        self.answer_positions = pick_positions(backbone)
        self.packs = packs
        self.whole_clips: WholeClips | None = None
        if collator.model_type in PADDED:
            owner = backbone.base_model
            self.whole_clips = owner.get_video_features = WholeClips(owner.get_video_features)
        self._dummies: dict[tuple[torch.device, bool], EncodedRow] = {}
        self.answers_apart = bool(backbone.config.is_encoder_decoder)
        self.parts = dict(parts)
        # Its parameters may lie inside other parts' modules, so names tell it, not a path.
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
        labels, known = targets_of(batch), targets_of(batch.on_host)
        if not self.answers_apart:  # the token before each label predicts it
            labels, known = (
                F.pad(each[:, 1:], (0, 1), value=IGNORED_LABEL) for each in (labels, known)
            )
        split = self.heads.split(batch, known)
        found = (known != IGNORED_LABEL).nonzero()
        logits, states = self.read_at(batch, found, split.among)
        classes = self.heads.predicted(states, split, batch)
        return Predicted(logits, labels, split.tokens, classes)

    def logits(self, batch: Batch) -> Tensor:
        """(b, l, w) for each token of the row, zeros for the first, or (b, t, w) for each token of
        an answer that stands apart."""
        rows = len(batch)  # without the dummy, which comes last
        batch = self.with_dummy(batch)
        self.begin(batch)
        logits: Tensor = self.backbone(**self.inputs(batch), use_cache=False).logits
        logits = logits[:rows]
        return logits if self.answers_apart else F.pad(logits[:, :-1], (0, 0, 1, 0))

    def read_at(
        self, batch: Batch, found: Tensor, among: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Logits (n, w) at those of the k places (k, 2), on the host, that `among` wants, and
        states (m, d) at the others (`Picking`): both row by row."""
        batch = self.with_dummy(batch)
        self.begin(batch)
        lines = self.lines(batch) if self.packs and not self.context.reads_examples else None
        if lines is None:
            inputs = self.inputs(batch)
        else:
            inputs = self.inputs_of_lines(lines, batch)
            rows, tokens = found.unbind(1)
            found = torch.stack([lines.line[rows], lines.places[rows, tokens]], 1)
        places = places_of(found, batch.input_ids.device)
        with picking(self.answer_positions, places, among) as read:
            logits: Tensor = self.backbone(**inputs, use_cache=False).logits
        return logits, read.states

    def lines(self, batch: Batch) -> Lines | None:
        """Rows of one task beside each other in lines as long as the longest row; None where that
        saves nothing."""
        known = batch.on_host
        # With the dummy, which is on the device alone.
        if len(known) < len(batch) or (self.training and drops_pairs(self.backbone)):
            return None
        mask = known.attention_mask.bool()
        nothing = torch.zeros_like(mask)
        alone = torch.arange(len(batch))[:, None]  # no two rows share a start
        width = self.backbone.get_input_embeddings().embedding_dim
        return share_starts(known.input_ids, mask.sum(1), nothing, batch.task_index, alone, width)

    def inputs_of_lines(self, lines: Lines, batch: Batch) -> dict[str, Tensor]:
        """The arguments of Hugging Face's forward pass: each token sees only its own row, and has
        the position that it has there. Sets the lines' tasks."""
        device = batch.input_ids.device
        self.context.routing.set(lines.tasks, device)
        lines_follow(lines.source // batch.input_ids.shape[1], lines.positions)
        lengths = batch.on_host.attention_mask.sum(1)
        ends = torch.zeros(len(lines.tasks), dtype=lengths.dtype).index_add(0, lines.line, lengths)
        is_padding = torch.arange(lines.source.shape[1]) >= ends[:, None]
        source, positions, is_padding = (
            values.to(device, non_blocking=True)
            for values in (lines.source, lines.positions, is_padding)
        )
        # Pictures fill their placeholders in the order of these, so rows stand by line and place.
        first = lines.line * lines.source.shape[1] + lines.places[:, 0]
        return {
            # Padding repeats some token, which must not be a placeholder.
            "input_ids": batch.input_ids.flatten()[source].masked_fill(
                is_padding, self.chat.pad_id
            ),
            "attention_mask": lines.mask(self.backbone.dtype, device),
            "position_ids": positions,
            **{name: values.flatten()[source] for name, values in batch.types.items()},
            **self.joined([batch.media[row] for row in first.argsort().tolist()]),
        }

    @cached_property
    def clips_apart(self) -> bool:
        """True if the tower reads clips after pictures, not together with them."""
        if self.collator.model_type in APART or not self.collator.reads_clips:
            return False
        return self.collator.dummy(with_clip=True).media.keys() >= SHOWN

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
            before = F.pad(batch.labels[:, :-1], (1, 0), value=self.decoder_start)
            # What stands before every answer is there also where it is not a label, as in examples
            # with classes. Column 0 is the start token.
            for column, token in enumerate(self.chat.start_ids, 1):
                hidden = before[:, column : column + 1]
                hidden.masked_fill_(hidden == IGNORED_LABEL, token)
            ids = before.masked_fill(before == IGNORED_LABEL, self.chat.pad_id)
            inputs["decoder_input_ids"] = ids
        return inputs

    @property
    def decoder_start(self) -> int:
        """Id that an encoder-decoder's decoder reads before an answer."""
        config = self.backbone.config.get_text_config()
        start = getattr(config, "decoder_start_token_id", None)
        return int(config.eos_token_id if start is None else start)

    def joined(self, media: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        if self.whole_clips is not None:
            self.whole_clips.expect(media)
        whole = joined(media, self.backbone.dtype)
        if self.collator.model_type in TILED:
            return {name: tensor[None] for name, tensor in whole.items()}
        return whole

    def with_dummy(self, batch: Batch) -> Batch:
        """In training, the batch and one short row with a picture, if no row has one: ranks without
        a picture would skip the tower, and the others would wait for them under ZeRO-3. There, some
        types read clips in a second pass of the tower, which all ranks need too."""
        is_partitioned = hasattr(next(self.backbone.parameters()), "ds_id")  # DeepSpeed's mark
        needs_clip = is_partitioned and self.shows_clips and self.clips_apart
        names = {name for row in batch.media for name in row}
        if not self.training or (names >= SHOWN if needs_clip else names):
            return batch
        device = batch.input_ids.device
        if (dummy := self._dummies.get((device, needs_clip))) is None:
            made = self.collator.dummy(with_clip=needs_clip)
            # Once on the device: each later copy would make the host wait.
            dummy = self._dummies[device, needs_clip] = made._replace(
                prompt=made.prompt.to(device),
                types={name: values.to(device) for name, values in made.types.items()},
                media={name: values.to(device) for name, values in made.media.items()},
            )
        length = max(batch.input_ids.shape[1], len(dummy.prompt))

        def longer(rows: Tensor, row: Tensor, value: int) -> Tensor:
            rows = F.pad(rows, (0, length - rows.shape[1]), value=value)
            row = F.pad(row, (0, length - len(row)), value=value)
            return torch.cat([rows, row[None].to(rows)])

        another_row_follows(len(batch))
        # It has no labels, so that it adds nothing to the loss, and callers drop its logits. Its
        # task is that of the first row, whose modules run anyway.
        ones = torch.ones(len(dummy.prompt), dtype=torch.bool, device=device)
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
            media=[*batch.media, dummy.media],
        )

    # Answers.

    def read_first(
        self, batch: Batch, among: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        rows = torch.arange(len(batch))
        if not self.answers_apart:
            last = batch.on_host.attention_mask.sum(1) - 1
            return self.read_at(batch, torch.stack([rows, last], 1), among)
        start = torch.tensor([*self.chat.start_ids, 0])
        last = torch.full_like(rows, len(start) - 1)
        start = start.to(batch.input_ids.device, non_blocking=True)
        batch = replace(batch, labels=start.expand(len(batch), -1))
        # The last label's value is never read: the decoder's inputs end before it.
        return self.read_at(batch, torch.stack([rows, last], 1), among)

    def choice_tokens(self, choice: str) -> list[int]:
        return self.chat.first_ids(choice)

    def answer_tokens(self, answers: Sequence[str]) -> list[list[int]]:
        return [self.chat.answer_ids(answer) for answer in answers]

    @property
    def chat(self) -> ChatFormat:
        return self.collator.chat

    @property
    def template_variables(self) -> Mapping[str, object]:
        return self.chat.variables

    @property
    def writer(self) -> Writer:
        config = self.backbone.config
        placeholders = {
            token for name in PLACEHOLDERS if (token := getattr(config, name, None)) is not None
        }
        ends = tuple(self.chat.end_ids)
        # An end stays allowed even if a config calls it a placeholder: answers must end.
        forbidden = tuple(sorted(placeholders.difference(ends)))
        start = self.decoder_start if self.answers_apart else None
        return Writer(self.backbone, ends, self.chat.pad_id, forbidden, start)

    def prompts(self, batch: Batch) -> dict[str, Tensor]:
        self.begin(batch)
        lengths = batch.attention_mask.sum(1)
        inputs = self.inputs(batch)
        if self.answers_apart:
            return inputs
        # `generate` continues at the right end of each row.
        for name, value in (("input_ids", self.chat.pad_id), ("attention_mask", 0)):
            inputs[name] = left_padded(inputs[name], lengths, value)
        # Numbers of tokens move with them. Pictures find their placeholders wherever these are.
        for name in batch.types:
            inputs[name] = left_padded(inputs[name], lengths, 0)
        return inputs

"""A model of Hugging Face's `AutoModelForImageTextToText`, and the collator that lets its processor
write the rows.

Shapes: b rows, l tokens of a row (prompt and answer), t tokens of an answer that stands apart, w
words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vlds.models.collate import class_targets, first_token_alone, recent
from vlds.models.generation.answer_list import Writer, left_padded
from vlds.models.generation.positions import (
    Lines,
    pick_positions,
    picking,
    share_starts,
)
from vlds.models.kinds.base import StatesModel
from vlds.models.kinds.chat_format import ChatFormat
from vlds.models.kinds.picture_forms import (
    ANSWER_TYPES,
    ENDS_PICTURES,
    FLAT,
    GREY,
    LAYOUTS,
    PLACES_PICTURES,
    TILED,
    Layout,
)
from vlds.models.loss import targets_of
from vlds.models.methods.context import Predicted, places_of
from vlds.models.methods.host import run_beside
from vlds.models.model import BACKBONE_PREFIX, Part
from vlds.schema import IGNORED_LABEL, NO_IMAGE, Batch, Images, RefusedRows, Row, SkipSample, Turn

NUM_BEFORE = 2
"""Tokens before an answer by which it is found again."""


class EncodedRow(NamedTuple):
    """One row, as the processor sees it."""

    prompt: Tensor
    """(p,) ids."""
    learned: Tensor
    """(p,) bool: tokens of answers before the last one that the model learns."""
    answer: Tensor
    """(a,) ids, the end of the turn included; empty in evaluation."""
    types: dict[str, Tensor]
    """More numbers of each token: name -> (p + a,), or (p,) where answers stand apart."""
    media: dict[str, Tensor]
    """What the processor has made of the pictures."""


@dataclass(frozen=True)
class ImageTextCollator:
    """Rows and their pictures -> Batch, padded on the right. Prompts are as the model's chat
    template writes them.

    Each row goes through the processor alone: processors differ in how they take many rows, and a
    batch of rows can be cut anywhere.
    """

    processor: Any
    model_type: str
    """`model_type` of the model's config."""
    answers_apart: bool
    """True for encoder-decoders: answers are the decoder's, not the end of the sequence."""
    dtype: torch.dtype = torch.float32
    """In which the model reads pictures: in half precision, workers pass half as much to it."""

    @cached_property
    def chat(self) -> ChatFormat:
        """How prompts and answers are written."""
        placeholder = str(getattr(self.processor, "image_token", ""))
        # For processors without a template: a placeholder in a line before the text, unless the
        # processor itself writes one, or the line break.
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

        Errors: RefusedRows that names all rows with a picture that the processor refuses.
        """
        encoded, refused = [], {}
        for index, row in enumerate(rows):
            pictures = [] if images is None else [images[n] for n in row.images]
            try:
                encoded.append(self.encode(row, pictures, evaluation))
            except SkipSample as error:
                refused[index] = str(error)
        if refused:
            raise RefusedRows(refused)
        sequences, labels = [row.prompt for row in encoded], [row.answer for row in encoded]
        if not self.answers_apart:
            labels = [
                torch.cat([row.prompt.masked_fill(~row.learned, IGNORED_LABEL), row.answer])
                for row in encoded
            ]
            sequences = [torch.cat([row.prompt, row.answer]) for row in encoded]
        lengths = torch.tensor([len(sequence) for sequence in sequences])
        input_ids = pad_sequence(sequences, batch_first=True, padding_value=self.chat.pad_id)
        return Batch(
            ids=[row.example.id for row in rows],
            task_index=torch.tensor([row.task_index for row in rows]),
            input_ids=input_ids,
            attention_mask=torch.arange(input_ids.shape[1]) < lengths[:, None],
            labels=None
            if evaluation
            else pad_sequence(labels, batch_first=True, padding_value=IGNORED_LABEL),
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

    def encode(self, row: Row, pictures: Sequence[Tensor], evaluation: bool) -> EncodedRow:
        """One row; without its answer in evaluation.

        Errors: SkipSample for pictures that the processor refuses.
        """
        example = row.example
        turns, shown = recent(
            example.asked(len(pictures)), row.max_prompt_tokens, self.turns_length
        )
        text, learned, _ = self.chat.write_learned(turns, row.max_prompt_tokens)
        prompt, types, media = self.process(text, [pictures[n] for n in shown])
        answer: list[int] = []
        if not evaluation and example.target is not None:
            answer = self.chat.answer_ids(example.target, row.max_target_tokens)
            if example.class_scores is not None:
                answer = first_token_alone(answer, len(self.chat.start_ids))
            elif not example.learned:
                answer = []
        places = torch.zeros_like(prompt, dtype=torch.bool)
        if learned and not evaluation:
            places = self.places_of(text, learned, prompt)
        if not self.answers_apart:
            types = {name: self.with_answer(name, values, answer) for name, values in types.items()}
        return EncodedRow(prompt, places, torch.tensor(answer, dtype=torch.long), types, media)

    def process(
        self, text: str, pictures: Sequence[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Ids of the prompt (p,), more numbers of its tokens, and the pictures' tensors.

        Errors: ValueError if the processor gives numbers of tokens that vlds does not know,
        SkipSample if it refuses the pictures.
        """
        try:
            output = self.processed(text, pictures)
        except Exception as error:  # each processor has its own kinds of errors
            reads_grey = False
            with suppress(Exception):
                self.processed(text, [GREY] * len(pictures))
                reads_grey = True
            if not (pictures and reads_grey):
                raise
            # The pictures are at fault, since it takes grey ones in their place.
            sizes = " and ".join(f"{p.shape[2]} x {p.shape[1]}" for p in pictures)
            raise SkipSample(
                f"the model's processor refuses a picture ({sizes} pixels): {error}"
            ) from None
        if self.model_type in TILED:
            output = {name: torch.cat(list(map(torch.as_tensor, v))) for name, v in output.items()}
            output |= {n: v[None] for n, v in output.items() if not v.is_floating_point()}
        prompt = output.pop("input_ids")[0]
        for name in ("attention_mask", "labels"):  # PaliGemma's labels are all ignored here
            output.pop(name, None)
        types, media = {}, {}
        for name, values in output.items():
            if name in ANSWER_TYPES:
                types[name] = values[0]
            elif pictures:
                media[name] = values.to(self.dtype) if values.is_floating_point() else values
            else:
                raise ValueError(
                    f"model: the processor of {self.model_type} gives '{name}' for a text; vlds "
                    "does not know it, so choose another type of model"
                )
        return prompt, types, media

    def processed(self, text: str, pictures: Sequence[Tensor]) -> Any:
        """What the processor makes of one row."""
        return self.processor(
            text=[text],
            images=self.layout.of(pictures) if pictures else None,
            return_tensors=None if self.model_type in TILED else "pt",
            add_special_tokens=not self.chat.has_start(text),
        )

    @cached_property
    def layout(self) -> Layout:
        """The first of `LAYOUTS` in which the processor reads a picture; the first of all if it
        reads none."""
        if self.model_type in FLAT:
            return Layout(nested=False, pil=False)
        text = self.chat.prompt("", 1)
        for layout in LAYOUTS:
            collator = replace(self)
            vars(collator)["layout"] = layout
            # Memory that is missing for one may be there for the next, where another process looks.
            with suppress(ValueError, TypeError, RuntimeError, LookupError, AttributeError):
                collator.processed(text, [GREY])
                return layout
        return LAYOUTS[0]

    def places_of(self, text: str, learned: Sequence[tuple[int, int]], prompt: Tensor) -> Tensor:
        """Which tokens of a prompt (p,) are those between such places of its text.

        The processor has put many tokens in the place of each picture, so that the text's own
        tokens are found again, each stretch behind the one before.

        Errors: ValueError if some are not there.
        """
        plain, stretches = self.chat.stretches(text, learned)
        ids, found = prompt.tolist(), torch.zeros_like(prompt, dtype=torch.bool)
        end = 0
        for first, behind in stretches:
            # With what stands before it, which makes an answer unlike the same words elsewhere. The
            # farther token may be a picture's, which the processor has replaced.
            for before in (NUM_BEFORE, 1):
                wanted = plain[max(0, first - before) : behind]
                starts = range(end, len(ids) - len(wanted) + 1)
                start = next((n for n in starts if ids[n : n + len(wanted)] == wanted), None)
                if start is not None:
                    break
            else:
                raise ValueError(
                    f"model: the processor of {self.model_type} changes the words beside its "
                    "pictures, so that the answers before the last one are not found; let the task "
                    "learn the last one alone (learn: last)"
                )
            end = start + len(wanted)
            found[end - (behind - first) : end] = True
        return found

    def dummy(self, question: str = "", num_pictures: int = 1) -> EncodedRow:
        """A short row with small grey pictures, and without an answer."""
        text = self.chat.prompt(question, num_pictures)
        prompt, types, media = self.process(text, [GREY] * num_pictures)
        return EncodedRow(prompt, torch.zeros_like(prompt).bool(), prompt[:0], types, media)

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
        return [len(self.chat.answer_ids(text, most)) for text, most in answers]

    def turns_length(self, turns: Sequence[Turn]) -> int:
        return self.chat.turns_length(turns)


PLACEHOLDERS = ("image_token_id", "image_token_index", "video_token_id")
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
        self._dummy: EncodedRow | None = None
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
        """(b, l, w) after each token of the row, or (b, t, w) for each token of the answer."""
        rows = len(batch)  # without the dummy, which comes last
        batch = self.with_dummy(batch)
        self.begin(batch)
        logits: Tensor = self.backbone(**self.inputs(batch), use_cache=False).logits
        return logits[:rows]

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
        if len(known) < len(batch):  # with the dummy, which is on the device alone
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
        """The rows' media in one tensor each: along dimension 0, other dimensions padded with zeros
        to the largest. All types of models read this (they drop empty tiles)."""
        joined: dict[str, Tensor] = {}
        for name in dict.fromkeys(name for row in media for name in row):
            tensors = [row[name] for row in media if name in row]
            largest = [max(sizes) for sizes in zip(*(t.shape[1:] for t in tensors), strict=True)]
            padded = []
            for tensor in tensors:
                gaps = [most - size for most, size in zip(largest, tensor.shape[1:], strict=True)]
                # F.pad takes (before, after) of each dimension, the last one first.
                padded.append(F.pad(tensor, [n for gap in reversed(gaps) for n in (0, gap)]))
            whole = torch.cat(padded)
            if self.collator.model_type in TILED:
                whole = whole[None]
            joined[name] = whole.to(self.backbone.dtype) if whole.is_floating_point() else whole
        return joined

    def with_dummy(self, batch: Batch) -> Batch:
        """In training, the batch and one short row with a picture, if no row has one: ranks without
        a picture would skip the tower, and the others would wait for them under ZeRO-3."""
        if not self.training or any(batch.media):
            return batch
        device = batch.input_ids.device
        if self._dummy is None or self._dummy.prompt.device != device:
            # Once on the device: each later copy would make the host wait.
            made = self.collator.dummy()
            self._dummy = made._replace(
                prompt=made.prompt.to(device),
                types={name: values.to(device) for name, values in made.types.items()},
                media={name: values.to(device) for name, values in made.media.items()},
            )
        dummy = self._dummy
        length = max(batch.input_ids.shape[1], len(dummy.prompt))

        def longer(rows: Tensor, row: Tensor, value: int) -> Tensor:
            rows = F.pad(rows, (0, length - rows.shape[1]), value=value)
            row = F.pad(row, (0, length - len(row)), value=value)
            return torch.cat([rows, row[None].to(rows)])

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

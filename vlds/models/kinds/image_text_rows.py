"""What the processor of an image-text model makes of rows: the collator, which lets it write each.

Shapes: b rows, l tokens of a row (prompt and answer), p tokens of its prompt, a of its answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vlds.models.collate import class_targets, first_token_alone, recent
from vlds.models.kinds.chat_format import ChatFormat
from vlds.models.kinds.media import (
    APART,
    SHORT,
    ShownClip,
    has_place,
    in_type,
    pieces_of,
    shown_in,
    videos_of,
)
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
from vlds.schema import (
    IGNORED_LABEL,
    NO_IMAGE,
    Batch,
    Clip,
    Images,
    RefusedRows,
    Row,
    SkipSample,
    Turn,
)

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
        pieces = pieces_of(turns)
        apart = None in pieces and self.model_type in APART
        # Asked last: only rows with clips need to know it, and it takes a process.
        if any(isinstance(piece, Clip) for piece in pieces) and (apart or not self.reads_clips):
            turns = [turn.as_pictures for turn in turns]
        text, learned, _ = self.chat.write_learned(turns, row.max_prompt_tokens)
        alone, clips = shown_in(turns, [pictures[n] for n in shown])
        prompt, types, media = self.process(text, alone, clips)
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

    @cached_property
    def reads_clips(self) -> bool:
        """True if a clip becomes a video of the processor; else its frames are pictures."""
        return has_place(self.chat, self.processor, self.model_type)

    def process(
        self, text: str, pictures: Sequence[Tensor], clips: Sequence[ShownClip] = ()
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Ids of the prompt (p,), more numbers of its tokens, and tensors of pictures and clips.

        Errors: ValueError if the processor gives numbers of tokens that vlds does not know,
        SkipSample if it refuses the pictures or clips.
        """
        try:
            output = self.processed(text, pictures, clips)
        except Exception as error:  # each processor has its own kinds of errors
            reads_grey = False
            with suppress(Exception):
                grey = [clip._replace(frames=[GREY] * len(clip.frames)) for clip in clips]
                self.processed(text, [GREY] * len(pictures), grey)
                reads_grey = True
            lengths = sorted({len(clip.frames) for clip in clips})
            if len(lengths) > 1 and not reads_grey:
                raise SkipSample(
                    "the model's processor takes no clips of unlike numbers of frames together "
                    f"({' and '.join(map(str, lengths))}): {error}"
                ) from None
            if not ((pictures or clips) and reads_grey):
                raise
            # The pictures are at fault, since it takes grey ones in their place.
            shown = [*pictures, *(frame for clip in clips for frame in clip.frames)]
            sizes = " and ".join(dict.fromkeys(f"{p.shape[2]} x {p.shape[1]}" for p in shown))
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
            elif pictures or clips:
                media[name] = in_type(name, values, self.dtype)
            else:
                raise ValueError(
                    f"model: the processor of {self.model_type} gives '{name}' for a text; vlds "
                    "does not know it, so choose another type of model"
                )
        return prompt, types, media

    def processed(
        self,
        text: str,
        pictures: Sequence[Tensor],
        clips: Sequence[ShownClip] = (),
        layout: Layout | None = None,
    ) -> Any:
        """What the processor makes of one row; `layout`: of its pictures, by default the known
        one."""
        return self.processor(
            text=[text],
            images=(layout or self.layout).of(pictures) if pictures else None,
            return_tensors=None if self.model_type in TILED else "pt",
            add_special_tokens=not self.chat.has_start(text),
            **videos_of(clips, self.processor),
        )

    @cached_property
    def layout(self) -> Layout:
        """The first of `LAYOUTS` in which the processor reads a picture; the first of all if it
        reads none."""
        if self.model_type in FLAT:
            return Layout(nested=False, pil=False)
        text = self.chat.prompt("", 1)
        for layout in LAYOUTS:
            # Memory that is missing for one may be there for the next, where another process looks.
            with suppress(ValueError, TypeError, RuntimeError, LookupError, AttributeError):
                self.processed(text, [GREY], layout=layout)
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

    def dummy(
        self, question: str = "", num_pictures: int = 1, with_clip: bool = False
    ) -> EncodedRow:
        """A short row with small grey pictures, and without an answer."""
        clips = [ShownClip(SHORT, [GREY])] * with_clip
        shown = ((None,) * num_pictures) + (SHORT,) * with_clip
        text = self.chat.write((Turn("user", (*shown, question)),)).text
        prompt, types, media = self.process(text, [GREY] * num_pictures, clips)
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

"""A whole language model as Hugging Face opens it, and rows as its own tokenizer, chat template and
forward pass read them: what `vlds prove` compares our models with.

What reads pictures too is in `image_text_library`. Shapes: l tokens of a row, w words.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlds.models.collate import only_used
from vlds.models.generation.answer_list import Answer
from vlds.models.kinds.chat_format import ChatFormat
from vlds.models.kinds.chat_forms import type_of
from vlds.models.methods.host import is_own
from vlds.models.model import Model
from vlds.models.peers import Peer
from vlds.schema import (
    IGNORED_LABEL,
    Batch,
    Collator,
    Decoding,
    Images,
    Row,
    SkipSample,
    Turn,
    plain_text,
)


class LibraryModel:
    """A causal language model or an encoder-decoder, on texts alone."""

    sees: ClassVar[bool] = False
    """True if it reads pictures; else rows are compared without theirs."""

    def __init__(
        self,
        theirs: Any,
        ours: Model,
        processor: Any,
        chat: ChatFormat | None = None,
        forbidden: Sequence[int] = (),
    ) -> None:
        """`chat`: how the kind writes prompts; None: as plain text. `ours` says where answers begin
        and end; `forbidden`: ids that none may hold."""
        self.model, self.chat, self.processor = theirs, chat, processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.settings = ours.generation_defaults()
        self.settings.update(do_sample=False, return_dict_in_generate=True, output_logits=True)
        self.settings.update(suppress_tokens=list(forbidden) or None)
        self.apart = bool(theirs.config.is_encoder_decoder)
        """Answers are the decoder's, not the end of the sequence."""

    @property
    def name(self) -> str:
        return f"Hugging Face's {type(self.model).__name__}"

    # Rows.

    def readable(self, rows: Sequence[Row], images: Images) -> list[Row]:
        """Rows as both programs read them whole, without those that one of them does not."""
        found = []
        for row in map(self.comparable, rows):
            with suppress(SkipSample):
                if row is not None and self.asked(row, images):
                    found.append(row)
        return found

    def comparable(self, row: Row) -> Row | None:
        """A row that both can read whole: without classes, without pictures that the model does not
        see, and with texts that end where the task would cut them; None for a conversation that is
        longer."""
        example = replace(row.example, class_scores=None, rivals=(), masking=None)
        if not self.sees:
            turns = [turn._replace(content=tuple(turn.texts) or ("",)) for turn in example.turns]
            row, example = row._replace(images=()), replace(example, turns=tuple(turns))
        said = "".join(text for turn in example.turns for text in turn.texts)
        if len(self.tokenizer(said)["input_ids"]) > row.max_prompt_tokens:
            return None
        example = replace(
            example,
            prompt=self.shortened(example.prompt, row.max_prompt_tokens),
            target=self.shortened(example.target or "", row.max_target_tokens),
        )
        return row._replace(example=example)

    def shortened(self, text: str, most: int) -> str:
        """A text without its last words, so that it has at most so many tokens."""
        words = text.split(" ")
        while words and len(self.tokenizer(" ".join(words))["input_ids"]) > most:
            words.pop()
        return " ".join(words)

    def text(self, turns: Sequence[Turn]) -> str:
        """The text that asks for an answer, as the template itself writes it."""
        if self.chat is None or not self.chat.has_template:
            return plain_text(turns)
        shape = tuple((turn.speaker, tuple(map(type_of, turn.content))) for turn in turns)
        messages = self.chat.messages(shape, [text for turn in turns for text in turn.texts])
        return self.chat.rendered([(messages, self.chat.variables, True)])[0]

    def asked(self, row: Row, images: Images) -> dict[str, Tensor]:
        """A row's prompt, on the host, as arguments of the forward pass and of `generate`.

        Errors: SkipSample for pictures that the library's processor refuses.
        """
        has_template = self.chat is not None and self.chat.has_template
        text = self.text(row.example.asked(0))
        ids: list[int] = self.tokenizer(text, add_special_tokens=not has_template)["input_ids"]
        # An end behind the prompt would end the answer before it begins.
        if not self.apart and not has_template and ids[-1:] == [self.tokenizer.eos_token_id]:
            ids = ids[:-1]
        prompt = torch.tensor([ids or [self.tokenizer.eos_token_id]])
        return {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}

    def learned(self, row: Row, images: Images, labels: Tensor) -> dict[str, Tensor]:
        """A row with its answer, where the model is. `labels`: (l,) of the row, or of its answer
        where that stands apart, unshifted, as the library wants them."""
        inputs = self.asked(row, images)
        if not self.apart:
            prompt = inputs["input_ids"][0]
            # `reads-right` compares the answer's tokens with the example's text.
            answer = labels[len(prompt) :].cpu()
            inputs["input_ids"] = torch.cat([prompt, answer])[None]
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            inputs |= self.with_answer(inputs, answer)
        elif self.chat is None:
            labels = torch.tensor(self.tokenizer(row.example.target)["input_ids"])
        return {
            name: t.to(self.model.device) for name, t in (inputs | {"labels": labels[None]}).items()
        }

    def with_answer(self, inputs: dict[str, Tensor], answer: Tensor) -> dict[str, Tensor]:
        """Further arguments with an entry for each token, continued over the answer."""
        return {}

    # What it computes.

    def logits(self, inputs: dict[str, Tensor], output: Any) -> Tensor:
        """(n, w) that predict the n labels of a row."""
        logits, labels = output.logits[0], inputs["labels"][0]
        if not self.apart:
            logits, labels = logits[:-1], labels[1:]
        chosen: Tensor = logits[labels != IGNORED_LABEL]
        return chosen

    @staticmethod
    def loss(inputs: dict[str, Tensor], output: Any) -> Tensor:
        """The library's own loss, summed over the labels of which it is the mean."""
        loss: Tensor = output.loss * int((inputs["labels"] != IGNORED_LABEL).sum())
        return loss

    @torch.no_grad()
    def answer(self, row: Row, images: Images, most: int) -> Answer:
        """The greedy answer of `generate`, of at most so many tokens."""
        inputs = {name: t.to(self.model.device) for name, t in self.asked(row, images).items()}
        self.settings.update(max_new_tokens=most)
        output = self.model.generate(**inputs, generation_config=self.settings)
        start = 1 if self.apart else inputs["input_ids"].shape[1]
        ids = output.sequences[0, start:]
        steps = torch.stack([step[0] for step in output.logits]).float().log_softmax(-1)
        total = float(steps.gather(1, ids[:, None]).sum())
        text = self.tokenizer.decode(ids, skip_special_tokens=True).strip()
        return Answer(text, math.exp(total), None)


def own_state(backbone: Any) -> dict[str, Tensor]:
    """The weights of a model of Hugging Face without those that methods have added."""
    return {name: t.detach() for name, t in backbone.state_dict().items() if is_own(name)}


def whole_batch(
    collator: Collator, library: LibraryModel, rows: Sequence[Row], images: Images, **how: bool
) -> Batch:
    """The batch of comparable rows, where the library's model is."""
    # Without pictures there is one that no row shows: some models want pictures in each batch.
    some = None if images is None else images[:1]
    if library.sees:
        rows, some = only_used(rows, images)
    return collator(rows, some, **how).to(library.model.device)


def row_names(rows: Sequence[Row]) -> list[str]:
    """What comparisons call rows."""
    return [f"row {number} ({row.example.id})" for number, row in enumerate(rows)]


def labels_of(library: LibraryModel, batch: Batch, number: int) -> Tensor:
    """The labels of a batch's row without padding, as `LibraryModel.learned` takes them."""
    assert batch.labels is not None
    labels = batch.labels[number]
    real = batch.attention_mask[number].bool()
    return labels[labels != IGNORED_LABEL] if library.apart else labels[real]


def row_peers(
    library: LibraryModel, collator: Collator, model: Model, rows: Sequence[Row], images: Images
) -> Iterator[Peer | str]:
    """Tokens, logits and losses of rows. Our losses are those of all rows together, with padding;
    our logits, as theirs, those of a row alone."""
    chosen = library.readable(rows, images)
    if left := len(rows) - len(chosen):
        yield (
            f"{left} rows are not compared: conversations beyond max_prompt_tokens, clips, or "
            f"pictures that the processor of {library.name} refuses"
        )
    if not chosen:
        return
    batch = whole_batch(collator, library, chosen, images, evaluation=False)
    sums = model.token_nll(batch).sum(1)
    tokens: tuple[dict[str, Tensor], ...] = ({}, {})
    losses: tuple[dict[str, Tensor], ...] = ({}, {})
    logits: tuple[dict[str, Tensor], ...] = ({}, {})
    for number, (name, row) in enumerate(zip(row_names(chosen), chosen, strict=True)):
        labels = labels_of(library, batch, number)
        ids = batch.input_ids[number][batch.attention_mask[number].bool()]
        if not (labels != IGNORED_LABEL).any():
            continue
        inputs = library.learned(row, images, labels)
        pair = (ids.cpu(), inputs["input_ids"][0].cpu())
        if library.apart:
            pair = (
                torch.cat([pair[0], labels.cpu()]),
                torch.cat([pair[1], inputs["labels"][0].cpu()]),
            )
        for side, values in zip(tokens, pair, strict=True):
            side[name] = values
        if not torch.equal(*pair):
            continue
        output = library.model(**inputs)
        alone = whole_batch(collator, library, [row], images, evaluation=False)
        for side, values in zip(
            logits, (model.predicted(alone).logits, library.logits(inputs, output)), strict=True
        ):
            side[name] = values.cpu()
        for side, values in zip(losses, (sums[number], library.loss(inputs, output)), strict=True):
            side[name] = values.cpu()
    about = "" if library.sees else " of the texts without pictures"
    yield Peer(f"tokens{about}: ours, and those that the processor writes", *tokens)
    if losses[0]:
        yield Peer(f"logits{about}: ours, and {library.name}", *logits)
        yield Peer(f"loss{about} in a batch: ours, and that of {library.name} for the row", *losses)


def both_answers(
    library: LibraryModel,
    collator: Collator,
    model: Model,
    rows: Sequence[Row],
    images: Images,
    most: int,
) -> tuple[list[Answer], list[Answer]]:
    """Greedy answers of at most so many tokens: ours in one batch, the library's one by one."""
    batch = whole_batch(collator, library, rows, images, evaluation=True)
    ours = model.answer(batch, Decoding(max_new_tokens=most))
    return ours, [library.answer(row, images, most) for row in rows]

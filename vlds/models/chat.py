"""How a model wants a question and its answer written: by its chat template, or plainly."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

ANSWER = "ANSWER"
"""Stands for an answer, to see what a template writes behind it."""


@dataclass(frozen=True)
class Chat:
    """Writes prompts and answers for one model."""

    template: Any
    """What has `apply_chat_template`: the processor, or a tokenizer."""
    tokenizer: Any
    placeholder: str
    """What stands for a picture where there is no template; "" if nothing does."""
    answers_apart: bool = False
    """True for encoder-decoders: an answer is a sequence with a start of its own."""

    @property
    def has_template(self) -> bool:
        """True if the model has a chat template."""
        return getattr(self.template, "chat_template", None) is not None

    @property
    def pad(self) -> int:
        """Id that fills rows up."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    def prompt(self, question: str, num_pictures: int) -> str:
        """The text of a prompt, with a placeholder for each picture."""
        if not self.has_template:
            return self.placeholder * num_pictures + question
        text: str = self.template.apply_chat_template(
            [user_turn(question, num_pictures)], add_generation_prompt=True, tokenize=False
        )
        return text

    def adds_special_tokens(self, text: str) -> bool:
        """True if the tokenizer must add the start token, which templates may write."""
        start = self.tokenizer.bos_token
        return not (self.has_template and start and text.startswith(start))

    def answer_ids(self, answer: str, most: int) -> list[int]:
        """Ids of an answer and of the end of its turn, which is never cut off."""
        lead, tail = self.around_answer
        ids = list(self.tokenizer(lead + answer, add_special_tokens=False)["input_ids"])
        most -= len(self.start) + len(tail)
        return [*self.start, *ids[: max(0, most)], *tail]

    @cached_property
    def start(self) -> list[int]:
        """Ids before the first real token of an answer."""
        if not self.answers_apart:
            return []
        return [id for id in self.tokenizer("")["input_ids"] if id != self.tokenizer.eos_token_id]

    @property
    def tail(self) -> list[int]:
        """Ids behind an answer: the end of the turn."""
        return self.around_answer[1]

    def cut(self, question: str, most: int) -> str:
        """The question, cut to a number of tokens."""
        ids = self.tokenizer(question, add_special_tokens=False)["input_ids"]
        if len(ids) <= most:
            return question
        text: str = self.tokenizer.decode(ids[:most], skip_special_tokens=True)
        return text

    @cached_property
    def control_words(self) -> tuple[str, ...]:
        """Texts of special tokens, such as the placeholders of pictures."""
        words = {*self.tokenizer.all_special_tokens, self.placeholder.strip()}
        words |= {str(token) for token in self.tokenizer.added_tokens_decoder.values()}
        return tuple(sorted(words - {""}))

    @cached_property
    def around_answer(self) -> tuple[str, list[int]]:
        """Blanks between a prompt and its answer, and the ids behind the answer: the end of the
        turn.

        Errors: ValueError if a template writes more than the answer into its turn.
        """
        if not self.has_template:
            return "", [int(self.tokenizer.eos_token_id)]
        turns = [user_turn("x", 0), {"role": "assistant", "content": text_parts(ANSWER)}]
        whole = str(self.template.apply_chat_template(turns, tokenize=False))
        start, answer, tail = whole.rpartition(ANSWER)
        prompt = self.prompt("x", 0)
        lead = start.removeprefix(prompt) if start.startswith(prompt) else ""
        # LLaVA-OneVision's writes another blank before an answer than before one to generate.
        if not answer or start.split() != prompt.split():
            raise ValueError(
                "model: its chat template writes more than the answer into an answer's turn, so "
                "that training and generation would differ; choose a model with a plain template"
            )
        ids = list(self.tokenizer(tail, add_special_tokens=False)["input_ids"])
        special = set(self.tokenizer.all_special_ids)
        special |= set(self.tokenizer.added_tokens_decoder)
        first = next((n for n, token in enumerate(ids) if token in special), None)
        end = [int(self.tokenizer.eos_token_id)] if first is None else ids[: first + 1]
        return lead, end


def user_turn(question: str, num_pictures: int) -> dict[str, Any]:
    """A message of a chat: pictures first, then the question."""
    pictures = [{"type": "image"} for _ in range(num_pictures)]
    return {"role": "user", "content": [*pictures, *text_parts(question)]}


def text_parts(text: str) -> list[dict[str, str]]:
    """The content of a message of text alone."""
    return [{"type": "text", "text": text}]


def harmless(text: str, control_words: Iterable[str]) -> str:
    """The text with a blank inside each control word, which tokenizers then read as plain text."""
    for word in control_words:
        if word in text:
            text = text.replace(word, f"{word[0]} {word[1:]}")
    return text

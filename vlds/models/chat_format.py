"""A causal model's prompts and answers as tokens, as its tokenizer's chat template writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MARKER = "vlds-marks-the-answer"
"""Stands for an answer, to find what a template writes behind it."""


@dataclass(frozen=True)
class ChatFormat:
    """Prompt, answer, and the tail that ends an answer."""

    tokenizer: Any
    tail: str
    """What follows an answer, up to the token that ends it."""
    tail_ids: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Any) -> ChatFormat:
        """The format of a tokenizer: of its chat template, or else plain texts that end with the
        end-of-sequence token.

        Errors: ValueError if it has no such token, or if answers do not follow its prompts.
        """
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "model.tokenizer: it has no end-of-sequence token, so that no answer would end; "
                "set eos_token in its tokenizer_config.json"
            )
        tail = template_tail(tokenizer) if tokenizer.chat_template else tokenizer.eos_token
        ids = tokenizer(tail, add_special_tokens=False)["input_ids"]
        return cls(tokenizer, tail, tuple(ids))

    @property
    def end_ids(self) -> list[int]:
        """Tokens that end an answer."""
        return sorted({self.tail_ids[-1], self.tokenizer.eos_token_id})

    @property
    def pad_id(self) -> int:
        """The token of padding; no model reads it."""
        pad: int | None = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    def prompt_ids(self, prompt: str, limit: int) -> list[int]:
        """Tokens of the user's turn, whose text is cut to `limit` tokens. At least one, from which
        the answer's first token is predicted."""
        words = self.ids(prompt)
        if len(words) > limit:
            # A cut character decodes to U+FFFD.
            kept = self.tokenizer.decode(words[:limit], clean_up_tokenization_spaces=False)
            prompt = kept.rstrip("\ufffd")
        if self.tokenizer.chat_template:
            return self.ids(user_turn(self.tokenizer, prompt))
        ids: list[int] = list(self.tokenizer(prompt)["input_ids"])
        end = self.tokenizer.eos_token_id
        return (ids[:-1] if ids[-1:] == [end] else ids) or [end]

    def answer_ids(self, answer: str, limit: int | None = None) -> list[int]:
        """Tokens of an answer and the tail; those of the answer are cut if both are more than
        `limit`."""
        ids = self.ids(answer + self.tail)
        if limit is None or len(ids) <= limit:
            return ids
        return [*ids[: max(0, limit - len(self.tail_ids))], *self.tail_ids]

    def ids(self, text: str) -> list[int]:
        """Tokens of a text, without special tokens around it."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def __call__(
        self, answers: Sequence[str], add_special_tokens: bool = True
    ) -> dict[str, list[list[int]]]:
        """Tokens of answers as a tokenizer gives them, for lists of answers."""
        return {"input_ids": [self.answer_ids(answer) for answer in answers]}


def user_turn(tokenizer: Any, prompt: str) -> str:
    """A template's text up to where the answer begins."""
    turn = [{"role": "user", "content": prompt}]
    text: str = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    return text


def template_tail(tokenizer: Any) -> str:
    """What a chat template writes behind an answer, up to the first special token; the
    end-of-sequence token if there is none.

    Errors: ValueError if answers do not follow the prompt that asks for them.
    """
    before = user_turn(tokenizer, "question") + MARKER
    turns = [("user", "question"), ("assistant", MARKER)]
    messages = [{"role": role, "content": text} for role, text in turns]
    whole: str = tokenizer.apply_chat_template(messages, tokenize=False)
    if not whole.startswith(before):
        raise ValueError(
            "model.tokenizer: its chat template writes a conversation's answer elsewhere than "
            f"behind the prompt ({before[-80:]!r} is not in {whole[-120:]!r}); simplify its "
            "chat_template"
        )
    after = whole[len(before) :]
    specials = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    ends = [after.index(text) + len(text) for text in specials if text in after]
    return after[: min(ends)] if ends else str(tokenizer.eos_token)

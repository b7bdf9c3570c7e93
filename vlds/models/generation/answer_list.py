"""Answers that Hugging Face's `generate` writes, freely or out of a list.

An `AnswerList` is a tree of the prefixes of the answers' tokens: at each step, only tokens that
lead to an answer of the list may follow. Answers end with </s>, so that the list may hold both
"fire" and "fire hydrant". r rows, l tokens, w words of vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    Cache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
)

from vlds.runtime.json_files import read_named_json
from vlds.schema import Decoding


class Answer(NamedTuple):
    """A model's answer, and how sure it is."""

    text: str
    confidence: float
    """The model's probability of the whole answer; with `choices` or a list, its share among
    them."""
    token_confidence: float | None
    """The geometric mean over the tokens of a free text, </s> included. None for a text of one
    token, where `confidence` says as much, and for restricted answers."""
    prompt_cut: bool = False
    """True if the prompt had more tokens than the task reads."""


def read_answers(answers: Sequence[str] | str) -> tuple[str, ...]:
    """The answers of `Decoding.answers`: the list itself, or what its file holds, a list or (in a
    dataset.json) classes.

    Errors: ValueError if the file cannot be read, or is not a list of texts.
    """
    field = "decoding.answers"
    listed: Any = answers
    if isinstance(answers, str):
        if answers.startswith("["):
            raise ValueError(f"{field}: {answers} is not a list of texts; write each in quotes")
        listed = read_named_json(answers, field, "name a JSON file with a list")
        field = f"{field}: {answers}"
    if isinstance(listed, dict):
        listed = listed.get("classes")
    is_list = isinstance(listed, (list, tuple)) and len(listed) > 0
    if not is_list or not all(isinstance(text, str) and text.strip() for text in listed):
        raise ValueError(f"{field} must be a list of one or more texts, none of them empty")
    return tuple(dict.fromkeys(listed))


class AnswerList:
    """The answers, and which tokens may follow the tokens so far."""

    def __init__(self, answers: Sequence[str], tokens: Iterable[Sequence[int]]) -> None:
        """`tokens`: of each answer, with all special tokens that the model writes."""
        self.texts: dict[tuple[int, ...], str] = {}
        for ids, answer in zip(tokens, answers, strict=True):
            # Of two answers with the same tokens, the first one is the text of both.
            self.texts.setdefault(tuple(ids), answer)
        self.longest = max(map(len, self.texts))
        """Tokens of the longest answer, </s> included."""
        # Each prefix is a node. Edges lie node by node, tokens rising, so that one binary search
        # over keys (node, token) follows the edges of all rows at once.
        nodes: dict[tuple[int, ...], int] = {(): 0}
        edges: list[tuple[int, int, int]] = []
        for sequence in sorted(self.texts):
            for length, token in enumerate(sequence, 1):
                if sequence[:length] not in nodes:
                    nodes[sequence[:length]] = len(nodes)
                    edges.append((nodes[sequence[: length - 1]], token, nodes[sequence[:length]]))
        edges.sort()
        parents, self._tokens, self._children = torch.tensor(edges).T.contiguous()
        self._nowhere = len(nodes)
        """A node without edges, for tokens that begin no answer."""
        # The edges of node n are _first[n] to _first[n + 1], `_nowhere` included.
        self._first = torch.searchsorted(parents, torch.arange(len(nodes) + 2))
        self._width = int(self._tokens.max()) + 1
        self._keys = parents * self._width + self._tokens

    def to(self, device: torch.device) -> AnswerList:
        """Move the tree."""
        for name in ("_tokens", "_children", "_first", "_keys"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (r, w) of the next token after a start token and (r, l) others: -inf where it
        would leave the list."""
        return self.restrict(ids[:, 1:], scores)

    def restrict(self, ids: Tensor, scores: Tensor) -> Tensor:
        """As `__call__`, after the tokens (r, l) of answers alone."""
        nodes = torch.zeros(len(ids), dtype=torch.long, device=ids.device)
        for tokens in ids.unbind(1):
            keys = nodes * self._width + tokens
            edges = torch.searchsorted(self._keys, keys).clamp(max=len(self._keys) - 1)
            # A token beyond the width would alias another node's key.
            known = (self._keys[edges] == keys) & (tokens < self._width) & (nodes < self._nowhere)
            nodes = torch.where(known, self._children[edges], self._nowhere)
        # All edges of all rows as pairs (row, token): counts [2, 3] -> offsets 0 1 0 1 2.
        first, counts = self._first[nodes], self._first[nodes + 1] - self._first[nodes]
        rows = torch.repeat_interleave(torch.arange(len(ids), device=ids.device), counts)
        ends = counts.cumsum(0)
        offsets = torch.arange(len(rows), device=ids.device) - (ends - counts)[rows]
        tokens = self._tokens[first[rows] + offsets]
        allowed = torch.full_like(scores, -torch.inf)
        allowed[rows, tokens] = scores[rows, tokens]
        return allowed


class WrittenAnswer(NamedTuple):
    """One row's answer."""

    ids: list[int]
    """With the end of the turn, if it was written."""
    words: list[int]
    """Without it."""
    log_probability: float
    """Log-probability of the whole answer, its end included; with a list, of its share there."""


@dataclass(frozen=True)
class Writer:
    """Writes answers with one Hugging Face model."""

    model: Any
    ends: tuple[int, ...]
    """Ids that end an answer."""
    pad: int
    forbidden: tuple[int, ...] = ()
    """Ids that no answer may hold, such as the placeholders of pictures."""
    decoder_start: int | None = None
    """Id that a separate decoder starts from; not part of the answer."""

    def write(
        self, inputs: Mapping[str, Any], decoding: Decoding, answers: AnswerList | None
    ) -> list[WrittenAnswer]:
        """Greedy answers or those of a beam search to rows that are padded on the left.

        `inputs`: of `generate`; a cache of the rows' first tokens is used up.
        """
        # A separate decoder's answers stand behind its start token. Given `inputs_embeds`, a model
        # returns the answer alone; given `input_ids`, the prompt too.
        start = 1
        if self.decoder_start is None:
            start = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
        forbidden = torch.tensor(self.forbidden, dtype=torch.long, device=self.model.device)
        chooser = Chooser(decoding, answers, forbidden, start, num_ends=len(self.ends))
        settings = self.defaults()
        settings.update(
            max_new_tokens=decoding.max_new_tokens if answers is None else answers.longest,
            num_beams=decoding.num_beams,
            early_stopping=decoding.early_stopping,
            return_dict_in_generate=True,
        )
        for value in inputs.values():
            if isinstance(value, Cache) and decoding.num_beams > 1:
                value.batch_repeat_interleave(decoding.num_beams)  # `generate` repeats tensors only
        output = self.model.generate(
            **inputs,
            generation_config=settings,
            logits_processor=LogitsProcessorList([chooser]),
        )
        new = output.sequences[:, start:]
        totals = chooser.log_probabilities(new, getattr(output, "beam_indices", None))
        written = []
        for ids, scores in zip(new.tolist(), totals.tolist(), strict=True):
            end = next((n for n, token in enumerate(ids) if token in self.ends), len(ids))
            whole = ids[: end + 1]
            written.append(WrittenAnswer(whole, ids[:end], sum(scores[: len(whole)])))
        return written

    def defaults(self) -> GenerationConfig:
        """Where greedy answers begin and end. Nothing comes from the checkpoint's own settings."""
        return GenerationConfig(
            do_sample=False,
            eos_token_id=list(self.ends),
            pad_token_id=self.pad,
            decoder_start_token_id=self.decoder_start,
        )


class Chooser(LogitsProcessor):
    """Applies the rules of a decoding to the scores of the next token, and remembers the model's
    own log-probabilities of the tokens that may be chosen: among all tokens, or among those of the
    list.

    `generate` can return whole logits, but those of 64 answers of 500 tokens over 150,000 words
    take 19 GB. r rows, k kept tokens, w words, t tokens of an answer.
    """

    def __init__(
        self,
        decoding: Decoding,
        answers: AnswerList | None,
        forbidden: Tensor,
        start: int,
        *,
        num_ends: int,
    ) -> None:
        """`forbidden`: ids that no answer may hold; `start`: tokens of the prompt that stand before
        answers; `num_ends`: ids that end one."""
        self.forbidden, self.start = forbidden, start
        self.is_listed = answers is not None
        # As many as `generate` looks at, so that its choices are among them.
        self.kept = 1 if decoding.num_beams == 1 else max(2, 1 + num_ends) * decoding.num_beams
        self.rules: list[Callable[[Tensor, Tensor], Tensor]] = []
        if decoding.no_repeat_ngram_size:
            self.rules.append(NoRepeatNGramLogitsProcessor(decoding.no_repeat_ngram_size))
        if answers is not None:
            self.rules.append(answers.restrict)
        self.best: list[tuple[Tensor, Tensor]] = []
        """Of each step the log-probabilities (r, k) of the best tokens, falling, and the tokens."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Given ids (r, l) with the prompt, and logits (r, w) for greedy answers or
        log-probabilities for beams; returns scores (r, w)."""
        # Before the rules: how sure the model is does not depend on them, but on a list.
        total = scores.logsumexp(-1, keepdim=True)
        if len(self.forbidden):
            scores = scores.index_fill(1, self.forbidden, -torch.inf)
        for rule in self.rules:
            scores = rule(input_ids[:, self.start :], scores)
        if self.is_listed:
            total = scores.logsumexp(-1, keepdim=True)
        values, tokens = scores.topk(min(self.kept, scores.shape[-1]), -1)
        self.best.append((values - total, tokens))
        return scores

    def log_probabilities(self, new: Tensor, beams: Tensor | None) -> Tensor:
        """The log-probability of each token of answers (b, t). `beams` (b, t): the row that wrote
        it; None: its own."""
        columns = []
        for step, written in enumerate(new.unbind(1)):
            values, tokens = self.best[step]
            if beams is not None:  # -1 behind the end of an answer, where nothing is read
                values, tokens = values[beams[:, step]], tokens[beams[:, step]]
            # What is not among the kept has been chosen instead of the last, whose score is equal.
            columns.append(torch.where(tokens == written[:, None], values, values[:, -1:]).amax(1))
        return torch.stack(columns, 1)


def as_answer(written: WrittenAnswer, tokenizer: Any, listed: AnswerList | None) -> Answer:
    """The text of an answer, and how sure the model is of it."""
    confidence = math.exp(written.log_probability)
    if listed is not None:
        # The answer whose tokens, without its end, are these; "" if none has been finished.
        words = (*written.words,)
        texts = (text for tokens, text in listed.texts.items() if tokens[:-1] == words)
        return Answer(next(texts, ""), confidence, None)
    # The geometric mean over the tokens: exp of the mean of their logarithms.
    mean = math.exp(written.log_probability / max(1, len(written.ids)))
    text = tokenizer.decode(written.words, skip_special_tokens=True).strip()
    return Answer(text, confidence, mean if len(written.words) > 1 else None)


def left_padded(rows: Tensor, lengths: Tensor, value: int) -> Tensor:
    """Rows (b, l) that are padded on the right, moved to the right edge."""
    longest = int(lengths.max())
    # Length 2 of 3: places -1 0 1, and padding where they are negative.
    positions = torch.arange(longest, device=rows.device) - (longest - lengths[:, None])
    moved = rows.gather(1, positions.clamp(min=0))
    return moved.masked_fill(positions < 0, value)

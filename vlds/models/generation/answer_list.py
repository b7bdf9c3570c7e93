"""Restricts answers to a list: a tree of the prefixes of the answers' tokens.

At each step, only tokens that lead to an answer of the list may follow. Answers end with </s>, so
that the list may hold both "fire" and "fire hydrant". r rows, l tokens, w words of vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from vlds.runtime.json_file import read_named_json


def read_answers(answers: Sequence[str] | str) -> tuple[str, ...]:
    """The answers of `Decoding.answers`: the list itself, or read from its file; of dataset.json,
    the classes.

    Errors: ValueError if the file cannot be read, or is not a list of texts.
    """
    field = "decoding.answers"
    listed: Any = answers
    if isinstance(answers, str):
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
        self._build(sorted(self.texts))

    def _build(self, sequences: Sequence[tuple[int, ...]]) -> None:
        """Number the prefixes as nodes, and list the edges node by node, tokens rising."""
        nodes: dict[tuple[int, ...], int] = {(): 0}
        edges: list[tuple[int, int, int]] = []
        for sequence in sequences:
            for length, token in enumerate(sequence, 1):
                if sequence[:length] not in nodes:
                    nodes[sequence[:length]] = len(nodes)
                    edges.append((nodes[sequence[: length - 1]], token, nodes[sequence[:length]]))
        edges.sort()
        parents, self._tokens, self._children = torch.tensor(edges).T.contiguous()
        self._nowhere = len(nodes)
        """A node without edges, for tokens that begin no answer."""
        self._first = torch.searchsorted(parents, torch.arange(len(nodes) + 2))
        self._width = int(self._tokens.max()) + 1
        self._keys = parents * self._width + self._tokens

    def text_of(self, ids: Sequence[int]) -> str:
        """The answer whose tokens, without its end, are these; "" if none has been finished."""
        return next((text for tokens, text in self.texts.items() if tokens[:-1] == (*ids,)), "")

    def to(self, device: torch.device) -> AnswerList:
        """Move the tree."""
        for name in ("_tokens", "_children", "_first", "_keys"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def nodes(self, ids: Tensor) -> Tensor:
        """(r,) nodes that written tokens (r, l) lead to, the start token not among them."""
        nodes = torch.zeros(len(ids), dtype=torch.long, device=ids.device)
        for tokens in ids.unbind(1):
            keys = nodes * self._width + tokens
            edges = torch.searchsorted(self._keys, keys).clamp(max=len(self._keys) - 1)
            known = (self._keys[edges] == keys) & (tokens < self._width) & (nodes < self._nowhere)
            nodes = torch.where(known, self._children[edges], self._nowhere)
        return nodes

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (r, w) of the next token after a start token and (r, l) others: -inf where it
        would leave the list."""
        return self.restrict(ids[:, 1:], scores)

    def restrict(self, ids: Tensor, scores: Tensor) -> Tensor:
        """The same after the tokens (r, l) of answers alone."""
        nodes = self.nodes(ids)
        first, counts = self._first[nodes], self._first[nodes + 1] - self._first[nodes]
        rows = torch.repeat_interleave(torch.arange(len(ids), device=ids.device), counts)
        ends = counts.cumsum(0)
        offsets = torch.arange(len(rows), device=ids.device) - (ends - counts)[rows]
        tokens = self._tokens[first[rows] + offsets]
        allowed = torch.full_like(scores, -torch.inf)
        allowed[rows, tokens] = scores[rows, tokens]
        return allowed

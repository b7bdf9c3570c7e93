"""Restricts answers to a list: a tree of the prefixes of the answers' tokens.

At each step, only tokens that lead to an answer of the list may follow. Answers end with </s>, so
that the list may hold both "fire" and "fire hydrant". r rows, l tokens, w words of vocabulary.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
)

from vlds.models.methods.host import InputExtension, extended
from vlds.runtime.json_files import read_named_json
from vlds.schema import Decoding

# What a model answers.


class Answer(NamedTuple):
    """A model's answer, and how sure it is."""

    text: str
    confidence: float
    """The model's probability of the whole answer; with `choices`, its share among them."""
    token_confidence: float | None
    """The geometric mean over the tokens of a free text, </s> included. None for a text of one
    token, where `confidence` says as much, and for restricted answers."""
    prompt_cut: bool = False
    """True if the prompt had more tokens than the task reads."""


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


# A language model's head that computes the logits of some positions only.
#
# Logits over the vocabulary are the largest tensor of a step, and most positions have no label. The
# head keeps its class, and Hugging Face's forward pass runs unchanged around it: what some classes
# do to logits behind the head (a softcap, a scale) stays right. States that a task's own head reads
# do not enter it.


NAME = "answer_positions"
Picked = Tensor | tuple[Tensor, Tensor]
"""A mask (b, l), whose positions are read row by row; or rows (k,) and columns (k,)."""


@dataclass
class Picking:
    """What a forward pass reads of the states before the head."""

    picked: Picked
    is_token: Tensor | None
    """(k,) bool, True for positions whose logits are wanted; None: of all."""
    apart: Tensor | None = None
    """(m, d) states at the other positions, once the pass has run."""

    @property
    def states(self) -> Tensor:
        """The states at the positions whose logits are not wanted."""
        assert self.apart is not None, "the forward pass runs inside `picking`"
        return self.apart


class AnswerPositions(InputExtension):
    """Picks states (n, d) out of (b, l, d) before the head; all of them outside `picking`.

    `generate` asks for the last position of each row, a slice. On a CPU, torch multiplies a slice
    row by row, and in bf16 takes 500 times as long for it as for a copy (torch 2.13).
    """

    def __init__(self) -> None:
        super().__init__()
        self.picking: Picking | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        if (picking := self.picking) is None:
            return inputs.contiguous()
        states = inputs[picking.picked]
        if picking.is_token is None:
            picking.apart = states[:0]
            return states
        picking.apart = states[~picking.is_token]
        return states[picking.is_token]


def pick_positions(model: Any) -> AnswerPositions:
    """Put `AnswerPositions` before the head of a Hugging Face model."""
    positions = AnswerPositions()
    extended(model.get_output_embeddings()).input_extensions[NAME] = positions
    return positions


def output_width(model: Any) -> int:
    """Width of the states that a Hugging Face model's head reads."""
    return int(model.get_output_embeddings().in_features)


@contextmanager
def picking(
    positions: AnswerPositions, picked: Picked, is_token: Tensor | None
) -> Iterator[Picking]:
    """Inside, the head computes these positions only; of them, those that `is_token` says."""
    positions.picking = Picking(picked, is_token)
    try:
        yield positions.picking
    finally:
        positions.picking = None


# Rows that begin alike share their first tokens: questions about one picture.
#
# The language model computes the picture and the words before the question once for all rows that
# have them in common. What follows in each row stands behind them, and attends to the start and to
# itself. Positions stay those of the row alone, and so do the numbers. Groups of rows fill lines up
# to the longest group, so that little padding is computed; no line mixes tasks, whose weights may
# differ.
#
# Shapes: b rows, s tokens of the longest row, g lines, t tokens of the longest line.


MOST_ROWS = 16
"""Rows that share a start at most: attention computes all pairs of tokens of a line."""
MASKED_ATTENTION = ("sdpa", "eager")
"""Implementations of attention that take a mask of pairs."""
START, PADDING = -1, -2
"""Stand for the row of a token that all rows of its group share, and for that of padding."""


class Span(NamedTuple):
    """Tokens of a row that stand side by side in a line."""

    group: int
    """The first row of the group."""
    row: int
    owner: int
    """The row that alone sees them; START if the whole group does."""
    begin: int
    end: int


class Lines(NamedTuple):
    """Where the tokens of the lines come from, and what they see."""

    source: Tensor
    """(g, t) index into all tokens of the rows (b * s); any on padding."""
    positions: Tensor
    """(g, t) each token's position in its row."""
    visible: Tensor
    """(g, 1, t, t) bool, True where a token attends to another."""
    picked: tuple[Tensor, Tensor]
    """Lines (k,) and places in them (k,) of the picked tokens, row by row."""
    tasks: Tensor
    """(g,) on the CPU."""


@dataclass
class Group:
    """Rows with one start."""

    task: int
    rows: list[int]
    start: int
    """Tokens that the rows have in common."""
    length: int
    """Tokens of the whole group."""


@dataclass
class Line:
    """Groups of one task, one behind the other."""

    task: int
    length: int = 0
    groups: list[Group] = field(default_factory=list)


def can_share_starts(model: Any) -> bool:
    """True if the states of a Hugging Face model depend on positions and visible tokens alone:
    rotary positions and full causal attention in all layers."""
    config = model.config
    full = {"full_attention"}
    bent = ("sliding_window", "alibi", "attn_temperature_tuning")  # attention by place in the line
    return (
        getattr(config, "rope_parameters", None) is not None
        and set(getattr(config, "layer_types", None) or full) == full
        and not any(getattr(config, name, None) for name in bent)
        and getattr(config, "is_causal", True)
        and config._attn_implementation in MASKED_ATTENTION
        and "position_ids" in inspect.signature(model.forward).parameters
    )


def cost(num_tokens: int, width: int) -> float:
    """What a line of tokens costs, in tokens: a layer multiplies each token with about 12 width^2
    weights, and each pair of tokens with 2 width numbers."""
    return num_tokens * (1 + num_tokens / (6 * width))


def share_starts(
    tokens: Tensor, lengths: Tensor, picked: Tensor, tasks: Tensor, pictures: Tensor, width: int
) -> Lines | None:
    """How rows share their starts; None if that saves nothing in a model of this width. All tensors
    on the CPU.

    Rows share a start if they have the same task (b,) and `pictures` (b, n) and the same first
    `tokens` (b, s), which are padded on the right to `lengths` (b,); visual tokens may have any
    number. A start ends before the first token that is `picked` (b, s).
    """
    limits = torch.where(picked.any(1), picked.long().argmax(1), lengths - 1)
    groups = list(groups_of(tokens, lengths, limits, tasks, pictures, width))
    lines = fill_lines(groups)
    longest = max(line.length for line in lines)
    if len(lines) * cost(longest, width) >= len(tokens) * cost(tokens.shape[1], width):
        return None
    return lay_out(lines, lengths.tolist(), picked)


def groups_of(
    tokens: Tensor, lengths: Tensor, limits: Tensor, tasks: Tensor, pictures: Tensor, width: int
) -> Iterator[Group]:
    """Rows of one task and the same pictures, in the order of their first rows, together where that
    costs less. A start has at most `limits` (b,) tokens."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for row, key in enumerate(zip(tasks.tolist(), *pictures.T.tolist(), strict=True)):
        alike.setdefault(key, []).append(row)
    for (task, *_), rows in alike.items():
        for first in range(0, len(rows), MOST_ROWS):
            some = rows[first : first + MOST_ROWS]
            equal = (tokens[some] == tokens[some[0]]).all(0)
            start = min(int(limits[some].min()), int(equal.long().cumprod(0).sum()))
            together, apart = start + int((lengths[some] - start).sum()), lengths[some].tolist()
            if cost(together, width) < sum(cost(length, width) for length in apart):
                yield Group(task, some, start, together)
            else:
                for row, length in zip(some, apart, strict=True):
                    yield Group(task, [row], 0, length)


def fill_lines(groups: Sequence[Group]) -> list[Line]:
    """Long groups first, each into the first line with room for it."""
    longest = max(group.length for group in groups)
    lines: list[Line] = []
    for group in sorted(groups, key=lambda group: -group.length):
        fitting = (
            line for line in lines
            if line.task == group.task and line.length + group.length <= longest
        )  # fmt: skip
        line = next(fitting, None)
        if line is None:
            line = Line(group.task)
            lines.append(line)
        line.groups.append(group)
        line.length += group.length
    return lines


def lay_out(lines: Sequence[Line], lengths: Sequence[int], picked: Tensor) -> Lines:
    """`lengths` of the rows, and their tokens that are picked (b, s)."""
    spans = [list(spans_of(line, lengths)) for line in lines]
    steps = [[torch.arange(span.begin, span.end) for span in line] for line in spans]
    counts = [torch.tensor([len(step) for step in line]) for line in steps]

    def by_token(number: Callable[[Span], int]) -> Tensor:
        """(g, t) a number of each token's span."""
        of_spans = (torch.tensor(list(map(number, line))) for line in spans)
        of_tokens = [n.repeat_interleave(count) for n, count in zip(of_spans, counts, strict=True)]
        return pad_sequence(of_tokens, batch_first=True, padding_value=PADDING)

    positions = pad_sequence([torch.cat(line) for line in steps], batch_first=True)
    return Lines(
        source=by_token(lambda span: span.row).clamp(min=0) * picked.shape[1] + positions,
        positions=positions,
        visible=visible(by_token(lambda span: span.group), by_token(lambda span: span.owner)),
        picked=places_of(spans, picked),
        tasks=torch.tensor([line.task for line in lines]),
    )


def spans_of(line: Line, lengths: Sequence[int]) -> Iterator[Span]:
    """The start of each group, then what follows it in each row."""
    for group in line.groups:
        first = group.rows[0]
        yield Span(first, first, START, 0, group.start)
        yield from (Span(first, row, row, group.start, lengths[row]) for row in group.rows)


def visible(group: Tensor, owner: Tensor) -> Tensor:
    """(g, 1, t, t): a token sees the tokens before it of its group's start and of its own row."""
    alike = group[:, :, None] == group[:, None, :]
    seen = (owner[:, None, :] == START) | (owner[:, :, None] == owner[:, None, :])
    return (alike & seen).tril()[:, None]


def places_of(spans: Sequence[Sequence[Span]], picked: Tensor) -> tuple[Tensor, Tensor]:
    """Lines (k,) and places in them (k,) of the tokens that are `picked` (b, s), row by row."""
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for number, line in enumerate(spans):
        end = 0
        for span in line:
            end += span.end - span.begin
            if span.owner != START:
                places = picked[span.row].nonzero()[:, 0] + end - span.end
                found[span.row] = torch.full_like(places, number), places
    in_lines, in_places = zip(*(found[row] for row in range(len(picked))), strict=True)
    return torch.cat(in_lines), torch.cat(in_places)


# Answers that Hugging Face's `generate` writes, and how sure the model is of them.
#
# Shapes: b rows, l tokens so far, w words of the vocabulary.


class WrittenAnswer(NamedTuple):
    """One row's answer."""

    ids: list[int]
    """With the end of the turn, if it was written."""
    words: list[int]
    """Without it."""
    log_probability: float
    """Of the whole answer, its end included."""


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
    """Id before an answer, if a decoder of its own writes it; it is no part of the answer."""

    def write(
        self, inputs: Mapping[str, Tensor], decoding: Decoding, answers: AnswerList | None
    ) -> list[WrittenAnswer]:
        """Greedy answers or those of a beam search to rows that are padded on the left.

        `inputs`: of Hugging Face's forward pass.
        """
        start = 1
        if self.decoder_start is None:
            start = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
        output = self.model.generate(
            **inputs,
            generation_config=self.settings(decoding, answers),
            logits_processor=LogitsProcessorList(rules(decoding, answers, start)),
        )
        sequences = output.sequences[:, start:]
        totals = self.model.compute_transition_scores(
            output.sequences,
            output.logits,
            getattr(output, "beam_indices", None),
            normalize_logits=True,
        )
        return [
            self.answer(ids, scores)
            for ids, scores in zip(sequences.tolist(), totals.float().tolist(), strict=True)
        ]

    def settings(self, decoding: Decoding, answers: AnswerList | None) -> GenerationConfig:
        """Ours alone: a checkpoint's own settings would leak."""
        settings = self.defaults()
        settings.update(
            max_new_tokens=decoding.max_new_tokens if answers is None else answers.longest,
            num_beams=decoding.num_beams,
            early_stopping=decoding.early_stopping,
            suppress_tokens=list(self.forbidden) or None,
            return_dict_in_generate=True,
            output_logits=True,
        )
        return settings

    def defaults(self) -> GenerationConfig:
        """Where greedy answers begin and end."""
        return GenerationConfig(
            do_sample=False,
            eos_token_id=list(self.ends),
            pad_token_id=self.pad,
            decoder_start_token_id=self.decoder_start,
        )

    def answer(self, ids: Sequence[int], scores: Sequence[float]) -> WrittenAnswer:
        """One row of what was written, up to its end."""
        end = next((n for n, token in enumerate(ids) if token in self.ends), len(ids))
        whole = list(ids[: end + 1])
        return WrittenAnswer(whole, list(ids[:end]), sum(scores[: len(whole)]))


def as_answer(written: WrittenAnswer, tokenizer: Any, listed: AnswerList | None) -> Answer:
    """The text of an answer, and how sure the model is of it."""
    confidence = math.exp(written.log_probability)
    if listed is not None:
        return Answer(listed.text_of(written.words), confidence, None)
    mean = math.exp(written.log_probability / max(1, len(written.ids)))
    text = tokenizer.decode(written.words, skip_special_tokens=True).strip()
    return Answer(text, confidence, mean if len(written.words) > 1 else None)


class AnswerRule(LogitsProcessor):
    """Applies a rule for answers to what follows the prompt."""

    def __init__(self, rule: Callable[[Tensor, Tensor], Tensor], start: int) -> None:
        """`start`: tokens of the prompt that stand before answers."""
        self.rule, self.start = rule, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(b, l) with the prompt, (b, w) -> (b, w)."""
        return self.rule(input_ids[:, self.start :], scores)


def rules(decoding: Decoding, answers: AnswerList | None, start: int) -> list[LogitsProcessor]:
    """What answers must keep to."""
    chosen: list[Callable[[Tensor, Tensor], Tensor]] = []
    if decoding.no_repeat_ngram_size:
        chosen.append(NoRepeatNGramLogitsProcessor(decoding.no_repeat_ngram_size))
    if answers is not None:
        chosen.append(answers.restrict)
    return [AnswerRule(rule, start) for rule in chosen]


def left_padded(rows: Tensor, lengths: Tensor, value: int) -> Tensor:
    """Rows (b, l) that are padded on the right, moved to the right edge."""
    longest = int(lengths.max())
    positions = torch.arange(longest, device=rows.device) - (longest - lengths[:, None])
    moved = rows.gather(1, positions.clamp(min=0))
    return moved.masked_fill(positions < 0, value)

"""Rows that begin alike share their first tokens: questions about one picture.

The language model computes the picture and the words before the question once for all rows that
have them in common. What follows in each row stands behind them, and attends to the start and to
itself. Positions stay those of the row alone, and so do the numbers. Groups of rows fill lines up
to the longest group, so that little padding is computed; no line mixes tasks, whose weights may
differ.

Shapes: b rows, s tokens of the longest row, g lines, t tokens of the longest line.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

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

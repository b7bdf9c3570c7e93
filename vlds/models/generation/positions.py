"""Which positions of a batch's rows a Hugging Face language model computes.

Logits over the vocabulary are the largest tensor of a step, and most positions have no label: with
`AnswerPositions` the head computes some of them only. Rows that begin alike, such as questions
about one picture, share their first tokens: `share_starts` lays them out in lines, so that the
model computes the picture and the words before the question once.

Shapes: b rows, s tokens of the longest row, g lines, t tokens of the longest line, d width.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vlds.models.methods.context import Places
from vlds.models.methods.host import InputExtension, extended


@dataclass
class Picking:
    """The positions whose states a forward pass reads before the head."""

    picked: Places
    among: tuple[Tensor, Tensor] | None
    """Numbers, among the k positions, of the n whose logits are wanted, and of the other m; None:
    all are wanted."""
    apart: Tensor | None = None
    """(m, d) states at the other positions, once the pass has run."""

    @property
    def states(self) -> Tensor:
        """The states at the positions whose logits are not wanted."""
        assert self.apart is not None, "the forward pass runs inside `picking`"
        return self.apart


class AnswerPositions(InputExtension):
    """Picks states (n, d) out of (b, s, d) before the head; all of them outside `picking`.

    The head keeps its class, and Hugging Face's forward pass runs unchanged around it: what some
    classes do to logits behind the head (a softcap, a scale) stays right. States that a task's own
    head reads do not enter it.
    """

    name = "answer_positions"
    """Among what is put before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.picking: Picking | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        if (picking := self.picking) is None:
            # `generate` asks for the last position of each row, a slice. On a CPU, torch 2.13
            # multiplies it row by row, in bf16 500 times as slowly as a copy.
            return inputs.contiguous()
        states = inputs[picking.picked]
        if picking.among is None:
            picking.apart = states[:0]
            return states
        wanted, others = picking.among
        picking.apart = states[others]
        return states[wanted]


def pick_positions(model: Any) -> AnswerPositions:
    """Put `AnswerPositions` before the head of a Hugging Face model."""
    positions = AnswerPositions()
    extended(model.get_output_embeddings()).input_extensions[positions.name] = positions
    return positions


@contextmanager
def picking(
    positions: AnswerPositions, picked: Places, among: tuple[Tensor, Tensor] | None
) -> Iterator[Picking]:
    """Inside, the head computes these positions only; of them, those that `among` wants."""
    positions.picking = Picking(picked, among)
    try:
        yield positions.picking
    finally:
        positions.picking = None


MOST_ROWS = 16
"""Rows that share a start at most: attention computes all pairs of tokens of a line."""
MASKED_ATTENTION = ("sdpa", "eager")
"""Implementations of attention that take a mask of pairs."""
START, PADDING = -1, -2
"""In place of the row that alone sees a token: START if its whole group does, PADDING where there
is no token."""


class Lines(NamedTuple):
    """Where the tokens of the lines come from, and what they see."""

    source: Tensor
    """(g, t) index into all tokens of the rows (b * s); any on padding."""
    positions: Tensor
    """(g, t) each token's position in its row."""
    visible: Tensor
    """(g, 1, t, t) bool, True where a token attends to another."""
    line: Tensor
    """(b,) the line of each row."""
    places: Tensor
    """(b, s) where each of a row's tokens is in its line; 0 on padding."""
    tasks: Tensor
    """(g,) on the CPU."""

    def places_of(self, picked: Tensor) -> Tensor:
        """(k, 2) line and place of the picked tokens (b, s) bool, row by row."""
        rows, tokens = picked.nonzero().unbind(1)
        return torch.stack([self.line[rows], self.places[rows, tokens]], 1)

    def mask(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """(g, 1, t, t) what Hugging Face's attention adds to its scores: 0 where a token sees
        another."""
        visible = self.visible.to(device, non_blocking=True)
        # The least number, not -inf: a row of padding alone would become NaN.
        hidden = torch.finfo(dtype).min
        return torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(~visible, hidden)


class RowGroup(NamedTuple):
    """Rows with one start."""

    task: int
    rows: list[int]
    start: int
    """Tokens that the rows have in common."""
    length: int
    """Tokens of the whole group."""


def can_share_starts(model: Any) -> bool:
    """True if the states of a Hugging Face model depend on positions and visible tokens alone:
    rotary positions and full causal attention in all layers."""
    config = model.config
    full = {"full_attention"}
    # With these, attention depends on a token's place in the line, not on its position.
    by_place = ("sliding_window", "alibi", "attn_temperature_tuning")
    return (
        getattr(config, "rope_parameters", None) is not None
        and set(getattr(config, "layer_types", None) or full) == full
        and not any(getattr(config, name, None) for name in by_place)
        and getattr(config, "is_causal", True)
        and config._attn_implementation in MASKED_ATTENTION
        and "position_ids" in inspect.signature(model.forward).parameters
    )


def drops_pairs(model: Any) -> bool:
    """True if attention drops weights: which of the pairs of a line would depend on the line."""
    return bool(getattr(model.config.get_text_config(), "attention_dropout", 0.0))


def cost(num_tokens: int, width: int) -> float:
    """Cost of a line of tokens, in tokens: a layer multiplies each token with about 12 width^2
    weights, and each pair of tokens with 2 width numbers."""
    return num_tokens * (1 + num_tokens / (6 * width))


def share_starts(
    tokens: Tensor,
    lengths: Tensor,
    picked: Tensor,
    tasks: Tensor,
    pictures: Tensor,
    width: int,
    besides: int = 0,
) -> Lines | None:
    """Lay rows out in lines that share starts; None if that saves nothing in a model of this width
    that computes `besides` more tokens because of the lines. All tensors are on the CPU.

    Rows share a start if they have the same task (b,) and `pictures` (b, n) and the same first
    `tokens` (b, s), which are padded on the right to `lengths` (b,); visual tokens may have any
    number. A start ends before the first token that is `picked` (b, s). What follows it in each row
    stands behind it, and attends to the start and to itself. Positions stay those of the row alone,
    and so do the numbers. No line mixes tasks, whose weights may differ.
    """
    # Each row keeps at least its last token, even if none is picked. argmax gives the first True.
    limits = torch.where(picked.any(1), picked.long().argmax(1), lengths - 1)
    groups = list(groups_of(tokens, lengths, limits, tasks, pictures, width))
    # Long groups first, each into the first line with room for it, so that little is padded.
    longest = max(group.length for group in groups)
    lines: list[list[RowGroup]] = []
    for group in sorted(groups, key=lambda group: -group.length):
        for line in lines:
            length = sum(other.length for other in line)
            if line[0].task == group.task and length + group.length <= longest:
                line.append(group)
                break
        else:
            lines.append([group])
    together = len(lines) * cost(longest, width) + besides
    if together >= len(tokens) * cost(tokens.shape[1], width):
        return None
    return lay_out(lines, lengths.tolist(), tokens.shape[1])


def groups_of(
    tokens: Tensor, lengths: Tensor, limits: Tensor, tasks: Tensor, pictures: Tensor, width: int
) -> Iterator[RowGroup]:
    """Rows of one task and the same pictures, in the order of their first rows, together where that
    costs less. A start has at most `limits` (b,) tokens."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for row, key in enumerate(zip(tasks.tolist(), *pictures.T.tolist(), strict=True)):
        alike.setdefault(key, []).append(row)
    for (task, *_), rows in alike.items():
        for first in range(0, len(rows), MOST_ROWS):
            some = rows[first : first + MOST_ROWS]
            # The product of [1, 1, 0, 1] up to each place is 1 1 0 0: its sum counts leading ones.
            equal = (tokens[some] == tokens[some[0]]).all(0)
            start = min(int(limits[some].min()), int(equal.long().cumprod(0).sum()))
            together, apart = start + int((lengths[some] - start).sum()), lengths[some].tolist()
            if cost(together, width) < sum(cost(length, width) for length in apart):
                yield RowGroup(task, some, start, together)
            else:
                for row, length in zip(some, apart, strict=True):
                    yield RowGroup(task, [row], 0, length)


def lay_out(lines: Sequence[Sequence[RowGroup]], lengths: Sequence[int], longest: int) -> Lines:
    """`lengths` of the rows, of which the longest has `longest` tokens."""
    tables: list[Tensor] = []
    line_of = torch.zeros(len(lengths), dtype=torch.long)
    places = torch.zeros(len(lengths), longest, dtype=torch.long)
    for number, line in enumerate(lines):
        # Spans of tokens that stand side by side: the start of each group, then what follows it in
        # each row. (group's first row, row, the row that alone sees them, begin, end)
        spans: list[tuple[int, int, int, int, int]] = []
        end_of_line = 0
        for group in line:
            first, start = group.rows[0], torch.arange(group.start) + end_of_line
            spans.append((first, first, START, 0, group.start))
            end_of_line += group.start
            for row in group.rows:
                own = lengths[row] - group.start
                spans.append((first, row, row, group.start, lengths[row]))
                line_of[row] = number
                places[row, : lengths[row]] = torch.cat([start, torch.arange(own) + end_of_line])
                end_of_line += own
        positions = torch.cat([torch.arange(begin, end) for *_, begin, end in spans])
        numbers = torch.tensor(spans)
        of_tokens = numbers.repeat_interleave(numbers[:, 4] - numbers[:, 3], 0)
        tables.append(torch.column_stack([of_tokens[:, :3], positions]))
    table = pad_sequence(tables, batch_first=True, padding_value=PADDING)
    groups, rows, owners, positions = table.unbind(2)
    positions = positions.clamp(min=0)
    # A token sees the tokens before it of its group's start and of its own row. Padding sees
    # padding, since a row that sees nothing would be NaN.
    alike = groups[:, :, None] == groups[:, None, :]
    seen = (owners[:, None, :] == START) | (owners[:, :, None] == owners[:, None, :])
    return Lines(
        source=rows.clamp(min=0) * longest + positions,
        positions=positions,
        visible=(alike & seen).tril()[:, None],
        line=line_of,
        places=places,
        tasks=torch.tensor([line[0].task for line in lines]),
    )

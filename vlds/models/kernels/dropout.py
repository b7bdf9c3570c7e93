"""Dropout on a CPU that is quick, and a function of (seed, step, layer, example) alone.

torch draws 64 random bits for one element after another from one generator. Here every example,
token and feature has a key of 64 bits; a hash of their sum drops or keeps four neighbouring
features. So what an example loses depends neither on the rows beside it nor on the padding behind
it, the micro-batch or the rank. The backward pass hashes again instead of keeping a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from ctypes import c_float, c_int16, c_int64
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from vlds.models.kernels.fused import chunks, compiled_functions
from vlds.schema import NO_IMAGE

TORCH_DROPOUT = F.dropout
SOURCE = Path(__file__).with_suffix(".c")
# A draw has 16 bits: four fit into one hash.
LEVELS = 1 << 16
"""Values that an element's draw can have: the probability differs from the one asked for by less
than one of them."""
DRAWS = 4
"""Draws in a hash of 64 bits."""
HASHES = 1 << 15
"""Hashes that one thread computes at a time; they are wider than what is drawn from them."""
BEHIND = 1 << 32
"""Position of the first visual token behind a text, whatever the text's length is."""
MULTIPLIER = -0x6B2FB644ECCEEE15
MULTIPLIERS = (-0x40A7B892E31B1A47, MULTIPLIER)
"""Factors of the hash splitmix64 (Steele, Lea, Flood 2014), as signed numbers; draws use the last
one alone."""


class Keys(NamedTuple):
    """Keys that decide the draws of a tensor."""

    rows: Tensor
    """(m,) of all dimensions but the last, taken together."""
    features: list[tuple[slice, Tensor]]
    """Blocks of the last dimension, each with a key for every four features."""


class Tokens(NamedTuple):
    """A sequence whose last tokens are visual. Methods may put keys before it."""

    total: int
    """Tokens of text and pictures, padding included."""
    num_visual: int
    num_written: int | None = None
    """While a decoder runs: how many tokens it has, beside the sequence that it reads."""
    num_before: int = 0
    """Keys that methods put before those of the attention that runs next."""

    def are(self, size: int) -> bool:
        """True if so many tokens are those of the sequence."""
        return size >= self.total and size != self.num_written


class Draws(Protocol):
    """Which elements of a tensor (b, ...) a layer drops."""

    def of(self, examples: slice) -> Draws:
        """The draws of some examples."""

    def dropped(self, values: Tensor) -> Tensor:
        """Values times 0 where they are dropped, else times what keeps their mean."""


class KeyedDraws(NamedTuple):
    """Draws that keys decide."""

    keys: Keys
    num_dropped: int
    """Values of `LEVELS` that drop an element."""
    num_examples: int

    def of(self, examples: slice) -> Draws:
        rows = self.keys.rows.view(self.num_examples, -1)[examples]
        return self._replace(keys=self.keys._replace(rows=rows.flatten()), num_examples=len(rows))

    def dropped(self, values: Tensor) -> Tensor:
        return masked(values, self.keys, self.num_dropped) if self.num_dropped else values


class Call(NamedTuple):
    """What a layer read when it first drew; the fields are those of `StepDropout`."""

    examples: Tensor
    tokens: Tokens | None
    lines: Tensor | None
    number: int


class StepDropout:
    """The draws of one micro-batch, while its forward and its backward pass run."""

    def __init__(self, seed: int, step: int) -> None:
        self.name = f"{seed}/{step}"
        self.shared = self.key_of("")
        """Key of rows that belong to no example."""
        self.examples = torch.empty(0, dtype=torch.int64)
        """Keys of the examples."""
        self.beginnings = self.shared
        """Key of tokens that are known by what stands before them."""
        self.tokens: Tokens | None = None
        self.lines: Tensor | None = None
        """(g, t) keys of the tokens of the rows that layers read, where they have their own."""
        self._num_calls = 0
        self._calls: dict[int, Call] = {}

    def start(self, ids: Sequence[str], number: int = 0) -> None:
        """The `number`-th forward pass over examples with these ids begins."""
        # The first pass keeps the plain names, so that a single one does not depend on `number`.
        ids = [f"{name}/{number}" for name in ids] if number else ids
        self.examples = torch.tensor([self.key_of(name) for name in ids])
        self.beginnings = self.key_of(f"beginnings/{number}")
        self.tokens = self.lines = None
        self._num_calls = 0

    def key_of(self, name: str) -> int:
        """64 random bits of an example in this step, as a signed number."""
        digest = blake2b(f"{self.name}/{name}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big", signed=True)

    def dropout(
        self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        """`torch.nn.functional.dropout` with draws by example."""
        is_plain = input.device.type == "cpu" and input.dim() >= 2 and input.numel() > 0
        if not training or not 0 < p < 1 or inplace or not is_plain:
            return TORCH_DROPOUT(input, p, training, inplace)
        output: Tensor = KeyedDropout.apply(input, self.draws(input.shape, p))  # type: ignore[no-untyped-call]
        return output

    def draws(self, shape: torch.Size, p: float) -> Draws:
        """The draws of the layer that runs next, of a tensor of this shape."""
        # Calls are numbered. With activation checkpointing a layer is computed again in the
        # backward pass, with torch's generator as it was: what that draws names the call.
        name = int(torch.randint(1 << 62, ()))
        if name not in self._calls:
            self._calls[name] = Call(self.examples, self.tokens, self.lines, self._num_calls)
            self._num_calls += 1
        examples, tokens, lines, call = self._calls[name]
        rows, num = examples, len(examples)
        dropped = min(round(p * LEVELS), LEVELS - 1)
        if lines is not None and shape[:-1] in (lines.shape, (lines.numel(),)):
            return KeyedDraws(Keys(lines.flatten(), features_of(shape, call)), dropped, len(lines))
        if len(shape) == 2 and shape[0] != num and num and shape[0] % num == 0:
            # Some layers take the tokens of all rows as one dimension.
            shape = torch.Size((num, shape[0] // num, shape[1]))
        if shape[0] != num:  # what all share, such as prompts before them
            rows = mixed(self.shared + torch.arange(shape[0]))
        keys = keys_of(shape, rows, tokens, call)
        return KeyedDraws(keys, dropped, shape[0])

    @contextmanager
    def over(self, names: Iterable[str]) -> Iterator[None]:
        """Inside, a row stands for what has its name here, not for an example of the batch."""
        before = self.examples, self.tokens, self.lines
        self.examples = torch.tensor([self.key_of(name) for name in names])
        self.tokens = self.lines = None
        try:
            yield
        finally:
            self.examples, self.tokens, self.lines = before


_current: StepDropout | None = None
"""Global, because the layers that draw are library code that takes no arguments of ours."""


def draws_by_example(shape: torch.Size, p: float) -> Draws | None:
    """The draws of a layer that does not drop through `F.dropout`; None outside `dropout_by`."""
    return None if _current is None else _current.draws(shape, p)


@contextmanager
def dropout_by(step: StepDropout) -> Iterator[None]:
    """Inside, layers draw by example: around a micro-batch's forward and backward pass."""
    global _current
    _current = step
    F.dropout = step.dropout
    try:
        yield
    finally:
        _current, F.dropout = None, TORCH_DROPOUT


def examples_follow(ids: Sequence[str], number: int = 0) -> None:
    """Say of which examples the rows are that the model reads next, for the `number`-th time."""
    if _current is not None:
        _current.start(ids, number)


@contextmanager
def pictures_follow(pictures: Tensor) -> Iterator[None]:
    """Say that inside, the rows that layers read are these pictures (u, ...). Their draws follow
    from what they show: which examples ask about them depends on how a batch is cut."""
    if _current is None or pictures.device.type != "cpu":  # a GPU draws as torch does
        yield
        return
    with _current.over(f"picture/{digest.hex()}" for digest in digests_of(pictures)):
        yield


def digests_of(pictures: Tensor) -> list[bytes]:
    """Hashes of what pictures (u, ...) or their features show."""
    return [
        blake2b(picture.contiguous().view(torch.uint8).numpy(), digest_size=8).digest()
        for picture in pictures
    ]


@contextmanager
def tasks_follow(tasks: Iterable[int]) -> Iterator[None]:
    """Say that inside, there is a row for each of these tasks: which of them a batch has, and
    whether it has as many examples, depends on how it is cut."""
    with nullcontext() if _current is None else _current.over(f"task/{task}" for task in tasks):
        yield


def visual_tokens_end(total: int, num_visual: int) -> None:
    """Say how many tokens at the end of the sequences that layers read next are visual."""
    if _current is not None:
        _current.tokens = Tokens(total, num_visual)


def another_row_follows(num_examples: int) -> None:
    """Say that layers read one row next that belongs to none of so many examples, behind theirs."""
    if _current is not None and len(_current.examples) == num_examples:
        # Nothing is learned from it, so it may lose what any example does.
        _current.examples = torch.cat([_current.examples, _current.examples[:1]])


def beginnings_follow(tokens: Tensor, pictures: Tensor | None, image_index: Tensor) -> None:
    """Say that layers read rows (b, s) of these tokens next, about the pictures (u, ...) that
    `image_index` (b, n) names. What a token loses follows from the row's pictures and the tokens up
    to it, so that rows which begin alike may be computed once up to there."""
    if _current is None or (pictures is not None and pictures.device.type != "cpu"):
        return
    names = [] if pictures is None else digests_of(pictures)
    known = torch.tensor([*(int.from_bytes(name, "big", signed=True) for name in names), 0])
    places, positions = (torch.arange(each.shape[1]) for each in (image_index, tokens))
    shown = mixed(known[image_index] + (places << 56)).masked_fill(image_index == NO_IMAGE, 0)
    # A token's number depends on its position, so that a sum knows the order.
    read = mixed(tokens + (positions << 32)).cumsum(1)
    _current.lines = mixed(read + shown.sum(1, keepdim=True) + _current.beginnings)


def tokens_move(source: Tensor) -> None:
    """Say that layers read these tokens next (g, t), by their places among all rows' (b * s)."""
    if _current is not None and _current.lines is not None:
        _current.lines = _current.lines.flatten()[source]


def lines_follow(rows: Tensor, positions: Tensor) -> None:
    """Say that the rows which layers read next are lines of tokens (g, t): whose each is, as a
    number of an example, and at which position it stands there."""
    if _current is not None:
        # As `keys_of` makes them of a row alone, whose tokens are its first axis.
        _current.lines = _current.examples[rows] + mixed(positions + (1 << 56))


def keys_stand_before(num_keys: int) -> None:
    """Say how many keys methods put before those of the attention that runs next."""
    if _current is not None and _current.tokens is not None:
        _current.tokens = _current.tokens._replace(num_before=num_keys)


def decoder_follows(num_tokens: int) -> None:
    """Say that a decoder with so many tokens reads the sequence next."""
    if _current is not None and _current.tokens is not None:
        _current.tokens = _current.tokens._replace(num_written=num_tokens)


class KeyedDropout(torch.autograd.Function):
    """Dropout whose backward pass draws again."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, draws: Draws) -> Tensor:
        ctx.draws = draws
        return draws.dropped(inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.draws.dropped(gradient), None


def masked(values: Tensor, keys: Keys, dropped: int) -> Tensor:
    """Values times 0 where they are dropped, else times what keeps their mean."""
    flat = values.contiguous().view(-1, values.shape[-1])
    outputs = torch.empty_like(flat)
    # In half precision, the scale is rounded as the values are.
    scale = float(torch.tensor(LEVELS / (LEVELS - dropped), dtype=values.dtype))
    # Draws are signed 16-bit numbers from -LEVELS / 2; the `dropped` lowest ones drop.
    last = dropped - 1 - LEVELS // 2
    drop = compiled_drop(values.dtype) or drop_by_torch
    for columns, features in keys.features:
        drop(flat[:, columns], outputs[:, columns], keys.rows, features, last, scale)
    return outputs.view(values.shape)


Drop: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, int, float], None]


def compiled_drop(dtype: torch.dtype) -> Drop | None:
    """`drop_by_torch` in one pass; None for other types, or without a C compiler."""
    name = {torch.bfloat16: "drop_bf16", torch.float32: "drop_f32"}.get(dtype)
    functions = None if name is None else compiled_functions(SOURCE)
    function = None if name is None else getattr(functions, name, None)
    if function is None:
        return None

    def drop(
        values: Tensor, dropped: Tensor, rows: Tensor, features: Tensor, last: int, scale: float
    ) -> None:
        strided = (values.data_ptr(), values.stride(0), dropped.data_ptr(), dropped.stride(0))
        keys = (rows.data_ptr(), features.data_ptr())
        numbers = (c_int64(MULTIPLIER), c_int16(last), c_float(scale))
        function(*map(c_int64, (*strided, *values.shape, *keys)), *numbers)

    return drop


def drop_by_torch(
    values: Tensor, dropped: Tensor, rows: Tensor, features: Tensor, last: int, scale: float
) -> None:
    """Write values (m, n) times a scale where a draw is above `last` and 0 elsewhere, of keys (m,)
    and (f,), with n at most 4 f."""
    for some in chunks(len(rows), len(features), HASHES * torch.get_num_threads()):
        hashes = rows[some, None] + features
        # Each hash of 64 bits is the draws of four features.
        draws = hashes.bitwise_xor_(hashes >> 32).mul_(MULTIPLIER).view(torch.int16)
        kept = draws[:, : values.shape[1]] > last
        # Not a product with 0, of which infinity makes NaN.
        dropped[some] = torch.where(kept, values[some] * scale, 0.0)


def keys_of(shape: torch.Size, rows: Tensor, tokens: Tokens | None, call: int) -> Keys:
    """The keys of a tensor (b, ..., tokens, features) or (b, heads, tokens, tokens), given those of
    its first dimension (b,).

    Sizes of a batch leave no trace in them: visual tokens are counted from `BEHIND`, not from where
    the padding before them ends. Positions, axis and call occupy separate bits, so that no two
    hash the same number.
    """
    for axis, size in enumerate(shape[1:-1], 1):
        positions = torch.arange(size)
        is_tokens = axis == max(1, len(shape) - 2)
        if tokens is not None and tokens.are(size) and is_tokens:
            first = size - tokens.num_visual
            positions[first:] += BEHIND - first
        rows = rows[..., None] + mixed(positions + (axis << 56))
    # The last dimension of attention's weights are tokens too: text, then pictures.
    num_visual = 0
    if tokens is not None and len(shape) == 4 and tokens.are(shape[-1] - tokens.num_before):
        num_visual = tokens.num_visual
    return Keys(rows.flatten(), features_of(shape, call, num_visual))


def features_of(shape: torch.Size, call: int, num_visual: int = 0) -> list[tuple[slice, Tensor]]:
    """`Keys.features` of a tensor whose last features stand for so many visual tokens."""
    ends = [0, shape[-1] - num_visual, shape[-1]] if num_visual else [0, shape[-1]]
    features = []
    for number, (start, stop) in enumerate(pairwise(ends)):
        if start == stop:
            continue
        # Rounded up: 10 features take 3 hashes, whose last two draws are unused.
        num_hashes = -(-(stop - start) // DRAWS)
        lanes = torch.arange(num_hashes) + number * BEHIND + (call << 40)
        features.append((slice(start, stop), mixed(lanes)))
    return features


def mixed(numbers: Tensor) -> Tensor:
    """Different numbers -> random keys: splitmix64's last steps."""
    for places, multiplier in zip((30, 27, 31), (*MULTIPLIERS, 1), strict=True):
        # Shifted as unsigned numbers: torch would fill up with the sign.
        shifted = (numbers >> places) & ((1 << (64 - places)) - 1)
        numbers = (numbers ^ shifted) * multiplier
    return numbers

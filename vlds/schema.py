"""The nouns of the data flow, shard -> Sample -> Example -> Batch, and the words that backbones and
methods share.

Imports no other file of vlds but checks.py. Shapes: b examples in a batch, u distinct images in a
batch, n images per example, l prompt tokens, t target tokens, v visual tokens per image, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Protocol, TypeAlias

from vlds.runtime.checks import Limits, Natural, SourcePath

if TYPE_CHECKING:  # commands that only prepare data, or find a mistake, do not wait for these
    import numpy as np
    from torch import Tensor

IGNORED_LABEL = -100
"""Label of padded target positions; cross-entropy skips them."""
NO_IMAGE = -1
"""Entry of `Batch.image_index` for an example with fewer images than the widest of its batch."""
LONGEST_TEXT = 100_000
"""Characters of a question, answer or caption. Models read far fewer, and a tokenizer needs seconds
and gigabytes for a text that was made long on purpose."""
CHOICE_LETTERS = ("A", "B", "C", "D", "E")
"""Names of a question's choices, as in ScienceQA, where no question has more."""

Encoded: TypeAlias = bytes | memoryview
"""Bytes of an encoded picture; from a shard, a view of the sample's bytes."""


@dataclass(frozen=True)
class ImageSpec:
    """The pictures that a vision encoder takes: uint8 RGB of one size."""

    height: int
    width: int
    resize: Literal["bicubic", "bilinear"] = "bicubic"
    decode: Literal["exact", "fast"] = "exact"
    """fast: decode a JPEG at a fraction of its size if that is large enough."""


@dataclass(frozen=True)
class NaturalSize:
    """Pictures as stored, uint8 RGB of any size: the model's own processor resizes them."""

    max_pixels: int
    """Larger pictures are scaled down to this many pixels; their aspect ratio stays."""
    min_pixels: int = 0
    """Smaller ones are scaled up to this many, likewise."""
    decode: Literal["exact", "fast"] = "exact"
    """As in `ImageSpec`; all pixels of a JPEG are decoded in both cases."""


PictureSpec: TypeAlias = ImageSpec | NaturalSize
"""The pictures that a model takes."""
Images: TypeAlias = "Tensor | list[Tensor] | None"
"""The distinct images of a batch: pictures of one size (u, 3, h, w) or features (u, v, dim); a list
of pictures (3, h, w) of unlike sizes; None if there are none."""


class Group(NamedTuple):
    """What several samples have in common: a patient, document or scene."""

    field: str
    """The source's field that names it."""
    name: str


@dataclass(frozen=True)
class Sample:
    """One image, image pair or clip with all its annotations, as stored in a shard."""

    key: str
    """Running number of the sample in its data set: the name of its members in the tar."""
    dataset: str
    """Name of the data set (from dataset.json)."""
    id: str
    """Id of the sample in its source."""
    kind: str
    """Kind of the annotations: vqa, gqa, nlvr2, caption, ..."""
    images: tuple[Encoded, ...]
    """Encoded pictures, in the order of the json's "images"."""
    features: tuple[np.ndarray, ...]
    """Stored features, float16 (tokens, dim) of each image; empty if the shard holds pictures."""
    annotations: tuple[Mapping[str, Any], ...]
    extra: Mapping[str, Any] = field(default_factory=dict)
    """All other fields of the sample's json (size, source, subtitles, span, ...)."""
    others: tuple[Sample, ...] = ()
    """Other samples of the same source, for tasks that compare some (`Task.num_others`)."""


class Masking(NamedTuple):
    """Which words of a prompt are to be predicted, once a tokenizer has found its words."""

    share: float
    """Share of the words, on average; at least one word."""
    seed: int
    always_mask: bool
    """Put a mask in the place of every such word; else BERT's mixture of masks, other words and the
    word itself."""


Speaker = Literal["system", "user", "assistant", "tool"]


class Clip(NamedTuple):
    """A clip of video, of which a sample holds some frames as consecutive pictures."""

    times: tuple[float, ...]
    """Seconds from its beginning at which each of these is shown, ascending."""
    duration: float
    """Its seconds."""


Piece: TypeAlias = "str | Clip | None"
"""A part of what is said: a text, a clip, or None for a picture."""


class Turn(NamedTuple):
    """What one speaker says in a conversation."""

    speaker: Speaker
    content: tuple[Piece, ...]
    """Texts, as they were written, with pictures and clips between them."""
    learned: bool = False
    """The model learns to say it; only for the assistant's turns."""

    @property
    def texts(self) -> list[str]:
        """Its texts without pictures and clips."""
        return [piece for piece in self.content if isinstance(piece, str)]

    @property
    def clips(self) -> list[Clip]:
        return [piece for piece in self.content if isinstance(piece, Clip)]

    @property
    def num_pictures(self) -> int:
        """Its pictures, those of clips included."""
        return self.content.count(None) + sum(len(clip.times) for clip in self.clips)

    @property
    def as_pictures(self) -> Turn:
        """The same with the pictures of clips, for models that read no video."""
        pieces: list[Piece] = []
        for piece in self.content:
            pieces += [None] * len(piece.times) if isinstance(piece, Clip) else [piece]
        return self._replace(content=tuple(pieces))


def plain_text(turns: Sequence[Turn], marks: bool = False) -> str:
    """A conversation for a model without a chat template: a question alone as it is, more turns as
    lines that begin with who speaks. `marks`: for a reader, with <image> and <video> in place."""
    texts = [
        "".join(map(_in_words, turn.content)) if marks else " ".join(turn.texts) for turn in turns
    ]
    if len(turns) == 1:
        return texts[0]
    return "\n".join(f"{turn.speaker}: {text}" for turn, text in zip(turns, texts, strict=True))


def _in_words(piece: Piece) -> str:
    if piece is None:
        return "<image>"
    return "<video>" if isinstance(piece, Clip) else piece


@dataclass(frozen=True)
class Example:
    """What a task makes of an annotation: text in, text or scores of classes out."""

    id: str
    """Id of the annotation; of the sample, if all its annotations are references."""
    task: str
    """The task's name in the recipe."""
    prompt: str
    target: str | None
    """None if the split has no labels."""
    weight: float = 1.0
    """Factor of the example's loss (VQA soft score)."""
    reference: Any = None
    """What the score compares the prediction with; a JSON value."""
    sample: str = ""
    """Id of the example's sample, unique where `id` is; only evaluation fills it."""
    groups: tuple[Group, ...] = ()
    """Those of the example's sample, named alike where `id` is unique; only evaluation fills it."""
    class_scores: Mapping[int, float] | None = None
    """For a task with a head: number of a class -> its score, 0 to 1; others have 0. The target is
    then ""."""
    masking: Masking | None = None
    """For a task that predicts words of the prompt. The target is then the prompt."""
    rivals: tuple[str, ...] = ()
    """Texts that do not belong to the picture: the model learns to rank the prompt above them."""
    turns: tuple[Turn, ...] = ()
    """A conversation up to the turn that the target answers; its pictures are the sample's, in
    order. Empty for a question with an answer: `asked` gives all examples this form. The prompt
    then is the conversation as plain text, for models that have no chat template."""
    learned: bool = True
    """False: the target is not learned, only turns before it are."""

    @property
    def shown(self) -> str:
        """The input for a reader: of a conversation with marks where pictures and clips stand."""
        return plain_text(self.turns, marks=True) if self.turns else self.prompt

    def asked(self, num_pictures: int) -> tuple[Turn, ...]:
        """The turns before the answer, of which a question about so many pictures is one."""
        pictures = (None,) * num_pictures
        return self.turns or (Turn("user", (*pictures, self.prompt)),)


class Row(NamedTuple):
    """One example on its way into a batch."""

    example: Example
    task_index: int
    max_prompt_tokens: int
    max_target_tokens: int
    images: Sequence[int]
    """Indices of its images in the batch's stack."""
    valid: bool = True


@dataclass
class Batch:
    """The model's input, padded on the right. Images that examples share are stored once."""

    ids: list[str]
    task_index: Tensor
    """(b,) int64, on the CPU: index of each example's task in the order of the recipe."""
    input_ids: Tensor
    """(b, l) int64."""
    attention_mask: Tensor
    """(b, l) bool, False on padding."""
    labels: Tensor | None
    """(b, t) int64, IGNORED_LABEL on padding; None if no example has a target. t is l where
    `labels_on_prompt` is true."""
    weights: Tensor
    """(b,) float32."""
    valid: Tensor
    """(b,) bool: False for a row that does not count: in evaluation, one that stands in for an
    unreadable example; in training, the only row of a rank without its own rows."""
    image_index: Tensor
    """(b, n) int64 into the first dimension of images or features, NO_IMAGE if absent."""
    images: Tensor | None = None
    """(u, 3, h, w) uint8."""
    features: Tensor | None = None
    """(u, v, dim) float16: grid features stored in the shard."""
    boxes: Tensor | None = None
    """(u, v, 4) boxes of visual tokens, (x1, x2, y1, y2) in 0..1; None: zeros, as in VL-Adapter."""
    types: dict[str, Tensor] = field(default_factory=dict)
    """More numbers of the prompt's tokens that a model wants: name -> (b, l)."""
    media: list[dict[str, Tensor]] = field(default_factory=list)
    """What an image-text model's processor has made of each row's pictures; the model joins the
    rows. Empty for a row without pictures; no entries in other kinds of models."""
    labels_on_prompt: bool = False
    """True if targets stand in `input_ids` behind the prompts, so that `labels` are (b, l), with
    IGNORED_LABEL on the prompts too."""
    references: list[Any] = field(default_factory=list)
    """One entry per example; only evaluation fills it."""
    samples: list[str] = field(default_factory=list)
    """Id of each example's sample; only evaluation fills it."""
    class_targets: Tensor | None = None
    """(b, c) float32 score of each class, up to the last one that an example of the batch names;
    zeros for examples of tasks that write text. None if no example has classes. One with classes
    has one label: the state that predicts it is what the task's head reads."""
    rivals: Tensor | None = None
    """(b, k, l) int64, as wide as `input_ids`: texts that compete with each example's; None if no
    example has any."""
    rivals_mask: Tensor | None = None
    """(b, k, l) bool, False on padding, and all False where an example has fewer."""
    rival_of: Tensor | None = None
    """(r,) int64, on the CPU: the row with which each of the last r rows competes, once rivals are
    rows (`with_rivals`)."""
    host: Batch | None = None
    """Of a batch on a device: the batch on the host that it was moved from. What steers Python or
    decides shapes is read there, since the host would wait for a GPU."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def on_host(self) -> Batch:
        """This batch, where Python can read its numbers at once."""
        return self if self.host is None else self.host

    def select(self, rows: Tensor) -> Batch:
        """These rows (r,), numbers on the host, padded to the longest of them, with their
        images."""
        known, numbers, device = self.on_host, rows.tolist(), self.input_ids.device
        # Padding is on the right, so the longest row of the part is its number of real tokens.
        prompts = int(known.attention_mask[rows].sum(1).max())
        if known.rivals_mask is not None:
            prompts = max(prompts, int(known.rivals_mask[rows].sum(2).max()))
        longest = prompts
        if known.labels is not None and not self.labels_on_prompt:
            # A target may have ignored labels inside, so its last label counts, not their number.
            columns = (known.labels[rows] != IGNORED_LABEL).nonzero()[:, 1]
            longest = int(columns.max()) + 1 if len(columns) else 1
        # Columns that no row of the part uses go; one stays, even for rows without images.
        shown = known.image_index[rows]
        shown = shown[:, : max(1, int((shown != NO_IMAGE).sum(1).max()))]
        # `index` numbers the images that are left from 0. NO_IMAGE is -1, so it sorts first; where
        # it occurs, subtracting 1 brings it back to -1 and the first image to 0.
        images, index = shown.unique(return_inverse=True)
        absent = int((images == NO_IMAGE).any())
        images = images[absent:].to(device, non_blocking=True)
        task_index = self.task_index[rows]  # it stays on the host (see `to`)
        rows_of_host, rows = rows, rows.to(device, non_blocking=True)

        def pick(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[images]

        return Batch(
            ids=[self.ids[row] for row in numbers],
            task_index=task_index,
            input_ids=self.input_ids[rows, :prompts],
            attention_mask=self.attention_mask[rows, :prompts],
            labels=None if self.labels is None else self.labels[rows, :longest],
            weights=self.weights[rows],
            valid=self.valid[rows],
            image_index=(index - absent).to(device, non_blocking=True),
            images=pick(self.images),
            features=pick(self.features),
            boxes=pick(self.boxes),
            types={name: values[rows, :prompts] for name, values in self.types.items()},
            media=[self.media[row] for row in numbers] if self.media else [],
            labels_on_prompt=self.labels_on_prompt,
            references=[self.references[row] for row in numbers] if self.references else [],
            samples=[self.samples[row] for row in numbers] if self.samples else [],
            class_targets=None if self.class_targets is None else self.class_targets[rows],
            rivals=None if self.rivals is None else self.rivals[rows, :, :prompts],
            rivals_mask=None if self.rivals_mask is None else self.rivals_mask[rows, :, :prompts],
            # Pictures are large, and nobody reads those of a part on the host.
            host=None
            if self.host is None
            else replace(self.host, images=None, features=None, boxes=None).select(rows_of_host),
        )

    def with_rivals(self) -> Batch:
        """This batch with each rival of an example as a row below those of the examples, with the
        example's picture and labels."""
        if self.rivals is None or self.rivals_mask is None:
            return self
        import torch

        masks = self.on_host.rivals_mask
        assert masks is not None
        of, number = masks.any(2).nonzero().T  # on the host, which must know how many there are
        rows_of_host = torch.cat([torch.arange(len(self)), of])
        device = self.input_ids.device
        rows, places = (each.to(device, non_blocking=True) for each in (rows_of_host, number))
        below = rows[len(self) :]
        pairs = zip(of.tolist(), number.tolist(), strict=True)
        names = (f"{self.ids[row]}#{n}" for row, n in pairs)
        return replace(
            self,
            ids=[*self.ids, *names],
            task_index=self.task_index[rows_of_host],
            input_ids=torch.cat([self.input_ids, self.rivals[below, places]]),
            attention_mask=torch.cat([self.attention_mask, self.rivals_mask[below, places]]),
            labels=None if self.labels is None else self.labels[rows],
            weights=self.weights[rows],
            valid=self.valid[rows],
            image_index=self.image_index[rows],
            references=[],
            samples=[],
            class_targets=None if self.class_targets is None else self.class_targets[rows],
            rivals=None,
            rivals_mask=None,
            rival_of=of,
            host=None if self.host is None else self.host.with_rivals(),
        )

    @property
    def pictures(self) -> Tensor | None:
        """The distinct images, or their features."""
        return self.features if self.images is None else self.images

    def prompts(self) -> Batch:
        """This batch without its answers."""
        # Causal models read question and answer in one row; masked, the answer is not there.
        mask = self.attention_mask
        if self.labels is not None and self.labels_on_prompt:
            mask = mask.bool() & (self.labels == IGNORED_LABEL)
        host = None if self.host is None else self.host.prompts()
        return replace(self, attention_mask=mask, labels=None, labels_on_prompt=False, host=host)

    def to(self, device: Any) -> Batch:
        """Move every tensor except those that only Python code reads."""
        # non_blocking: pinned memory is copied while Python goes on; other memory is not.
        moved = self._mapped(lambda tensor: tensor.to(device, non_blocking=True), but=ON_CPU)
        is_moved = moved.input_ids.device != self.input_ids.device
        return replace(moved, host=self.on_host) if is_moved else moved

    def pin_memory(self) -> Batch:
        """Called by torch's DataLoader with `pin_memory=True`."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    def _mapped(self, function: Callable[[Tensor], Tensor], but: Sequence[str] = ()) -> Batch:
        from torch import Tensor

        # Over all fields, so that a new one with a tensor is not forgotten on the CPU.
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in but}
        mapped: dict[str, Any] = {
            name: function(value) for name, value in values.items() if isinstance(value, Tensor)
        }
        types = {name: function(value) for name, value in self.types.items()}
        media = [{n: function(value) for n, value in row.items()} for row in self.media]
        return replace(self, types=types, media=media, **mapped)


ON_CPU = ("task_index", "rival_of")
"""Tensors of a batch that stay on the CPU."""


class Collator(Protocol):
    """Makes the batches of a kind of model, in the loader's workers: pickle can copy it."""

    def __call__(self, rows: Sequence[Row], images: Images, *, evaluation: bool) -> Batch:
        """`images`: the distinct images of the rows, which name them by their indices.

        Errors: RefusedRows if some rows have pictures that cannot be read.
        """
        ...

    def prompt_lengths(self, prompts: Sequence[tuple[str, int]]) -> list[int]:
        """Tokens of (prompt, most tokens) pairs."""
        ...

    def answer_lengths(self, answers: Sequence[tuple[str, int]]) -> list[int]:
        """Tokens of (answer, most tokens) pairs, with what ends an answer."""
        ...

    def turns_length(self, turns: Sequence[Turn]) -> int:
        """Tokens of a conversation of which `max_prompt_tokens` counts."""
        ...


@dataclass(frozen=True)
class Decoding:
    """How a task turns the model's output into text."""

    num_beams: Annotated[int, Limits(1, 1024)] = 1
    """1: greedy."""
    max_new_tokens: Annotated[int, Limits(1, 1 << 20)] = 20
    """Longest answer, in tokens after the start token."""
    choices: tuple[str, ...] | None = None
    """Compare the logits of these words' first tokens instead of generating (NLVR2's true /
    false)."""
    answers: tuple[str, ...] | SourcePath | None = None
    """Generate only one of these answers: a list, a JSON file with a list, such as `data_prep
    answers` writes, or the dataset.json of a data set of classes. The longest of them replaces
    `max_new_tokens`."""
    length_counts_start: bool = True
    """Beam scores divide by the length including the start token, as transformers 4.2 did for
    VL-Adapter."""
    early_stopping: bool = False
    """End beam search when there are as many finished answers as beams, even if an unfinished one
    scores better."""
    no_repeat_ngram_size: Natural = 0
    """Token n-grams of this size may occur once in an answer; 0: no such rule."""

    def __post_init__(self) -> None:
        if self.choices is not None and not self.choices:
            raise ValueError("choices: there are none; give some words, or set it to null")
        # Both are off when they are None or 0.
        for name in ("choices", "no_repeat_ngram_size"):
            if self.answers is not None and (given := getattr(self, name)):
                raise ValueError(
                    f"{name}: got {given}, but answers already limits what may be generated; leave "
                    "one of them out"
                )


Role = Literal[
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_qkv",
    "attn_out",
    "cross_attn_q",
    "cross_attn_k",
    "cross_attn_v",
    "cross_attn_out",
    "ffn_in",
    "ffn_out",
    "norm",
    "attn_residual",
    "ffn_residual",
    "layer",
    "decoder_positions",
]
"""Where a method can attach; `attn_*` is self-attention in encoder and decoder, `attn_qkv` one
layer that makes queries, keys and values. `attn_residual` and `ffn_residual` get what their
sub-layer's residual connection carries; `layer` is a whole one."""


@dataclass(frozen=True)
class TargetModules:
    """Role -> pattern of module paths (`*` stands for one path segment), relative to the backbone
    or encoder."""

    paths: Mapping[str, tuple[str, ...]]
    linear_init_std: float | None = None
    """Standard deviation with which the model's family initializes linear layers; None: PyTorch's
    default."""
    cures: Mapping[str, str] = field(default_factory=dict)
    """Role that models of this kind do not have -> what to choose instead, for the message."""
    narrow: Callable[[Any, int, tuple[int, int]], Any] | None = None
    """Makes narrow stacks next to a model: the model, the factor by which they are narrower, and
    how many layers encoder and decoder have -> a model of its class that shares its embeddings.
    None for a model without two stacks."""


@dataclass(frozen=True)
class OptimizerRule:
    """How the optimizer treats one parameter.

    The module that owns the parameter, or one around it, declares it in its class variable
    `optimizer_rules`: the parameter's path inside the module -> its rule.
    """

    decays: bool = True
    """False if weight decay would pull towards the wrong value: biases, norms, factors."""
    vl_adapter_decays: bool | None = None
    """`decays` in the original VL-Adapter code, if it differs."""
    rate: float = 1.0
    """Factor of the learning rate."""
    per_task: bool = False
    """True if stacked over tasks, (tasks or 1, ...): the slice of a task does not change in a step
    without examples of that task."""


OptimizerRules: TypeAlias = Mapping[str, OptimizerRule]
UNDECAYED = OptimizerRule(decays=False)
STACKED = OptimizerRule(per_task=True)
STACKED_UNDECAYED = OptimizerRule(decays=False, per_task=True)


class SkipSample(Exception):
    """A sample that cannot be used, such as bad bytes: counted, recorded and replaced."""


class RefusedRows(SkipSample):
    """Rows of a batch whose pictures a collator cannot read: their samples are bad."""

    def __init__(self, reasons: Mapping[int, str]) -> None:
        """`reasons`: index of each such row in the batch -> why."""
        # Each reason once: rows may share a picture.
        super().__init__("; ".join(dict.fromkeys(reasons.values())))
        self.reasons = reasons

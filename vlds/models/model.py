"""What every kind of model is to the trainer, the evaluator and the converters: its parts and their
counts, its tasks' heads, its loss and its answers.

Shapes: b examples, l prompt tokens, t target tokens, n images per example, w vocabulary words, m
examples of a task with a head, c classes of it, d width of the states that heads read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from vlds.models.backbones.attention import use_extensions
from vlds.models.backbones.base import unique_state
from vlds.models.collate import View
from vlds.models.generation.answer_list import Answer, AnswerList, WrittenAnswer, read_answers
from vlds.models.kernels.attention import step_kernels
from vlds.models.kernels.dropout import StepDropout, examples_follow
from vlds.models.loading.gate import quiet
from vlds.models.loading.load_backbone import steady_buffers
from vlds.models.loading.quantised import follow_weights, unpacked_sizes
from vlds.models.loss import nll_of, targets_of
from vlds.models.methods.context import (
    BatchContext,
    BatchLoss,
    Predicted,
    Revision,
)
from vlds.models.methods.host import is_own
from vlds.models.partitioned import LayerGathering
from vlds.models.task_heads import TaskHeads
from vlds.models.vision.base import GridEncoder
from vlds.schema import IGNORED_LABEL, Batch, Decoding, OptimizerRules, TargetModules


def recompute_layers(model: Any) -> None:
    """Let a frozen model of Hugging Face recompute each layer in the backward pass (activation
    checkpointing)."""
    # Versions of transformers differ in the name of the switch.
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    enable = next(getattr(model, name) for name in names if hasattr(model, name))
    enable({"use_reentrant": False})
    # Some versions let the embeddings require gradients too, which only reentrant recomputing
    # needs; it would differentiate frozen layers for nothing.
    model.disable_input_require_grads()


@contextmanager
def step_draws(
    model: Model, seed: int, step: int, micro_step: int, global_rank: int
) -> Iterator[None]:
    """Inside, dropout is a function of (seed, step, example) on a CPU and all else that is drawn
    one of (seed, step, micro-step, rank): a resumed run needs no generator states."""
    entropy = (seed, step, micro_step, global_rank)
    torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1))
    model.context.begin_step(seed, step)
    with step_kernels(model, StepDropout(seed, step)):
        yield


@dataclass(frozen=True)
class Count:
    """Weights of a part."""

    total: int
    trainable: int


@dataclass(frozen=True)
class Counts:
    """Weights of a model. The vision encoder is named, but counts in no total, as in VL-Adapter."""

    by_part: dict[str, Count]
    """backbone, visual_embedding or connector, norms, each method; the vision encoder too."""
    outside: dict[str, str] = field(default_factory=dict)
    """Trained parameter that lies outside its part's module, as an untied output layer does ->
    method that trains it."""

    @property
    def total(self) -> int:
        """All weights but the vision encoder's."""
        return sum(count.total for part, count in self.by_part.items() if part != "vision")

    @property
    def trainable(self) -> int:
        return sum(count.trainable for count in self.by_part.values())

    @property
    def percent(self) -> float:
        """Trainable weights in percent of all."""
        return 100 * self.trainable / self.total

    def as_dict(self) -> dict[str, Any]:
        """What `vlds describe --json` prints."""
        parts = {part: asdict(count) for part, count in self.by_part.items()}
        return {
            "total": self.total,
            "trainable": self.trainable,
            "percent": self.percent,
            "by_part": parts,
            "outside": self.outside,
        }

    def table(self) -> str:
        """What `vlds describe` prints."""
        lines = [f"{'part':<24}{'weights':>16}{'trainable':>16}{'%':>10}"]
        for part, count in self.by_part.items():
            lines.append(f"{part:<24}{count.total:>16,}{count.trainable:>16,}")
        lines.append(f"{'total':<24}{self.total:>16,}{self.trainable:>16,}{self.percent:>10.3f}")
        if "vision" in self.by_part:
            lines.append("The vision encoder is not in the total, as in VL-Adapter.")
        lines += [f"{by} trains {name} too (not tied)." for name, by in self.outside.items()]
        return "\n".join(lines)


class ReadAlone(NamedTuple):
    """Texts before their picture is known, or a picture before its texts are."""

    batch: Batch
    """Rows with these texts, or one row with this picture."""
    states: Tensor | None = None
    """(b, l, d) or (1, v, d) what the model makes of them alone; None if it makes nothing."""


class ModelOutput(NamedTuple):
    """One forward pass. A tuple, in which ZeRO-3's hooks find the tensors."""

    loss: Tensor
    """Sum over examples of coefficient x summed token nll, in float32."""
    token_nll_sum: Tensor
    """(b,) summed token nll of each example, detached."""
    added: Mapping[str, Tensor] = MappingProxyType({})
    """Method -> what it adds to them, (b,), detached."""


@dataclass(frozen=True)
class Sources:
    """Which tensors of a model are, bit for bit, those of the files or hub names that its recipe
    names."""

    names: frozenset[str] = frozenset()
    """Whole tensors."""
    rows: Mapping[str, int] = field(default_factory=dict)
    """Tables whose first rows are: name -> number of rows. The others are new."""


@dataclass(frozen=True)
class Part:
    """A part of a model that methods can tune."""

    path: str
    """The part's module in the model; also the start of its tensors' names."""
    targets: TargetModules
    """Where methods attach, relative to the module."""
    optimizer_rules: OptimizerRules = field(default_factory=dict)
    """Path pattern of a parameter -> rule, where the kind of the parameter's module does not say
    it."""
    takes_prompts: bool = True
    """False if nothing can stand before the text."""
    says_tokens: bool = True
    """False if the model does not say which of the part's tokens are real, and which padding."""
    others: frozenset[str] = frozenset()
    """Parameters inside the module that belong to another part, so that no method of this one
    trains them: their names relative to the module."""
    outside: tuple[str, ...] = ()
    """Parameters of the part that lie outside the module, such as an untied output layer: their
    names in the model. `Full` trains them."""


BACKBONE_PREFIX = "backbone."
"""What the names of the backbone's tensors begin with inside a model."""


class Model(nn.Module, ABC):
    """A frozen model with methods attached; `build_model` makes it."""

    embeds_texts: ClassVar[bool] = False
    """True if texts and heads' states are vectors that can be compared."""
    backbone: Any
    """A model of Hugging Face, to which the files of other libraries refer."""
    parts: dict[str, Part]
    """Name -> part that methods can tune. Each kind sets it before methods attach."""

    def __init__(self, processor: Any = None) -> None:
        """`processor`: the tokenizer, or the processor of text and pictures; None where only shapes
        are wanted."""
        super().__init__()
        self.processor = processor
        self.context = BatchContext()
        self.trained_by: dict[str, str] = {}
        """Trainable parameter -> method that trains it, or the part of the model."""
        self.changed: set[str] = set()
        """Frozen weights that attaching methods has changed."""
        self.sources = Sources()
        self.answer_lists: dict[Any, AnswerList] = {}
        self.heads = TaskHeads()
        self.step_rules = nn.ModuleDict()  # method -> its rule, for methods that have one
        self.batch_losses: dict[str, BatchLoss] = {}
        """Method -> what it adds to each example's loss, for methods that do."""
        self.shows_clips = False
        """The training data may have clips of video, which all ranks must know of."""
        self.gathering: LayerGathering | None = None  # while partitioned weights are evaluated
        self.revisions: dict[str, Revision] = {}
        """Method -> how it changes what trains after given steps, for methods that do."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of answers."""
        return getattr(self.processor, "tokenizer", self.processor)

    # What each kind says.

    @abstractmethod
    def logits(self, batch: Batch) -> Tensor:
        """(b, t, w) for each target token, given those before it."""

    @abstractmethod
    def write(self, batch: Batch, decoding: Decoding) -> list[Answer]:
        """Each example's answer as text; answers that the batch holds are not read."""

    def write_tokens(self, batch: Batch, decoding: Decoding) -> list[WrittenAnswer]:
        """Each example's free answer as tokens, and how sure the model is of them; none from a kind
        that writes no text of its own."""
        return []

    @property
    def state_width(self) -> int | None:
        """d of the states that heads read; None if tasks cannot have heads. A kind with a number
        defines `first_states`, and its `predicted` calls the heads."""
        return None

    def first_states(self, batch: Batch) -> Tensor:
        """(b, d) from which the first token of each example's answer would be predicted: what heads
        read. Answers that the batch holds are not read."""
        raise NotImplementedError

    def embed_views(self, views: Sequence[View], twin: bool = False) -> Tensor:
        """(u, d) of length 1, in float32, for models that embed texts. `twin`: methods are switched
        off."""
        raise NotImplementedError

    @property
    def template_variables(self) -> Mapping[str, object]:
        """What the processor's chat template is told beside the messages."""
        return {}

    def generation_defaults(self) -> GenerationConfig:
        """The tokens at which Hugging Face's `generate` begins, ends and pads answers; none for
        models that write no text."""
        return GenerationConfig()

    def predicted(self, batch: Batch) -> Predicted:
        """The logits of the labels' tokens alone, and what heads say of the batch; kinds that can
        compute fewer than `logits`, or whose tasks may have heads, say how.

        Errors: ValueError if the batch has no labels.
        """
        places = self.heads.split(batch, targets_of(batch.on_host)).tokens
        return Predicted(self.logits(batch)[places], targets_of(batch), places)

    def token_nll(self, batch: Batch) -> Tensor:
        """(b, t) negative log-likelihood of each label's token, 0 elsewhere, in at least
        float32."""
        return nll_of(self.predicted(batch))

    def answer_tokens(self, answers: Sequence[str]) -> list[list[int]]:
        """Tokens of answers as the model writes them, with the end."""
        ids: list[list[int]] = self.tokenizer(list(answers), add_special_tokens=True)["input_ids"]
        return ids

    def choice_tokens(self, choice: str) -> list[int]:
        """Tokens of a word where the real part of an answer begins."""
        return list(self.tokenizer(choice, add_special_tokens=False)["input_ids"])

    def sizes(self, batch: Batch) -> Tensor:
        """(b, k) tokens of each kind that a row has, whose largest values set the padding of all
        rows computed together."""
        sizes = [batch.attention_mask.sum(1)]
        # Labels on the prompt's own tokens are padded with these.
        if batch.labels is not None and not batch.labels_on_prompt:
            sizes.append((batch.labels != IGNORED_LABEL).sum(1))
        return torch.stack(sizes, 1)

    @property
    def vision_module(self) -> nn.Module | None:
        """What reads pictures; None if nothing does."""
        part = self.parts.get("vision")
        return None if part is None else self.get_submodule(part.path)

    def use_methods(self) -> None:
        """Called once methods are attached: let the model run what they have added.

        Errors: ValueError if it would not.
        """
        use_extensions(self.get_submodule(self.parts["backbone"].path))

    def moving_buffers(self) -> list[tuple[str, Tensor]]:
        """What training changes without a gradient: the state of step rules, and the statistics of
        a vision encoder that is not frozen."""
        rules = [(f"step_rules.{n}", b) for n, b in self.step_rules.named_buffers()]
        vision = self.vision_module
        if not isinstance(vision, GridEncoder) or vision.frozen:
            return rules
        return [*rules, *((f"vision.{n}", b) for n, b in vision.named_buffers())]

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.context.training = mode
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # What `to` and its like call, also on a model that an engine holds.
        with steady_buffers(self):
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        follow_weights(self)
        return self

    # Training.

    def forward(
        self, batch: Batch, coefficients: Tensor, pieces: Sequence[Tensor] = ()
    ) -> ModelOutput:
        """The loss: each example's summed token nll times its coefficient (b,).

        `pieces`: sets of rows that are computed one after another, each padded to its own longest;
        without them all rows are computed at once.
        """
        if pieces:
            of_pieces = [self.loss_sums(batch.select(rows)) for rows in pieces]
            # The place of each row of the batch among the pieces' rows.
            order = torch.cat(list(pieces)).argsort().to(coefficients.device, non_blocking=True)
            sums = [torch.cat(parts)[order] for parts in zip(*of_pieces, strict=True)]
        else:
            sums = self.loss_sums(batch)
        # A coefficient weights an example's nll and what methods add to it alike.
        loss = (coefficients.to(sums[0], non_blocking=True) * torch.stack(sums).sum(0)).sum()
        # In evaluation there is the nll alone: methods add nothing to it.
        nll, *added = (values.detach() for values in sums)
        return ModelOutput(loss, nll, dict(zip(self.batch_losses, added, strict=self.training)))

    def loss_sums(self, batch: Batch) -> list[Tensor]:
        """(b,) each: the summed token nll of each example and, in training, what each method adds
        to it."""
        losses = self.batch_losses.values() if self.training else ()
        num_examples, batch, passes = len(batch), batch.with_rivals(), []
        # Each pass makes new draws: AdaMix compares two of them.
        for number in range(self.num_passes if self.training else 1):
            examples_follow(batch.ids, number)
            with self.context.in_pass(number):
                passes.append(self.predicted(batch))
        sums = [nll_of(passes[0]).sum(1), *(loss.of_examples(passes) for loss in losses)]
        # What rivals add is in their example's sum.
        return [values[:num_examples] for values in sums]

    @property
    def num_passes(self) -> int:
        """How often the model runs over a batch in training."""
        return max((loss.passes for loss in self.batch_losses.values()), default=1)

    # Answers.

    @torch.no_grad()
    def answer(self, batch: Batch, decoding: Decoding) -> list[Answer]:
        """Each example's answer, by its task's head if it has one; all are of tasks with heads, or
        none."""
        # Evaluation makes batches of one task.
        has_classes = self.heads.has_classes(batch)
        if not has_classes.any():
            return self.write(batch, decoding)
        assert (batch.task_index == batch.task_index[0]).all(), "one task is answered at a time"
        name = self.heads.name_of(batch)
        output, head = self.heads.outputs[name], self.heads[name]
        logits = head(self.first_states(batch)).float()
        # The best class, with its probability: by sigmoid if several classes may hold.
        is_binary = output.loss == "binary_cross_entropy"
        best, chosen = (logits.sigmoid() if is_binary else logits.softmax(-1)).max(-1)
        pairs = zip(chosen.tolist(), best.tolist(), strict=True)
        return [Answer(output.head.names[number], sure, None) for number, sure in pairs]

    def read_texts(self, texts: Batch) -> ReadAlone:
        """What the model makes of a batch's texts before it sees a picture, for tasks that rank."""
        return ReadAlone(texts)

    def read_picture(self, picture: Batch) -> ReadAlone:
        """What the model makes of the picture of a batch of one row before it reads a text."""
        return ReadAlone(picture)

    def pair_states(self, texts: ReadAlone, picture: ReadAlone) -> Tensor:
        """(b, d) the states that heads read of each text with the picture."""
        seen, rows = picture.batch, texts.batch
        index = seen.image_index.expand(len(rows), -1)
        pairs = replace(rows, image_index=index, images=seen.images, features=seen.features)
        return self.first_states(pairs)

    @torch.no_grad()
    def pair_scores(self, texts: ReadAlone, picture: ReadAlone) -> Tensor:
        """(b,) float32: how well each text fits the picture, by the head of the texts' task."""
        head = self.heads[self.heads.name_of(texts.batch)]
        scores: Tensor = head(self.pair_states(texts, picture))
        return scores[:, -1].float()

    @contextmanager
    def evaluating(self) -> Iterator[Model]:
        """In evaluation mode and without gradients; then in the mode of before."""
        was_training = self.training
        try:
            with torch.no_grad():
                yield self.eval()
        finally:
            self.train(was_training)

    @contextmanager
    def at_own_pace(self) -> Iterator[Callable[[], None]]:
        """Inside, ranks may answer unlike numbers of batches; each calls what this yields before
        each of its own. Collective."""
        if self.gathering is None:
            yield lambda: None
            return
        with self.gathering.at_own_pace() as begin_batch:
            yield begin_batch

    def answer_list(self, decoding: Decoding) -> AnswerList | None:
        """The list that answers come from, kept for the next batch; None where they are free.

        Errors: ValueError if the list cannot be read.
        """
        if decoding.answers is None:
            return None
        if (listed := self.answer_lists.get(decoding.answers)) is None:
            answers = read_answers(decoding.answers)
            listed = AnswerList(answers, self.answer_tokens(answers))
            self.answer_lists[decoding.answers] = listed
        return listed.to(next(self.parameters()).device)

    def choice_ids(self, choices: Sequence[str]) -> list[list[int]]:
        """Tokens of words to choose from.

        Errors: ValueError if two of them begin with the same token, so that they cannot be told
        apart.
        """
        ids = [self.choice_tokens(choice) for choice in choices]
        # () stands for a choice without tokens.
        firsts = {tuple(tokens[:1]) for tokens in ids}
        if len(firsts) < len(ids) or () in firsts:
            raise ValueError(
                f"choices: {', '.join(choices)} do not differ in their first token; use words "
                "that do, or generate"
            )
        return ids

    # What it is made of.

    def note_sources(self, of_backbone: Iterable[str], parts: Mapping[str, str | None]) -> None:
        """Remember which tensors come from files: these of the backbone, and all of each of the
        `parts` (name of a module -> its source) that has one."""
        whole = tuple(f"{part}." for part, source in parts.items() if source is not None)
        names = {name for name, _ in self.unique_state() if name.startswith(whole)}
        names.update(BACKBONE_PREFIX + name for name in of_backbone)
        self.sources = Sources(names=frozenset(names))

    def save_backbone(self, folder: Path) -> None:
        """Write the backbone, without methods, and the processor as Hugging Face saves them."""
        own = {name: t for name, t in self.backbone.state_dict().items() if is_own(name)}
        with quiet():
            self.backbone.save_pretrained(folder, state_dict=own)
            self.generation_defaults().save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def drop_trained_sources(self) -> None:
        """Forget the sources of tensors that training or attaching changes."""
        self.forget_sources(self.moving_names() | self.changed)

    def forget_sources(self, names: Iterable[str]) -> None:
        """Note that tensors no longer are as their sources have them."""
        gone = set(names)
        rows = {name: rows for name, rows in self.sources.rows.items() if name not in gone}
        self.sources = Sources(names=self.sources.names - gone, rows=rows)

    def unique_state(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters and saved buffers, tied ones once."""
        return unique_state(self)

    def moving_names(self) -> set[str]:
        """The tensors that training changes."""
        return {*self.trained_by, *(name for name, _ in self.moving_buffers())}

    def trained_connector(self) -> tuple[list[str], list[str]]:
        """What trains between pictures and text: paths of the largest modules of the backbone whose
        parameters all train, and names of the other parameters, which peft's folders cannot hold,
        since peft saves modules."""
        trained = {name for name, part in self.trained_by.items() if part == "connector"}
        modules: list[str] = []
        for path, module in self.backbone.named_modules():
            inside = [f"{BACKBONE_PREFIX}{path}.{name}" for name, _ in module.named_parameters()]
            is_whole = inside and path and trained.issuperset(inside)
            # Not lists: peft wraps each module, and nothing calls a list.
            if is_whole and not isinstance(module, nn.ModuleList):
                modules.append(path)
                trained.difference_update(inside)
        return modules, sorted(trained)

    def part_of(self, name: str) -> str:
        """The method that trains a parameter, or else the part of the model that holds it."""
        return self.trained_by.get(name, name.split(".", 1)[0])

    def count_parameters(self) -> Counts:
        """Weights by part, tied ones once."""
        by_part: dict[str, Count] = {}
        packed = unpacked_sizes(self)
        for name, parameter in self.named_parameters():
            part = self.part_of(name)
            old = by_part.get(part, Count(0, 0))
            # The whole size if ZeRO-3 has partitioned the parameter, or if 4 bits hold a weight.
            size = int(getattr(parameter, "ds_numel", parameter.numel()))
            size = packed.get(id(parameter), size)
            trained = size if parameter.requires_grad else 0
            by_part[part] = Count(old.total + size, old.trainable + trained)
        names = [name for part in self.parts.values() for name in part.outside]
        return Counts(by_part, {n: self.trained_by[n] for n in names if n in self.trained_by})

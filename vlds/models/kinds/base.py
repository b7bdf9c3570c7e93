"""What a kind of model is: a recipe chooses one as its `model`.

A kind says where weights come from, builds the model, and knows all that other rooms ask of it.
First the base of all kinds, then what some have in common: a vision encoder of vlds (GridKind),
one folder of Hugging Face (PathKind), a visual embedding (EmbeddingKind), answers by `generate`
(WritingModel), states for heads (StatesModel). Last, how methods change what trains in the middle
of a run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, GenerationConfig

from vlds.models.backbones.base import num_ids
from vlds.models.generation.answer_list import Answer, Writer, WrittenAnswer, as_answer
from vlds.models.generation.decoding import best_choice
from vlds.models.kernels.dropout import pictures_follow
from vlds.models.kinds.library import LibraryModel, row_peers
from vlds.models.loading.gate import TOKENIZER_FILES, check_model, check_tokenizer, open_checked
from vlds.models.loading.hashes import hash_source
from vlds.models.loading.load_backbone import Longest
from vlds.models.loading.model_files import reading
from vlds.models.loading.quantised import Bits
from vlds.models.methods.context import Trained
from vlds.models.methods.host import find_modules
from vlds.models.model import Model, recompute_layers
from vlds.models.peers import Peer
from vlds.models.vision.base import GridEncoder, VisionEncoder, freeze
from vlds.models.visual_embedding import VisualEmbedding
from vlds.runtime.checks import Choice, SourceFile, SourcePath, check_path_or_config
from vlds.runtime.json_files import lacks_memory
from vlds.runtime.process import find
from vlds.schema import Batch, Collator, Decoding, Example, Images, ImageSpec, PictureSpec, Row
from vlds.tasks.base import Task

CONNECTOR_RATE = "connector_learning_rate"
"""Field of `optimizer` with the rate of what lies between pictures and text."""


@dataclass(frozen=True, kw_only=True)
class ModelKind(Choice, ABC):
    """Builds a model, and the collator that makes its batches.

    A processor is what turns text, or text and pictures, into tensors: a tokenizer, or a
    processor of Hugging Face. A run saves it with its weights.
    """

    processor_class: ClassVar[Any] = AutoTokenizer
    """Hugging Face's class that opens the processor."""
    processor_word: ClassVar[str] = "tokenizer"
    """What messages call it."""
    rate_fields: ClassVar[Mapping[str, str]] = {"connector": CONNECTOR_RATE}
    """Part that can train beside the methods, as `trained_text` and `trained_parts` call it ->
    field of `optimizer` with its learning rate."""

    ranks_pairs: ClassVar[bool] = False
    """True if its batches hold rivals (`Example.rivals`), and its heads score pairs."""

    # What `vlds convert` says of it.

    auto_class: ClassVar[str] = "AutoModel"
    """The class of transformers that opens the folder of `vlds convert hf`."""
    opens_whole: ClassVar[bool] = False
    """True if that class opens the whole model, which sees; False if it opens only the backbone."""
    backbone_word: ClassVar[str] = "text backbone"
    """What messages call the backbone."""
    backbone_task: ClassVar[str | None] = None
    """What the backbone alone does, in the hub's words."""
    own_backbone: ClassVar[bool] = False
    """True if the backbone is never quite its source, for instance because it has more tokens.
    Weights of methods then belong to the backbone that `vlds convert hf` writes."""

    def refusal(self, layout: str) -> str | None:
        """Why the layout of another program (reference, adapters) cannot hold the model; None if it
        can."""
        return (
            f"model: {type(self).__name__}, which the {layout} layout cannot hold; use "
            "`vlds convert hf`"
        )

    # Where it comes from.

    @property
    @abstractmethod
    def sources(self) -> dict[str, str]:
        """Name of a part -> file, folder or hub name that its weights come from."""

    @property
    def read_files(self) -> list[str]:
        """All files, folders and hub names that the model is read from."""
        # A processor often lies beside the weights: a place comes once.
        places = [*self.sources.values(), self.processor_place[0]]
        return list(dict.fromkeys(place for place in places if place is not None))

    @property
    def packed_bits(self) -> Bits | None:
        """Bits of each packed weight; None if all weights are floats. Packed weights can be neither
        partitioned (stage 3) nor exported."""
        return None

    @property
    def kept_whole(self) -> str | None:
        """Which models ZeRO stage 3 cannot partition, and why; None if it can partition this."""
        return None

    def unpacked(self) -> ModelKind:
        """The same kind with whole weights."""
        return self

    def check_sources(self) -> None:
        """Check, before any long work, that these exist here or can be fetched.

        Errors: ValueError that names the field.
        """
        self.processor_source()

    def source_hashes(self) -> dict[str, str]:
        """sha256 of the sources; for hub names, of the name."""
        return {part: hash_source(source) for part, source in self.sources.items()}

    # Pictures and text.

    @property
    @abstractmethod
    def image(self) -> PictureSpec | None:
        """The pictures that the model takes; None if it takes stored features."""

    @property
    def fewest_images(self) -> int:
        """Least number of pictures of an example."""
        return 0

    @property
    def most_images(self) -> tuple[int, str]:
        """Most pictures of an example, and the field that sets this number."""
        return 1, "model"

    @property
    def processor_place(self) -> tuple[str | None, str]:
        """The folder or hub name of the processor, None if the recipe names none, and the field
        that names it. Default: where the first source is."""
        return next(iter(self.sources.values()), None), "model.path"

    def processor_source(self) -> tuple[str, str]:
        """The folder or hub name of the processor, and the field that names it.

        Errors: ValueError if there is none.
        """
        source, field = self.processor_place
        if source is None:
            raise ValueError(
                f"{field}: a model with random weights (`config`) needs the folder or hub name of "
                f"a {self.processor_word}; name one"
            )
        check_tokenizer(source, field, TOKENIZER_FILES)
        return source, field

    def load_processor(self) -> Any:
        """The processor from where the model is read.

        Errors: ValueError if there is none.
        """
        source, field = self.processor_source()
        with reading(f"{field}: cannot read a {self.processor_word} from {source}"):
            return self.load_processor_from(source)

    def load_processor_from(self, folder: str | Path) -> Any:
        """A processor that a run has saved."""
        return open_checked(self.processor_class, folder, self.processor_word)

    def local_processor(self) -> Any:
        """The processor if its files are on this machine, else None."""
        # A path that does not exist may be a name on the hub, which would be fetched.
        source, _ = self.processor_place
        return self.load_processor() if source is not None and Path(source).exists() else None

    def check_tasks(self, tasks: Mapping[str, Task], num_micro_batches: int) -> None:
        """Check that the model can learn these tasks, with so many micro-batches of a rank in a
        step.

        Errors: ValueError that names the field.
        """
        for name, task in tasks.items():
            if task.masks_words:
                raise ValueError(
                    f"tasks.{name}: it predicts masked words in their places, and "
                    f"{type(self).__name__} writes answers; use the model CrossModal with "
                    "masked_words: true"
                )
            if task.ranks and not self.ranks_pairs:
                raise ValueError(
                    f"tasks.{name}: it ranks pictures and texts by a head's scores, which "
                    f"{type(self).__name__} does not give; use the model CrossModal or JointEncoder"
                )

    def check_length(self, task: str, longest: Longest) -> None:
        """Check that the longest row of a task has positions.

        Errors: ValueError that names the numbers and begins with `task`.
        """

    @abstractmethod
    def collator(self, processor: Any, dtype: torch.dtype = torch.float32) -> Collator:
        """What makes batches in the loader's workers. `dtype`: in which the model computes, and so
        all that needs to pass from them to the model."""

    # The model.

    @abstractmethod
    def build(self, dtype: torch.dtype, processor: Any) -> Model:
        """All parts, frozen, with the weights of the sources; on the meta device, their shapes."""

    def check_built(
        self, model: Model, evaluation: Callable[[], AbstractContextManager[Model]]
    ) -> Sequence[str]:
        """Try what is not known before the model is built; what to tell the user. `evaluation`:
        what the model may be asked in, as by `Engine.evaluation`. Collective.

        Errors: ValueError if the model cannot read what its processor makes, or cannot answer.
        """
        return ()

    def draw_rows(self, model: Model, seed: int) -> None:
        """Draw the new rows of tables that a source fills in part."""

    @property
    def trained_text(self) -> Sequence[str]:
        """Parts that train as a whole beside the methods, in words; `rate_fields` has each."""
        return []

    def trained_parts(self, model: Model) -> Iterator[tuple[str, Iterable[nn.Parameter]]]:
        """These parts and their parameters. Default: the modules of these names."""
        for name in self.trained_text:
            yield name, model.get_submodule(name).parameters()

    def enable_checkpointing(self, model: Model) -> None:
        """Recompute each layer's activations in the backward pass."""
        recompute_layers(model.backbone)

    def visual_parts(self, model: Model) -> tuple[GridEncoder, VisualEmbedding]:
        """What `alignment` trains of a model with random weights.

        Errors: ValueError if the kind has no such parts, or they have pretrained weights.
        """
        raise ValueError(
            f"alignment: the model is {type(self).__name__}, and it works with JointSeq2Seq only; "
            "leave it out"
        )

    def encoder_decoder(self) -> Any:
        """Hugging Face's model alone, in float32, whose weights `vlds importance` measures.

        Errors: ValueError if the kind has none.
        """
        raise ValueError(
            f"model: got {type(self).__name__}; LST stands beside the encoder and decoder of a "
            "JointSeq2Seq alone"
        )

    def library(self, model: Model) -> LibraryModel | None:
        """The model that the weights are from as its own library opens it, whole or its language
        model alone; None if no library has it. Its weights are those of the sources, or else of
        `model`, without what methods have added."""
        return None

    def peers(self, model: Model, rows: Sequence[Row], images: Images) -> Iterator[Peer | str]:
        """What libraries compute of the same rows as the model, which has no methods and heads and
        is in evaluation mode; as texts, what cannot be compared, and why. `images`: those that the
        rows name by number."""
        if (library := self.library(model)) is not None:
            yield from row_peers(library, self.collator(model.processor), model, rows, images)

    def export(self, model: Model, folder: Path) -> ModelKind:
        """Write all weights of the model but those of methods into a folder; the kind that reads
        them from there and trains nothing beside methods.

        Errors: ValueError if the kind cannot be written so.
        """
        raise ValueError(
            f"model: {type(self).__name__} cannot be exported; open the run with vlds, or define "
            "`export`"
        )


@dataclass(frozen=True, kw_only=True)
class GridKind(ModelKind):
    """A kind whose pictures a vision encoder of vlds turns into grid features."""

    reads_class_token: ClassVar[bool] = False
    """True if a token of the whole picture may stand before the grid."""

    vision: VisionEncoder
    """Turns pictures into grid features: a class of vlds.models.vision."""

    @property
    def image(self) -> ImageSpec | None:
        return self.vision.geometry.image

    def check_sources(self) -> None:
        super().check_sources()
        self.vision.check_sources()

    def build_vision(self, dtype: torch.dtype) -> GridEncoder:
        """The encoder's module, frozen.

        Errors: ValueError if it gives a class token that the kind does not read.
        """
        if self.vision.geometry.class_token and not self.reads_class_token:
            raise ValueError(
                f"model.vision: {type(self.vision).__name__} gives a class token before its grid, "
                f"which {type(self).__name__} does not read; choose ClipVision"
            )
        # Methods with `part: vision` thaw it when they attach.
        encoder = self.vision.build(dtype)
        freeze(encoder)
        return encoder

    def peers(self, model: Model, rows: Sequence[Row], images: Images) -> Iterator[Peer | str]:
        encoder = model.vision_module
        if isinstance(images, Tensor) and isinstance(encoder, GridEncoder):
            yield from self.vision.peers(encoder, images.to(next(model.parameters()).device))
        yield from super().peers(model, rows, images)


def named(sources: Mapping[str, str | None]) -> dict[str, str]:
    """The parts whose weights come from somewhere, for `ModelKind.sources`."""
    return {part: source for part, source in sources.items() if source is not None}


@dataclass(frozen=True, kw_only=True)
class PathKind(ModelKind):
    """A kind that is opened from one folder of Hugging Face with a tokenizer: pretrained weights
    from `path`, or random ones in the sizes of a `config`."""

    path: SourcePath | None = None
    """Pretrained weights: a Hugging Face hub name or a local folder."""
    config: SourceFile | None = None
    """Instead of `path`: a config.json of Hugging Face, for a model with random weights."""
    tokenizer: SourcePath | None = None
    """Folder or hub name of the tokenizer; default: `path`."""

    def __post_init__(self) -> None:
        check_path_or_config(self)

    @property
    def processor_place(self) -> tuple[str | None, str]:
        from_path = self.tokenizer is None and self.path is not None
        return self.tokenizer or self.path, f"model.{'path' if from_path else 'tokenizer'}"

    @property
    def config_place(self) -> tuple[str, str]:
        """Where the config is, and the field that names it."""
        if self.config is not None:
            return str(find(self.config)), "model.config"
        return str(self.path), "model.path"

    def check_sources(self) -> None:
        if self.path is not None:
            check_model(self.path, "model.path")
        super().check_sources()

    def check_vocabulary(self, processor: Any, size: int, part: str) -> None:
        """Compare the tokenizer, if there is one, with the words that a part of the model has.

        Errors: ValueError if it has more.
        """
        if processor is not None and (ids := num_ids(processor)) > size:
            raise ValueError(
                f"model.tokenizer: it has ids up to {ids - 1}, and the {part} {size} "
                "tokens; name the tokenizer that belongs to it"
            )


@dataclass(frozen=True, kw_only=True)
class EmbeddingKind(GridKind):
    """A kind whose model has a `visual_embedding`, which puts visual tokens beside the text in one
    encoder."""

    rate_fields: ClassVar[Mapping[str, str]] = {
        "visual_embedding": CONNECTOR_RATE,
        "norms": "norms_learning_rate",
    }

    train_norms: bool = False
    """Train the backbone's layer norms too."""
    train_visual_embedding: bool = True
    """Train the visual embedding."""

    @property
    def trained_text(self) -> list[str]:
        norms = ["norms"] if self.train_norms else []
        return [*norms, "visual embedding"] if self.train_visual_embedding else norms

    def trained_parts(self, model: Model) -> Iterator[tuple[str, Iterable[nn.Parameter]]]:
        if self.train_norms:
            norms = find_modules(model.backbone, model.parts["backbone"].targets, "norm").values()
            yield "norms", (p for norm in norms for p in norm.parameters(recurse=False))
        if self.train_visual_embedding:
            yield "visual_embedding", model.get_submodule("visual_embedding").parameters()


def grid_features(vision: GridEncoder, pictures: Tensor) -> Tensor:
    """(u, 3, h, w) uint8, or stored features (u, v', dim) -> (u, v', dim)."""
    # Dropout of an encoder that trains depends on the picture, not on its place in the batch.
    with torch.no_grad() if vision.frozen else pictures_follow(pictures):
        features: Tensor = vision(pictures)
    return features


class WritingModel(Model):
    """A model whose answers Hugging Face's `generate` writes, or the logits behind the prompt
    choose. Shapes: b rows, w words of the vocabulary."""

    @abstractmethod
    def first_logits(self, batch: Batch) -> Tensor:
        """(b, w) of the token that an answer begins with. The batch has no labels."""

    @property
    @abstractmethod
    def writer(self) -> Writer:
        """What generates answers."""

    def generation_defaults(self) -> GenerationConfig:
        return self.writer.defaults()

    @abstractmethod
    def prompts(self, batch: Batch) -> dict[str, Any]:
        """The arguments of `generate`, which answers continue. The batch has no labels."""

    @torch.no_grad()
    def write(self, batch: Batch, decoding: Decoding) -> list[Answer]:
        batch = batch.prompts()  # without answers, which must not be read here
        if decoding.choices is not None:
            choices = decoding.choices
            chosen, confidences = best_choice(self.first_logits(batch), self.choice_ids(choices))
            pairs = zip(chosen, confidences.tolist(), strict=True)
            return [Answer(choices[number], confidence, None) for number, confidence in pairs]
        listed = self.answer_list(decoding)
        written = self.writer.write(self.prompts(batch), decoding, listed)
        return [as_answer(each, self.tokenizer, listed) for each in written]

    @torch.no_grad()
    def write_tokens(self, batch: Batch, decoding: Decoding) -> list[WrittenAnswer]:
        return self.writer.write(self.prompts(batch.prompts()), decoding, None)


class StatesModel(WritingModel):
    """A model of one Hugging Face class that also gives the states behind its logits: heads read
    them, where a task has one."""

    @property
    def state_width(self) -> int:
        return int(self.backbone.get_output_embeddings().in_features)

    @abstractmethod
    def read_first(
        self, batch: Batch, among: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Logits (n, w) and states (m, d) where each row predicts its answer's first token: of
        these rows (n,) and (m,), or logits of all."""

    def first_logits(self, batch: Batch) -> Tensor:
        return self.read_first(batch, None)[0]

    def first_states(self, batch: Batch) -> Tensor:
        # No row wants logits, so that none are computed over the vocabulary.
        rows = torch.arange(len(batch), device=batch.input_ids.device)
        return self.read_first(batch.prompts(), (rows[:0], rows))[1]


def revision_due(model: Model, step: int, num_steps: int) -> bool:
    """True if some method changes what trains after a step."""
    return any(step in revision.steps(num_steps) for revision in model.revisions.values())


def revise(
    model: Model, step: int, num_steps: int, state: Mapping[str, Trained]
) -> dict[str, Trained | None]:
    """Let the methods whose turn it is act; the state of all that trains then. Both states are by
    name; None: a weight that begins to train as it is."""
    parameters = dict(model.named_parameters())
    revised: dict[nn.Parameter, Trained | None] = {parameters[n]: t for n, t in state.items()}
    for method, revision in model.revisions.items():
        if step not in revision.steps(num_steps):
            continue
        own = {parameters[n]: state[n] for n in state if model.trained_by[n] == method}
        # A method says all that it trains from now on; what it leaves out stops training.
        new = revision.revise(step, num_steps, own)
        revised = {p: tensors for p, tensors in revised.items() if p not in own} | dict(new)
        let_train(model, method, new)
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter]: tensors for parameter, tensors in revised.items()}


def try_questions(
    pictures: Sequence[Tensor | None],
    collator: Collator,
    evaluation: Callable[[], AbstractContextManager[Model]],
    fault: str,
    cure: str,
) -> None:
    """Let a model read a question about each picture, or about none, and answer with a token.
    `evaluation`: as in `ModelKind.check_built`. Collective.

    Errors: ValueError that names the fault, what was raised, and the cure.
    """
    shown = [picture for picture in pictures if picture is not None]
    with evaluation() as model, model.at_own_pace() as begin_batch:
        # Task 0 of the recipe: if it has a head, rows have classes in place of an answer.
        has_head = 0 in model.heads.numbers.values()
        rows = []
        for number, picture in enumerate(pictures):
            example = Example(str(number), "", f"what is this{' now' * number} ?", "this")
            if has_head:
                example = replace(example, target="", class_scores={})
            rows.append(Row(example, 0, 20, 10, () if picture is None else (number,)))
        device = next(model.parameters()).device
        try:
            begin_batch()
            model.loss_sums(collator(rows, shown or None, evaluation=False).to(device))
            if not has_head:
                asked = collator(rows, shown or None, evaluation=True)
                model.answer(asked.to(device), Decoding(max_new_tokens=1))
        except Exception as error:  # each model has its own kinds of errors
            if lacks_memory(error):
                raise
            raise ValueError(f"{fault}: {error}; {cure}") from error


def fit_saved(model: Model, shapes: Mapping[str, torch.Size]) -> None:
    """Give methods' modules the shapes that a state or artifact holds, by name."""
    for method, revision in model.revisions.items():
        # Named again for each method: `fit` replaces parameters.
        saved = {p: shapes[name] for name, p in model.named_parameters() if name in shapes}
        let_train(model, method, revision.fit(saved))


def let_train(model: Model, method: str, parameters: Collection[nn.Parameter]) -> None:
    """Note that a method trains these parameters and no others."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    wanted = [names[parameter] for parameter in parameters]
    others = {name: by for name, by in model.trained_by.items() if by != method}
    stopped = model.trained_by.keys() - others.keys() - set(wanted)
    # What stops training must be gone: run states hold no frozen weights.
    assert not stopped & set(names.values()), (
        f"run states would lose {stopped}, which stop training"
    )
    for parameter in parameters:
        parameter.requires_grad_()
    model.trained_by = others | dict.fromkeys(wanted, method)
    model.drop_trained_sources()

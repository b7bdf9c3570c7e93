"""ImageTextToText: any image-text model that Hugging Face's `AutoModelForImageTextToText` opens.

Such a model is one module of a library. First this finds its parts - language, vision and the
connector between them - and checks that the processor belongs to it; the kind itself stands last.
The collator is in `image_text_rows`, the model in `image_text_model`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.utils import is_flash_attn_2_available

from vlds.models.backbones.base import num_ids, unique_state
from vlds.models.generation.positions import can_share_starts
from vlds.models.kinds.base import ModelKind, try_questions
from vlds.models.kinds.image_text_library import ImageTextLibrary
from vlds.models.kinds.image_text_model import ImageTextModel
from vlds.models.kinds.image_text_rows import ImageTextCollator
from vlds.models.kinds.library import own_state
from vlds.models.kinds.picture_forms import (
    GREY,
    NEED_PICTURES,
    PACKED,
    PLACES_PICTURES,
    UNPARTITIONED,
    WIDE,
)
from vlds.models.loading.gate import check_model, check_tokenizer, read_any_config, unpartitioned
from vlds.models.loading.load_backbone import Longest, check_fits, num_positions
from vlds.models.loading.model_files import reading
from vlds.models.loading.quantised import (
    Bits,
    check_has_source,
    check_libraries,
    check_writable_whole,
    load_language,
    pack_shapes,
)
from vlds.models.model import BACKBONE_PREFIX, Model, Part
from vlds.models.peers import opened
from vlds.models.roles import ROLES, check_named, find_roles
from vlds.models.vision.base import on_meta
from vlds.runtime.checks import Count, SourceFile, SourcePath, check_path_or_config, guess
from vlds.runtime.limited import limited
from vlds.runtime.process import find
from vlds.schema import NaturalSize, TargetModules

BRIDGES = ("merger", "deepstack_merger", "patch_merger", "connector")
"""What modules of the connector that lie inside a vision encoder, as in Qwen's models, are called,
or begin with."""
BESIDE = re.compile(r"(^|[._])(audio|generation)(?![a-z])")
"""What is called so lies neither in the connector nor in a tower: it embeds sound, or draws
pictures."""
TEXT = "input_ids"
"""Main input of Hugging Face's models that do not read pictures or sound themselves, such as the
Q-Former of BLIP-2, which reads what the vision tower gives."""


class ImageTextParts(NamedTuple):
    """Where a model's parts are. The head belongs to none of them."""

    language: str
    """Path of the module that reads text and visual tokens; it holds the table of tokens."""
    vision: str
    """Path of the module that reads pictures. In some types it holds the connector too."""
    connector: tuple[str, ...]
    """Names of the parameters between the two; empty where language attends to vision directly.
    Further towers, and what embeds sound or draws pictures, are in none of the parts."""


def find_parts(model: PreTrainedModel) -> ImageTextParts:
    """The parts of a loaded model, or of its shapes on the meta device, before methods attach.

    Errors: ValueError if vision and language are not separate modules.
    """

    def encoder_of(modality: str) -> nn.Module | None:
        """The module that reads pictures or sound, and no text; None if there is none."""
        # Models without one give themselves, None, or an encoder that reads text too. So do
        # decoder-only models if no modality is named.
        encoder: nn.Module | None = model.get_encoder(modality=modality)
        if encoder is None or model.get_input_embeddings() in encoder.modules():
            return None
        return encoder

    vision = encoder_of("image")
    if vision is None:
        raise ValueError(
            f"{model.config.model_type}: models of this type have no separate vision encoder; "
            "choose a type that has one, such as qwen2_5_vl"
        )
    decoder = model.get_decoder()
    # BLIP-2's decoder is a whole causal language model, with a head.
    language = decoder if decoder.get_output_embeddings() is None else decoder.base_model
    if vision in language.modules():
        raise ValueError(
            f"{model.config.model_type}: models of this type read pictures inside their language "
            "model; choose a type with a separate language model, such as qwen2_5_vl"
        )
    # What lies neither between the two nor in them: models inside the model that read pictures or
    # sound themselves, and neither read text nor hold the vision encoder. They are for high
    # resolution, for video, or for pictures that the model draws.
    around = {model.get_input_embeddings(), vision}
    towers = [
        module
        for module in model.modules()
        if isinstance(module, PreTrainedModel)
        and module.main_input_name != TEXT
        and around.isdisjoint(module.modules())
    ]
    bridges = [child for name, child in vision.named_children() if name.startswith(BRIDGES)]
    outside = (decoder, model.get_output_embeddings(), vision, encoder_of("audio"), *towers)
    # By id, because tied parameters are one object under several names.
    others = {id(p) for module in outside if module is not None for p in module.parameters()}
    others -= {id(p) for module in bridges for p in module.parameters()}
    paths = {module: path for path, module in model.named_modules()}
    connector = (
        name
        for name, p in model.named_parameters()
        if id(p) not in others and not BESIDE.search(name)
    )
    return ImageTextParts(paths[language], paths[vision], tuple(connector))


TESTED = (
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm", "idefics3", "llava", "llava_onevision",
    "paligemma", "gemma3", "internvl", "florence2", "qwen3_5", "qwen3_vl_moe", "glm4v",
    "glm4v_moe", "glm46v", "lfm2_vl", "llava_next", "vipllava", "mistral3", "aya_vision",
    "cohere2_vision", "idefics2", "got_ocr2", "blip-2", "perception_lm", "ovis2", "paddleocr_vl",
    "video_llama_3", "lighton_ocr", "deepseek_vl", "gemma4",
)  # fmt: skip
"""Types of models that vlds has tests for."""
SIZES = ("patch_size", "merge_size", "temporal_patch_size", "image_seq_length", "image_seq_len")
"""What processors divide by, and how many placeholders they write."""
LARGEST_PROCESSOR_SIZE = 65_536
TRY_SECONDS, TRY_MEMORY = 10, 2 << 30
"""CPU time and bytes in which a processor must have read a small picture."""
CURE = f"choose another type of model (tested: {', '.join(TESTED)})"


def check_inputs(collator: ImageTextCollator, config: Any, model: str, processor: str) -> None:
    """Try a processor on a small picture; `model` and `processor` are the fields that name these.

    Errors: ValueError if it fails; if it writes no placeholder that the model looks for; or if it
    gives something beside the tokens that grows with the text, which an answer would have to
    continue.
    """
    # First the sizes with which it would divide by zero, or write as many placeholders as fill the
    # memory.
    for owner in (collator.processor, getattr(collator.processor, "image_processor", None)):
        for size in SIZES:
            value = getattr(owner, size, None)
            # Pixtral's patches have a height and a width.
            sides = value.values() if isinstance(value, Mapping) else (value,)
            is_size = all(type(n) is int and 1 <= n <= LARGEST_PROCESSOR_SIZE for n in sides)
            if value is not None and not is_size:
                raise ValueError(
                    f"{processor}: {type(owner).__name__}'s {size} is {value!r:.50}, a whole "
                    f"number from 1 to {LARGEST_PROCESSOR_SIZE:,} expected; correct its file, or "
                    "copy it again"
                )
    kind, name = collator.model_type, type(collator.processor).__name__

    def try_it() -> str:
        torch.set_num_threads(1)  # a copy of a process has no other threads
        return str(len(collator.dummy().prompt))

    try:
        # First in a copy: sizes may ask for a million tiles or placeholders, each in its own way.
        limited(try_it, TRY_SECONDS, TRY_MEMORY)
        short = collator.dummy()
        # A longer text shows what grows with it. Types that are tested need no second run.
        long = short if kind in TESTED else collator.dummy("what is this ?")
    except Exception as error:  # each processor has its own kinds of errors
        raise ValueError(
            f"{processor}: {name} cannot read a small picture for a {kind} model: {error}; name "
            f"the processor that belongs to the model, or {CURE}"
        ) from error
    sought = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
    if sought is not None and sought not in short.prompt.tolist():
        raise ValueError(
            f"{processor}: {name} does not write token {sought}, where the {kind} model looks for "
            "a picture; name the processor that belongs to it"
        )
    for name, values in short.media.items():
        if not values.isfinite().all():
            raise ValueError(
                f"{processor}: the processor makes numbers that are NaN or infinite of a small "
                f"picture ('{name}'); correct mean, deviation and factor in its files"
            )
        if values.shape[1:] != long.media[name].shape[1:]:
            raise ValueError(
                f"{model}: the processor of {kind} gives '{name}' for each token of a prompt, "
                f"which vlds cannot continue over an answer; {CURE}"
            )


def check_reads(
    collator: ImageTextCollator,
    processor: str,
    evaluation: Callable[[], AbstractContextManager[Model]],
) -> None:
    """Let a model read two unlike pictures as its processor gives them, and answer with a token;
    `processor` is the field that names this, `evaluation` as in `ModelKind.check_built`.

    Errors: ValueError if the model fails.
    """
    name = type(collator.processor).__name__
    try_questions(
        [GREY, WIDE],
        collator,
        evaluation,
        f"{processor}: the model cannot read two small pictures as {name} gives them",
        f"name the processor that belongs to the model, or {CURE}",
    )


PARTS = ("backbone", "vision")
"""Parts in which the recipe can name layers."""
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
OTHER = "choose another, or leave attention out"
OTHER_METHOD = "Choose another method, or another model"
Roles = dict[str, list[str]]


def language_path(backbone: Any) -> str:
    """Path of the part whose layers can be packed."""
    return find_parts(backbone).language


def untied_head(backbone: Any, language: str) -> tuple[str, ...]:
    """Parameters of the output layer that the language model, at a path, does not share with it:
    their names in a whole model."""
    inside = {id(parameter) for parameter in backbone.get_submodule(language).parameters()}
    head = {id(p) for p in backbone.get_output_embeddings().parameters()} - inside
    return tuple(BACKBONE_PREFIX + name for name, p in backbone.named_parameters() if id(p) in head)


@dataclass(frozen=True, kw_only=True)
class ImageTextToText(ModelKind):
    """A vision-and-language model of Hugging Face, with its own processor and chat template."""

    processor_class: ClassVar[Any] = AutoProcessor
    processor_word: ClassVar[str] = "processor"
    auto_class: ClassVar[str] = "AutoModelForImageTextToText"
    opens_whole: ClassVar[bool] = True

    path: SourcePath | None = None
    """Pretrained weights: a Hugging Face hub name or a local folder."""
    config: SourceFile | None = None
    """Instead of `path`: a config.json, for a model with random weights."""
    processor: SourcePath | None = None
    """Folder or hub name of the processor; default: where the weights are."""
    max_pixels: Count = 1024 * 1024
    """Larger pictures are scaled down before the processor sees them."""
    min_pixels: Count | None = None
    """Smaller pictures are scaled up to this many pixels before the processor sees them."""
    num_images: Count | None = None
    """Most pictures an example may have, frames of clips included; default: 2, or 1 for types that
    take no more."""
    train_connector: bool = True
    """Train what lies between the vision tower and the language model."""
    bits: Bits | None = None
    """Pack the language model's frozen linear layers in 4 bits (nf4) or 8 (LLM.int8); not under
    ZeRO stage 3."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] | None = None
    """How attention is computed; default: as Hugging Face chooses for the type of model."""
    pack: bool = False
    """Compute short rows of a micro-batch beside each other, in lines as long as its longest row;
    for LLaVA, LLaVA-OneVision, InternVL, SmolVLM and Idefics3."""
    roles: dict[str, Roles] = field(default_factory=dict)
    """Part (vision, backbone) -> role -> paths of layers in the part, `*` for numbers, where the
    rule for layers' names does not find them."""

    def __post_init__(self) -> None:
        check_path_or_config(self)
        check_has_source(self.bits, self.config)
        if (self.min_pixels or 0) > self.max_pixels:
            raise ValueError(
                f"min_pixels: got {self.min_pixels}, more than max_pixels, {self.max_pixels}; give "
                "less, or raise max_pixels"
            )
        for part, roles in self.roles.items():
            for name, known in ((part, PARTS), *((role, ROLES) for role in roles)):
                if name not in known:
                    raise ValueError(
                        f"roles: '{name}' is unknown; {guess(name, known)}choose from: "
                        f"{', '.join(known)}"
                    )

    @property
    def sources(self) -> dict[str, str]:
        return {} if self.path is None else {"backbone": self.path}

    @property
    def processor_place(self) -> tuple[str | None, str]:
        from_path = self.processor is None and self.path is not None
        return self.processor or self.path, f"model.{'path' if from_path else 'processor'}"

    def check_sources(self) -> None:
        if self.path is not None:
            check_model(self.path, "model.path")
        check_libraries(self.bits)
        if self.attention == "flash_attention_2" and not is_flash_attn_2_available():
            raise ValueError(
                "model.attention: flash_attention_2 needs the package flash-attn and a GPU, and "
                "one of them is missing; install it there, or leave attention out"
            )
        super().check_sources()
        given, (most, field) = self.num_images, self.most_images
        if given is not None and given > most:
            raise ValueError(
                f"{field}: got {given}, but the processor of {self.read_config().model_type} "
                "places pictures itself, one in a row; give 1, or choose another type of model"
            )

    def processor_source(self) -> tuple[str, str]:
        source, name = self.processor_place
        if source is not None:
            check_tokenizer(source, name, PROCESSOR_FILES, "processor")
        return super().processor_source()

    @property
    def packed_bits(self) -> Bits | None:
        return self.bits

    @property
    def kept_whole(self) -> str | None:
        with suppress(ValueError):  # of a config that cannot be read, which others report
            model_type = self.read_config().model_type
            if (why := UNPARTITIONED.get(model_type)) is not None:
                return f"{model_type} models, {why}"
        return None

    def unpacked(self) -> ImageTextToText:
        return replace(self, bits=None)

    @property
    def image(self) -> NaturalSize:
        return NaturalSize(self.max_pixels, self.min_pixels or 0)

    @property
    def fewest_images(self) -> int:
        return 1 if self.read_config().model_type in NEED_PICTURES else 0

    @property
    def most_images(self) -> tuple[int, str]:
        """Errors: ValueError if the model's config cannot be read."""
        is_single = self.read_config().model_type in PLACES_PICTURES
        return 1 if is_single else self.num_images or 2, "model.num_images"

    def check_length(self, task: str, longest: Longest) -> None:
        config = self.read_config()
        model_class = AutoModelForImageTextToText._model_mapping[type(config)]
        most = num_positions(
            model_class, config, lambda model: model.get_submodule(language_path(model))
        )
        if most is None:
            return
        collator = self.collator(self.load_processor())
        shown = collator.dummy(num_pictures=longest.pictures).prompt
        further = collator.chat.num_around(longest.turns) - collator.chat.num_around(1)
        prompt = {"pictures and template": len(shown) + further, "prompt": longest.prompt}
        answer = {"answer": longest.answer}
        for tokens in (prompt, answer) if collator.answers_apart else (prompt | answer,):
            check_fits(task, tokens, most, "model.num_images")

    def collator(self, processor: Any, dtype: torch.dtype = torch.float32) -> ImageTextCollator:
        """Errors: ValueError if the processor does not belong to the model, or gives what vlds
        cannot place."""
        config = self.read_config()
        collator = ImageTextCollator(
            processor, config.model_type, bool(config.is_encoder_decoder), dtype
        )
        try:
            assert collator.chat.tail  # read here, so that a template's fault names its field
        except ValueError as error:
            raise ValueError(f"{self.processor_place[1]}: {error}") from error
        model = f"model.{'path' if self.config is None else 'config'}"
        check_inputs(collator, config, model, self.processor_place[1])
        return collator

    def check_built(
        self, model: Model, evaluation: Callable[[], AbstractContextManager[Model]]
    ) -> Sequence[str]:
        assert isinstance(model, ImageTextModel)
        collator = model.collator
        check_reads(collator, self.processor_place[1], evaluation)
        if note := collator.chat.prompt_note:
            return [f"{self.processor_place[1]}: {note}"]
        if collator.chat.has_template or collator.model_type in PLACES_PICTURES:
            return ()
        plain = collator.chat.prompt("QUESTION", 1)
        return [f"{self.processor_place[1]}: there is no chat template; prompts are {plain!r}"]

    def read_config(self) -> Any:
        """Hugging Face's config.

        Errors: ValueError if it cannot be read, or does not belong to an image-text model.
        """
        source = str(find(self.config)) if self.config is not None else str(self.path)
        name = f"model.{'config' if self.config else 'path'}"
        config = read_any_config(source, name)
        if type(config) not in AutoModelForImageTextToText._model_mapping:
            raise ValueError(
                f"{name}: {source} is a {config.model_type} model, which takes no pictures and "
                "text to write text; name another model, or choose another kind"
            )
        return config

    def build(self, dtype: torch.dtype, processor: Any) -> ImageTextModel:
        """Errors: ValueError if the model cannot be read, its parts cannot be found, or the
        processor does not belong to it."""
        config, field = self.read_config(), self.processor_place[1]
        model_class = AutoModelForImageTextToText._model_mapping[type(config)]
        missing: set[str] = set()
        if self.path is None or on_meta():
            message = f"model.config: {self.config} does not describe a model"
            with reading(message, "correct the file"), unpartitioned():
                backbone = model_class(config).to(dtype)
            pack_shapes(backbone, self.bits, language_path)
        else:
            backbone, missing = load_language(
                model_class, self.path, config, dtype, self.bits, language_path
            )
        if self.attention is not None:
            if self.attention == "flash_attention_2" and dtype == torch.float32:
                raise ValueError(
                    "model.attention: flash_attention_2 computes in 16 bits alone; set "
                    "training.precision to bf16 or fp16, or leave attention out"
                )
            with reading(f"model.attention: {config.model_type} models cannot use it", OTHER):
                backbone.set_attn_implementation(self.attention)
        if self.pack:
            self.check_packs(backbone)
        backbone.generation_config = GenerationConfig()  # a checkpoint's own would leak
        num_rows = backbone.get_input_embeddings().num_embeddings
        if processor is not None and (ids := num_ids(processor.tokenizer)) > num_rows:
            raise ValueError(
                f"{field}: its tokenizer has ids up to {ids - 1}, and the model {num_rows} tokens; "
                "name the processor that belongs to it"
            )
        # `missing` are the tensors that the files lack: drawn, and so stored with a run.
        names = {name for name, _ in unique_state(backbone)} - missing
        try:
            found, parts = find_parts(backbone), {}
        except (AttributeError, NotImplementedError) as error:  # of Hugging Face's own class
            raise ValueError(
                f"{config.model_type}: its parts are not known: {error}; {CURE}"
            ) from error
        for name, path in (("backbone", found.language), ("vision", found.vision)):
            start = f"{path}."
            parts[name] = Part(
                BACKBONE_PREFIX + path,
                self.targets(name, backbone.get_submodule(path)),
                takes_prompts=False,
                # The connector may lie inside the vision encoder.
                others=frozenset(
                    n.removeprefix(start) for n in found.connector if n.startswith(start)
                ),
                outside=untied_head(backbone, path) if name == "backbone" else (),
            )
        # Not by `self.collator`, whose checks make tensors, here perhaps on the meta device.
        collator = ImageTextCollator(
            processor, config.model_type, bool(config.is_encoder_decoder), dtype
        )
        model = ImageTextModel(backbone, parts, found.connector, collator, self.pack)
        if self.path is not None:
            model.note_sources(names, {})
        return model

    def check_packs(self, backbone: Any) -> None:
        """Errors: ValueError if its rows cannot stand beside each other."""
        kind, language = backbone.config.model_type, backbone.get_submodule(language_path(backbone))
        if kind not in PACKED:
            why = f"vlds does not do it for {kind}; it does for {', '.join(PACKED)}"
        elif not can_share_starts(language):
            why = (
                f"the language model of this {kind} sees tokens by their places (sliding windows, "
                "or an attention without a mask of pairs)"
            )
        else:
            return
        raise ValueError(f"model.pack: {why}; leave it out")

    def targets(self, name: str, module: nn.Module) -> TargetModules:
        """Where methods attach in a part: by rule, and as the recipe says.

        Errors: ValueError if the recipe names layers that the part does not have.
        """
        by_rule, field = find_roles(module), f"model.roles.{name}"
        check_named(module, self.roles.get(name, {}), field)
        # A connector inside the vision encoder is another part, which `train_connector` trains.
        own = {
            role: tuple(path for path in paths if not path.startswith(BRIDGES))
            for role, paths in by_rule.paths.items()
        }
        named = {role: tuple(paths) for role, paths in self.roles.get(name, {}).items()}
        paths = {role: paths for role, paths in (own | named).items() if paths}
        cures: dict[str, str] = {
            role: f"{by_rule.cures.get(role, OTHER_METHOD)}; or name its layers in {field}.{role}"
            for role in ROLES
        }
        return replace(by_rule, paths=paths, cures=cures)

    def trained_parts(self, model: Model) -> Iterator[tuple[str, Iterable[nn.Parameter]]]:
        assert isinstance(model, ImageTextModel)
        if self.train_connector:
            # Sorted: a frozenset's order differs between processes, and the optimizer needs one.
            yield "connector", map(model.get_parameter, sorted(model.connector))

    @property
    def trained_text(self) -> list[str]:
        return ["connector"] if self.train_connector else []

    def library(self, model: Model) -> ImageTextLibrary:
        assert isinstance(model, ImageTextModel)
        config = self.read_config()
        theirs = opened(
            AutoModelForImageTextToText._model_mapping[type(config)], self.path, "model.path",
            config, own_state(model.backbone),
        )  # fmt: skip
        forbidden = model.writer.forbidden
        return ImageTextLibrary(theirs, model, self.load_processor(), model.chat, forbidden)

    def export(self, model: Model, folder: Path) -> ImageTextToText:
        """The model and the processor, as Hugging Face saves them."""
        assert isinstance(model, ImageTextModel)
        check_writable_whole(self.bits)
        model.save_backbone(folder)
        return replace(self, path=str(folder), config=None, processor=None, train_connector=False)

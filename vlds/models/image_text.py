"""The kind of any image-text model that Hugging Face's `AutoModelForImageTextToText` opens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from vlds.backbones.base import unique_state
from vlds.models.image_text_check import check_inputs, check_reads, check_vocabulary
from vlds.models.image_text_collate import NEED_PICTURES, PLACES_PICTURES, ImageTextCollator
from vlds.models.image_text_model import ImageTextModel
from vlds.models.image_text_parts import BRIDGES, ImageTextParts, find_parts
from vlds.models.kind import ModelKind
from vlds.models.loading.learned_positions import Longest, check_fits, num_positions
from vlds.models.loading.quantised import (
    Bits,
    check_has_source,
    check_libraries,
    check_writable_whole,
    load_language,
    pack_shapes,
)
from vlds.models.model import BACKBONE_PREFIX, Model, Part
from vlds.models.roles import ROLES, check_named, find_roles
from vlds.pretrained.files import reading
from vlds.pretrained.gate import check_model, check_tokenizer
from vlds.pretrained.weights import read_any_config, unpartitioned
from vlds.runtime.checks import Count, check_path_or_config
from vlds.runtime.near_names import guess
from vlds.runtime.resources import find
from vlds.schema import NaturalSize, TargetModules
from vlds.vision.base import on_meta

PARTS = ("backbone", "vision")
"""Parts in which the recipe can name layers."""
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
OTHER_METHOD = "Choose another method, or another model"
Roles = dict[str, list[str]]


def language_path(backbone: Any) -> str:
    """Path of the part whose layers can be packed."""
    return find_parts(backbone).language


@dataclass(frozen=True, kw_only=True)
class ImageTextToText(ModelKind):
    """A vision-and-language model of Hugging Face, with its own processor and chat template."""

    processor_class: ClassVar[Any] = AutoProcessor
    processor_word: ClassVar[str] = "processor"

    path: str | None = None
    """Pretrained weights: a Hugging Face hub name or a local folder."""
    config: str | None = None
    """Instead of `path`: a config.json, for a model with random weights."""
    processor: str | None = None
    """Folder or hub name of the processor; default: where the weights are."""
    max_pixels: Count = 1024 * 1024
    """Larger pictures are scaled down before the processor sees them."""
    num_images: Count | None = None
    """Most pictures an example may have; default: 2, or 1 for types that take no more."""
    train_connector: bool = True
    """Train what lies between the vision tower and the language model."""
    bits: Bits | None = None
    """Pack the language model's frozen linear layers in 4 bits (nf4) or 8 (LLM.int8); not under
    ZeRO stage 3."""
    roles: dict[str, Roles] = field(default_factory=dict)
    """Part (vision, backbone) -> role -> paths of layers in the part, `*` for numbers, where the
    rule for layers' names does not find them."""

    def __post_init__(self) -> None:
        check_path_or_config(self)
        check_has_source(self.bits, self.config)
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

    def unpacked(self) -> ImageTextToText:
        return replace(self, bits=None)

    @property
    def image(self) -> NaturalSize:
        return NaturalSize(self.max_pixels)

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
        prompt = {"pictures and template": len(shown), "prompt": longest.prompt}
        answer = {"answer": longest.answer}
        for tokens in (prompt, answer) if collator.answers_apart else (prompt | answer,):
            check_fits(task, tokens, most, "model.num_images")

    def collator(self, processor: Any) -> ImageTextCollator:
        """Errors: ValueError if the processor does not belong to the model, or gives what vlds
        cannot place."""
        config = self.read_config()
        collator = self.untried_collator(processor, config)
        try:
            assert collator.chat.tail
        except ValueError as error:
            raise ValueError(f"{self.processor_place[1]}: {error}") from error
        model = f"model.{'path' if self.config is None else 'config'}"
        check_inputs(collator, config, model, self.processor_place[1])
        return collator

    def check_built(self, model: Model) -> Sequence[str]:
        assert isinstance(model, ImageTextModel)
        collator = model.collator
        check_reads(model, collator, self.processor_place[1])
        if collator.chat.has_template or collator.model_type in PLACES_PICTURES:
            return ()
        plain = collator.chat.prompt("QUESTION", 1)
        return [f"{self.processor_place[1]}: there is no chat template; prompts are {plain!r}"]

    def untried_collator(self, processor: Any, config: Any) -> ImageTextCollator:
        """The collator without checks, which would make tensors where a model is built."""
        return ImageTextCollator(processor, config.model_type, bool(config.is_encoder_decoder))

    def read_config(self) -> Any:
        """Hugging Face's config.

        Errors: ValueError if it cannot be read, or is no image-text model's.
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
        missing: set[str] = set()
        if self.path is None or on_meta():
            backbone = self.build_random(config, dtype)
        else:
            backbone, missing = self.load(self.path, config, dtype)
        backbone.generation_config = GenerationConfig()  # a checkpoint's own would leak
        if processor is not None:
            check_vocabulary(processor, backbone.get_input_embeddings().num_embeddings, field)
        names = {name for name, _ in unique_state(backbone)} - missing
        found = find_parts(backbone)
        parts = self.tunable(backbone, found)
        collator = self.untried_collator(processor, config)
        model = ImageTextModel(backbone, parts, found.connector, collator)
        if self.path is not None:
            model.note_sources(names, {})
        return model

    def build_random(self, config: Any, dtype: torch.dtype) -> Any:
        """Hugging Face's model with random weights, or its shapes on the meta device."""
        model_class = AutoModelForImageTextToText._model_mapping[type(config)]
        message = f"model.config: {self.config} describes no model"
        with reading(message, "correct the file"), unpartitioned():
            backbone = model_class(config).to(dtype)
        pack_shapes(backbone, self.bits, language_path)
        return backbone

    def load(self, path: str, config: Any, dtype: torch.dtype) -> tuple[Any, set[str]]:
        """Hugging Face's model, packed if so wished, and names of what its source lacks."""
        model_class = AutoModelForImageTextToText._model_mapping[type(config)]
        return load_language(model_class, path, config, dtype, self.bits, language_path)

    def tunable(self, backbone: Any, found: ImageTextParts) -> dict[str, Part]:
        """The parts that methods can tune, by their names in recipes."""
        paths = {"backbone": found.language, "vision": found.vision}
        return {
            name: Part(
                BACKBONE_PREFIX + path,
                self.targets(name, backbone.get_submodule(path)),
                takes_prompts=False,
                others=found.connector_in(path),
            )
            for name, path in paths.items()
        }

    def targets(self, name: str, module: nn.Module) -> TargetModules:
        """Where methods attach in a part: by rule, and as the recipe says.

        Errors: ValueError if the recipe names layers that the part does not have.
        """
        by_rule, field = find_roles(module), f"model.roles.{name}"
        check_named(module, self.roles.get(name, {}), field)
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
            yield "connector", map(model.get_parameter, sorted(model.connector))

    @property
    def trained_text(self) -> list[str]:
        return ["connector"] if self.train_connector else []

    def export(self, model: Model, folder: Path) -> ImageTextToText:
        """The model and the processor, as Hugging Face saves them."""
        assert isinstance(model, ImageTextModel)
        check_writable_whole(self.bits)
        model.save_backbone(folder)
        return replace(self, path=str(folder), config=None, processor=None, train_connector=False)

"""Classes told by their texts, as CLIP does without training: the nearest text names the class.

A class's text is the mean of the embeddings of some sentences with its name. The head works with
models that embed pictures and texts in one space (`DualEncoder`). It has no weights; a method may
replace its logits.

Shapes: n rows, c classes, d width of the embeddings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlds.runtime.checks import MadeForBatch, SourcePath
from vlds.runtime.json_files import read_named_json
from vlds.tasks.class_output import Head

NAME = "{}"
"""Stands for a class's name in a template."""


class Sentences(NamedTuple):
    """Sentences about each class: a list for every class."""

    template: list[list[str]]
    described: list[list[str]]
    negative: list[list[str]]


class ClassTexts(NamedTuple):
    """A task's classes as a text encoder embeds them, at length 1."""

    template: Tensor
    """(c, d) of the templates with each class's name, as zero-shot classification has them."""
    described: Tensor
    """(c, d) of the sentences that describe each class; without descriptions, of the templates."""
    negative: Tensor
    """(c, d) of the sentences that say that a class is absent."""
    scale: Tensor
    """The model's factor of cosines, exp(logit_scale)."""


class Twin(NamedTuple):
    """The same batch as the frozen model embeds it, at length 1."""

    images: Tensor
    """(n, d) of augmented views."""
    texts: Tensor
    """(c, d) of the descriptions."""


class ClassExtension(nn.Module, ABC):
    """Computes a task's logits in place of its `TextHead`."""

    has_class_weights: ClassVar[bool] = False
    """True if weights belong to the classes, one by one."""
    reads_descriptions: ClassVar[bool] = False
    """True if the method reads `ClassTexts.described`."""
    reads_negatives: ClassVar[bool] = False
    """True if the method reads `ClassTexts.negative`."""
    views: int = 0
    """Augmented views of each training picture that the method draws from; 0: the picture
    itself."""
    twin_views: int = 0
    """Augmented views of each training picture that the frozen model embeds too; 0: none."""

    def start(self, config: TextHead, backbone: Any, tokenizer: Any) -> None:
        """Take the initial weights from the frozen model.

        Errors: ValueError if the method does not fit the head.
        """

    def switched_off(self) -> AbstractContextManager[None]:
        """Inside, the model computes as if the method were not there."""
        return nullcontext()

    @abstractmethod
    def forward(self, images: Tensor, texts: ClassTexts) -> Tensor:
        """(n, d) image embeddings of length 1 -> (n, c) logits."""


@dataclass(frozen=True, kw_only=True)
class TextHead(Head):
    """The nearest of the classes' texts; for `DualEncoder`."""

    compares_texts: ClassVar[bool] = True

    templates: list[str] = field(default_factory=lambda: ["a photo of a {}."])
    """Sentences about a picture of a class, {} for its name."""
    descriptions: dict[str, list[str]] | SourcePath | None = None
    """Class -> sentences that describe it, or a JSON file with that; methods may mix them with the
    templates."""
    negative_templates: list[str] = field(default_factory=lambda: ["a photo without {}."])
    """Sentences about a picture of something else, for methods that use them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("templates", "negative_templates"):
            # A template without the name would make all classes one text.
            given = getattr(self, name)
            if not given or any(NAME not in text for text in given):
                raise ValueError(
                    f"{name}: got {given}; give one or more sentences with {NAME} for the class"
                )

    def with_files(self) -> TextHead:
        if not isinstance(self.descriptions, str):
            return self
        from pydantic import StringConstraints, TypeAdapter, ValidationError  # takes 0.2 s

        content = read_named_json(self.descriptions, "descriptions", "name a JSON file")
        # A blank sentence would be embedded as its special tokens alone.
        not_blank = Annotated[str, StringConstraints(pattern=r"\S")]
        try:
            sentences = TypeAdapter(dict[str, list[not_blank]]).validate_python(content)
        except ValidationError:
            raise ValueError(
                f"descriptions: {self.descriptions}: give an object with a list of sentences for "
                "every class"
            ) from None
        return replace(self, descriptions=sentences)

    def sentences(self) -> Sentences:
        """Fill in the classes' names.

        Errors: ValueError for a class that the descriptions lack.
        """
        # `replace`, not `format`: a class or a sentence may hold other braces.
        template, negative = (
            [[text.replace(NAME, name) for text in texts] for name in self.names]
            for texts in (self.templates, self.negative_templates)
        )
        # Without descriptions, methods that mix them with the templates mix these with themselves.
        if self.descriptions is None:
            return Sentences(template, template, negative)
        assert not isinstance(self.descriptions, str), "files are read before a model is built"
        # A name with an empty list counts as missing: the mean of no sentences is NaN.
        if missing := [name for name in self.names if not self.descriptions.get(name)]:
            raise ValueError(
                f"descriptions: they say nothing of {missing[0]!r} (and of {len(missing) - 1} "
                "other classes); add sentences, or leave descriptions out"
            )
        return Sentences(template, [self.descriptions[name] for name in self.names], negative)

    def build(self, width: int) -> TextClasses:
        return TextClasses(self, width)


class TextClasses(nn.Module):
    """Scores of a task's classes. The model sets `texts` before each pass."""

    def __init__(self, config: TextHead, width: int) -> None:
        """`width`: of the embeddings."""
        super().__init__()
        self.config, self.width = config, width
        self.texts = MadeForBatch()
        """`ClassTexts`."""
        self.twin = MadeForBatch()
        """`Twin` in training, if a method asks for it."""
        # At most one entry; the key makes the names of weights say which method they belong to.
        self.extensions = nn.ModuleDict()

    @property
    def extension(self) -> ClassExtension | None:
        """The method's module that computes the logits; None if the texts alone do."""
        found: list[Any] = list(self.extensions.values())
        return found[0] if found else None

    def forward(self, images: Tensor) -> Tensor:
        """(n, d) image embeddings of length 1 -> (n, c)."""
        texts: ClassTexts = self.texts.value
        if self.extension is not None:
            logits: Tensor = self.extension(images, texts)
            return logits
        # Both sides have length 1: the products are cosines.
        return texts.scale * images @ texts.template.mT


def unit(vectors: Tensor) -> Tensor:
    """The same directions with length 1, in float32 or more: cosines are computed from them."""
    # In bf16, cosines above 1/2 are 0.004 apart, which CLIP's scale of 100 makes 0.4 of a logit.
    return F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)

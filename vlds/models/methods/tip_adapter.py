"""Tip-Adapter-F (Zhang et al. 2022, https://arxiv.org/abs/2207.09519): the embeddings K of the
training pictures vote for their classes L beside the classes' texts W, and train:

    logits = s f W + alpha exp(-beta (1 - f K)) L

Before training, SimNL with `share: 1` and `temperature: null` computes the same if the classes have
no descriptions.

The first half of this file is what few-shot classifiers on a dual encoder have in common, SimNL and
APoLLo too: the head that they extend, and a cache of image embeddings with their classes.

Shapes: b rows, c classes, k shots of each class, d width of the embeddings. All embeddings have
length 1 unless said.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from vlds.models.heads.texts import ClassExtension, ClassTexts, TextClasses, unit
from vlds.models.methods.base import Method
from vlds.models.methods.context import Predicted
from vlds.models.methods.host import Host, states_type
from vlds.runtime.checks import Natural, NotNegative
from vlds.schema import OptimizerRule, OptimizerRules

Module = TypeVar("Module", bound="CacheExtension")


class HeadPlace(NamedTuple):
    """The head that a few-shot classifier extends."""

    task: str
    head: TextClasses
    number: int
    """The task's number among those with a head."""
    options: dict[str, Any]
    """Keyword arguments for new weights: their type."""

    def attach(self, name: str, extension: ClassExtension) -> None:
        """Put a method's module into the head.

        Errors: ValueError if another method is there.
        """
        if others := list(self.head.extensions):
            raise ValueError(
                f"{others[0]} makes the logits of tasks.{self.task} already; choose one of them"
            )
        self.head.extensions[name] = extension

    def by_row(self, predicted: Predicted, values: Tensor) -> Tensor:
        """Values of the task's rows (m,) -> (b,), 0 for rows of other tasks."""
        rows = predicted.classes[self.number].rows
        return values.new_zeros(len(predicted.labels)).index_copy(0, rows, values)


def find_place(host: Host) -> HeadPlace:
    """The run's task with classes told by texts.

    Errors: ValueError if there is none, or several.
    """
    found = [
        HeadPlace(task, head, number, {"dtype": states_type(host.model)})
        for number, (task, head) in enumerate(host.heads.items())
        if isinstance(head, TextClasses)
    ]
    if len(found) != 1:
        names = ", ".join(place.task for place in found) or "none"
        raise ValueError(
            f"it learns the classes of one task, and the tasks with a TextHead are: {names}; give "
            "one task of a DualEncoder a TextHead"
        )
    return found[0]


class CacheExtension(ClassExtension, ABC):
    """Logits that compare with the embeddings of the training pictures."""

    has_class_weights: ClassVar[bool] = True

    keys: Tensor
    """(c, k, d), a buffer or a parameter; `set_keys` fills it before training."""

    @torch.no_grad()
    def set_keys(self, keys: Tensor) -> None:
        """Take the embeddings of the training pictures (c, k, d), means over their views."""
        self.keys.copy_(keys)


@dataclass(frozen=True, kw_only=True)
class CacheMethod(Method, ABC):
    """Base of methods with a cache."""

    needs_whole_model: ClassVar[bool] = True

    alpha: NotNegative = 1.0
    """Factor of the cached embeddings' logits."""
    beta: NotNegative = 5.5
    """Rate at which these fall with the distance."""
    views: Natural = 10
    """Augmented views of each training picture. The cached embeddings are their means (at first, if
    they train), and each step draws one of them; 0: the picture itself."""

    def put(self, host: Host, make: Callable[..., Module]) -> tuple[Module, HeadPlace]:
        """Put a module beside the texts of the run's task with classes. `make` takes the method,
        the numbers of classes and of shots, and the embeddings' width.

        Errors: ValueError if there is no such task, or its number of shots is unknown.
        """
        place = find_place(host)
        if place.task not in host.shots:
            raise ValueError(
                f"it keeps the embeddings of the training pictures, equally many of each class; "
                f"set tasks.{place.task}.shots"
            )
        sizes = (len(place.head.config.names), host.shots[place.task], place.head.width)
        module = make(self, *sizes, **place.options)
        place.attach(host.name, module)
        return module, place


def shot_weights(keys: Tensor, temperature: float | None) -> Tensor:
    """(c, k, d) -> (c, k) weights that sum to k in each class: a shot that is unlike the others
    weighs less. All are 1 without a temperature.

    A single shot has the weight 1, as in DualAdapter; the original SimNL code divides 0 by 0.
    """
    num = keys.shape[1]
    if temperature is None or num == 1:
        return keys.new_ones(keys.shape[:2])
    # Mean cosine with the other shots: the sum over all, less the shot's 1 with itself.
    likeness = ((keys @ keys.sum(1, keepdim=True).mT).squeeze(-1) - 1) / (num - 1)
    return num * (likeness / temperature).softmax(-1)


def negative_keys(keys: Tensor) -> Tensor:
    """(c, k, d) -> (c, k, d): for each class and number of a shot, the direction of the mean of
    that shot over the other classes."""
    # The original codes leave out the class whose mean is most like the class's, which is the class
    # itself: the sum over all classes, less the class's own shot of that number.
    return unit((keys.sum(0) - keys) / (len(keys) - 1))


def cache_logits(affinity: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """(b, c * k) affinities to all keys, and the keys' weights (c, k) -> (b, c)."""
    # Keys stand class by class: key number c * k + i is shot i of class c.
    by_class: Tensor = affinity.unflatten(-1, weights.shape)
    return alpha * (by_class * weights).sum(-1)


@dataclass(frozen=True, kw_only=True)
class TipAdapter(CacheMethod):
    """Cached embeddings of the training pictures, which train."""

    def attach(self, host: Host) -> list[nn.Parameter]:
        """As `CacheMethod.put`."""
        module, _ = self.put(host, TipAdapterModule)
        return list(module.parameters())


class TipAdapterModule(CacheExtension):
    """The cached embeddings, which lose their length of 1 in training."""

    optimizer_rules: ClassVar[OptimizerRules] = {"keys": OptimizerRule()}

    def __init__(
        self, config: TipAdapter, num_classes: int, num_shots: int, width: int, **options: Any
    ) -> None:
        super().__init__()
        self.config, self.views = config, config.views
        self.keys = nn.Parameter(torch.zeros(num_classes, num_shots, width, **options))

    def forward(self, images: Tensor, texts: ClassTexts) -> Tensor:
        keys = self.keys.to(images)
        affinity = (-self.config.beta * (1 - images @ keys.flatten(0, 1).mT)).exp()
        cached = cache_logits(affinity, keys.new_ones(keys.shape[:2]), self.config.alpha)
        return texts.scale * images @ texts.template.mT + cached
